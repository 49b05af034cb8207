"""Outlines of run-length masks, as polygons: exact, and made of the runs alone.

Coordinates are x, y in pixels; the pixel of column c and row r covers the square from (c, r) to (c + 1, r + 1). An
outline runs along the borders of pixels with the mask at its right hand (y grows downwards): clockwise around a part,
counterclockwise around a hole. Parts are 4-connected: two pixels that share a corner alone are of two parts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from prelabel.schemas.rle import Rle, column_runs, run_lengths

PAIRS = 2**14
"""So many pairs of corners at most are looked at for a bridge: enough for all but outlines of thousands of corners."""


def outlines(rle: Rle) -> list[np.ndarray]:
    """The closed outlines of all parts and holes: int64 (N, 2) corners each, no three of them in a row.

    They come by their leftmost corner, so a part comes before its holes. The first corner is not repeated.

    >>> outlines(Rle((2, 3), "231"))[0].tolist()
    [[1, 0], [2, 0], [2, 1], [3, 1], [3, 2], [1, 2]]
    """
    height, width = rle.size
    columns, tops, bottoms = column_runs(rle)
    # A run's ends are at both sides of its column. What the columns left and right of a border share is no corner.
    rows = height + 1
    right = 2 * np.concatenate([columns * rows + bottoms, columns * rows + tops])
    right[len(columns) :] += 1  # where a part of one column ends and that of the next begins, the end comes first
    corners = np.setxor1d(right, right + 2 * rows, assume_unique=True)
    x, y, is_top = corners // (2 * rows), corners // 2 % rows, corners % 2
    # Along a column's border, corners are ends of edges in pairs; and likewise along a row's, once sorted that way.
    order = np.argsort((2 * y + is_top) * (width + 1) + x)
    lefts, rights = order[0::2], order[1::2]
    across = np.empty(len(corners), np.int64)
    across[lefts], across[rights] = rights, lefts
    starts = np.sort(np.where(is_top[lefts] == 1, lefts, rights))
    return [np.stack([x[ring], y[ring]], axis=1) for ring in _rings(starts.tolist(), across.tolist())]


def _rings(starts: list[int], across: list[int]) -> list[list[int]]:
    """Corners in turn: from each start along a row to the corner across, then along a column to its neighbour."""
    rings: list[list[int]] = []
    seen = bytearray(len(across))
    for start in starts:
        ring: list[int] = []
        corner = start
        while not seen[corner]:
            seen[corner] = 1
            end = across[corner]
            ring += corner, end
            corner = end ^ 1
        if ring:
            rings.append(ring)
    return rings


def area(polygon: np.ndarray) -> float:
    """Pixels within a closed polygon of (N, 2) corners, by the shoelace formula; of a hole's outline, less than 0."""
    x, y = np.asarray(polygon, np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def inset(outline: np.ndarray, by: float) -> np.ndarray:
    """An outline with its edges moved into the mask by less than half a pixel: float64 (N, 2).

    So it lies in the mask's pixels, not between them and others: who fills all pixels that it touches fills the mask.
    """
    along_row = np.sign(outline[1::2, 0] - outline[0::2, 0])
    along_column = np.sign(np.roll(outline[0::2, 1], -1) - outline[1::2, 1])
    moved = outline.astype(np.float64)
    moved[:, 1] += by * np.repeat(along_row, 2)
    moved[1::2, 0] -= by * along_column
    moved[0::2, 0] -= by * np.roll(along_column, 1)
    return moved


def join(polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One closed polygon of several, in which bridges that are walked there and back tie each to those before it.

    Bridges have no width, so areas add up, and who fills by the even-odd rule fills what all of them hold.

    Returns:
        the polygon, (N, 2), and the two ends of each bridge, (number of polygons - 1, 2, 2)
    """
    if len(polygons) == 1:
        return polygons[0], np.empty((0, 2, 2))
    corners, begins = np.concatenate(polygons), np.cumsum([0, *map(len, polygons)])
    following = np.arange(1, len(corners) + 1)
    following[begins[1:] - 1] = begins[:-1]
    bridges = [
        (here, begin + there)
        for begin, end in pairwise(begins[1:].tolist())
        for here, there in [_nearest(corners[:begin], corners[begin:end])]
    ]
    order = _spliced(following.tolist(), bridges)
    return corners[order], corners[np.array(bridges)]


def _spliced(following: list[int], bridges: list[tuple[int, int]]) -> list[int]:
    """All corners in turn, from the first; each end of a bridge comes once more, where it is walked back.

    Args:
        following: the corner after each on its own polygon
        bridges: corners of two polygons each, that are not tied already
    """
    corner_of = list(range(len(following)))
    for here, there in bridges:
        corner_of += here, there
        following += following[here], following[there]
        following[here], following[there] = len(following) - 1, len(following) - 2
    order, place = [], 0
    for _ in following:
        order.append(corner_of[place])
        place = following[place]
    return order


def _nearest(these: np.ndarray, those: np.ndarray) -> tuple[int, int]:
    """Which two corners, one of each, are nearest to each other; of very many, only some of `these` are looked at."""
    every = 1 + len(these) * len(those) // PAIRS
    across, down = (np.subtract.outer(these[::every, axis], those[:, axis]) for axis in (0, 1))
    here, there = divmod(int((across * across + down * down).argmin()), len(those))
    return here * every, there


def pixels_outside(rle: Rle, bridges: np.ndarray) -> int:
    """How many pixels outside of a mask are filled with its bridges: lines between the pixels that the ends are in.

    Args:
        rle: the mask
        bridges: (N, 2, 2), as of `join`, whose ends are in pixels of the mask
    """
    ends = np.floor(bridges).astype(np.int64)
    lengths = np.abs(ends[:, 1] - ends[:, 0]).max(axis=1) + 1
    lines = [np.rint(np.linspace(here, there, length)) for (here, there), length in zip(ends, lengths, strict=True)]
    x, y = np.unique(np.concatenate(lines), axis=0).astype(np.int64).T
    runs = np.searchsorted(np.cumsum(run_lengths(rle.counts)), x * rle.size[0] + y, side="right")
    return int(np.count_nonzero(runs % 2 == 0))
