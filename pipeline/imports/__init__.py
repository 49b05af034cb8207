"""Formats that corrected labels come back in: the registry."""

from __future__ import annotations

IMPORTS: dict[str, str] = {}
"""Format name -> "module:Class", imported on use."""
