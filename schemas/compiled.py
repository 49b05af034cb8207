"""Loops that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles on first use, outside of the GIL; kept on disk for the next process where a folder for it can be had."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        return numba.njit(nogil=True)(function)


def inlined(function: Function) -> Function:
    """For compiled functions to call: becomes a part of them, for a call that is given arrays counts references to
    each, which takes longer than a short loop.
    """
    return numba.njit(inline="always")(function)
