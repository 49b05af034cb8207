"""Memory that a process keeps for its next image."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Of glibc's malloc.h."""
LARGE = 64 * 2**20
"""Bytes: what is larger goes back to the system all the same. Feature maps of 800 x 1,333 pixels are smaller."""


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, for the whole process; other libraries than glibc do as they like.

    Decoding and networks free megabytes with each image, and glibc gives them back to the system, which has to clear
    each page anew for the next image: up to half of the time of a light network. The process stays as large as its
    largest image has made it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, LARGE)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
