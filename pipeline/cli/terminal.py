"""What commands share."""

from __future__ import annotations

from typing import Any

INTERRUPTED = 130


def display(**how: Any) -> Any:
    """A context manager and reporter: a bar on a terminal, a line now and then elsewhere; all of it on stderr."""
    from rich.console import Console

    from prelabel.pipeline.terminal import Display

    return Display(Console(stderr=True), **how)
