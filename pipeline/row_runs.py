"""Masks as runs along the rows, which labeling tools want, from runs down the columns, which COCO has."""

from __future__ import annotations

import numpy as np

from prelabel.operators.counts import read_counts
from prelabel.schemas.compiled import compiled
from prelabel.schemas.rle import Rle


def row_runs(mask: Rle) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """A mask's tight box, and its run lengths within that, row by row; a mask of pixels is never made.

    Args:
        mask: of one pixel at least, whose runs are known to fill its size

    Returns:
        x, y, width, height in pixels, and int64 run lengths: outside and inside in turn, beginning outside (the first
        may be 0), which add up to width times height
    """
    lengths = read_counts(np.frombuffer(mask.counts.encode(), np.uint8))
    columns, tops, bottoms = _pieces(lengths, mask.size[0])
    left, top = int(columns[0]), int(tops.min())
    width, height = int(columns[-1]) + 1 - left, int(bottoms.max()) - top
    return (left, top, width, height), _along_rows(columns - left, tops - top, bottoms - top, height, width)


@compiled
def _pieces(lengths: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, first row, and row after the last of each run inside, cut at the feet of columns."""
    most = 0
    for length in lengths[1::2]:
        most += length // height + 2
    pieces, count, position = np.empty((3, most), np.int64), 0, 0
    for place, length in enumerate(lengths):
        end = position + length
        while place % 2 and position < end:
            column = position // height
            stop = min(end, (column + 1) * height)
            pieces[0, count], pieces[1, count], pieces[2, count] = column, position % height, stop - column * height
            position, count = stop, count + 1
        position = end
    return pieces[0, :count], pieces[1, :count], pieces[2, :count]


@compiled
def _along_rows(columns: np.ndarray, tops: np.ndarray, bottoms: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths along the rows of a window: pieces come column by column, so each row's runs do so from the left."""
    places, reached = np.zeros(height + 1, np.int64), np.full(height, -1)
    for piece, column in enumerate(columns):
        for row in range(tops[piece], bottoms[piece]):
            places[row + 1] += reached[row] != column
            reached[row] = column + 1
    places = np.cumsum(places)
    edges = np.empty((places[-1], 2), np.int64)
    reached[:] = -1
    for piece, column in enumerate(columns):
        for row in range(tops[piece], bottoms[piece]):
            if reached[row] != column:
                edges[places[row], 0] = row * width + column
                places[row] += 1
            edges[places[row] - 1, 1] = row * width + column + 1
            reached[row] = column + 1
    lengths, count, before = np.empty(2 * len(edges) + 1, np.int64), 0, 0
    for begin, end in edges:
        if begin == before and count:  # what ends with a row goes on in the next
            lengths[count - 1] += end - begin
        else:
            lengths[count], lengths[count + 1] = begin - before, end - begin
            count += 2
        before = end
    lengths[count] = height * width - before
    return lengths[: count + (lengths[count] > 0)]
