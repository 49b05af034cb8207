"""COCO's compressed run lengths, written and read by compiled loops: no Python object a run."""

from __future__ import annotations

import numpy as np

from prelabel.schemas.compiled import compiled

LONGEST = 7
"""Bytes that one run takes at most: five bits each, of 33 with the sign."""


@compiled
def write_counts(lengths: np.ndarray, text: np.ndarray, at: int) -> int:
    """Writes a mask's run lengths into `text` (uint8) from `at` on, as pycocotools' `rleToString`; returns the end.

    From the fourth run on it is the difference to the one before the last that is written, five bits a character.
    """
    for run in range(len(lengths)):
        rest = np.int64(lengths[run])
        if run > 2:
            rest -= np.int64(lengths[run - 2])
        more = True
        while more:
            bits = rest & 31
            rest >>= 5
            more = rest != (-1 if bits & 16 else 0)
            text[at] = 48 + bits + (32 if more else 0)
            at += 1
    return at


@compiled
def with_room(text: np.ndarray, at: int, runs: int) -> np.ndarray:
    """The text, or a longer copy of it, in which so many runs fit from `at` on."""
    needed = at + LONGEST * runs
    return text if needed <= len(text) else np.concatenate((text[:at], np.empty(2 * needed - at, np.uint8)))


@compiled
def extend(corners: np.ndarray, empty: bool | np.bool_, first: int, last: int, height: int) -> None:
    """Widens a box x0 y0 x1 y1 to hold a run of pixels; one that goes on in the next column reaches from head to foot.

    `first` and `last` are places in the image, column by column; `empty` says that the box holds nothing yet.
    """
    x0, x1 = first // height, last // height + 1
    y0, y1 = (first % height, last % height + 1) if x1 - x0 == 1 else (0, height)
    corners[0], corners[1] = (x0, y0) if empty else (min(corners[0], x0), min(corners[1], y0))
    corners[2], corners[3] = max(corners[2], x1), max(corners[3], y1)


@compiled
def read_counts(text: np.ndarray) -> np.ndarray:
    """The int64 run lengths of a mask whose string is known to be sound, uint8: the inverse of `write_counts`."""
    lengths = np.empty(len(text), np.int64)
    run = number = shift = 0
    for character in text:
        group = int(character) - 48
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number |= -1 << shift
            lengths[run] = number + (lengths[run - 2] if run > 2 else 0)
            run += 1
            number = shift = 0
    return lengths[:run]
