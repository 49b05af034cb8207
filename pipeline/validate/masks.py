"""Compressed run-length masks of a whole column, measured at once on their runs; no mask is decoded to pixels.

The string form, and which run a number is the difference to, are those of `rleFrString` in cocoapi's
`common/maskApi.c`; see `prelabel.schemas.rle`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prelabel.schemas.compiled import compiled, inlined

NO_STRING, NEGATIVE, TOO_LONG, TOO_SHORT = 1, 2, 3, 4
FAULTS = {
    NO_STRING: "counts are no COCO run-length string",
    NEGATIVE: "a run is shorter than 0",
    TOO_LONG: "the runs are more pixels than height times width",
    TOO_SHORT: "the runs are fewer pixels than height times width",
}

BYTES_AT_ONCE = 2**20
"""Of the strings whose runs are compared with each other; those of a layer are not parted."""


class Runs(NamedTuple):
    """The run-length strings of N masks.

    Attributes:
        data: uint8, all strings one after another
        offsets: int64 (N + 1,), where each begins in it
        heights, widths: int64 (N,), in pixels
    """

    data: np.ndarray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray


class Measures(NamedTuple):
    """Of N masks.

    Attributes:
        faults: uint8 (N,), 0 or a key of FAULTS
        areas: int64 (N,), pixels inside
        boxes: int64 (N, 4), the tight x, y, width, height in pixels; zeros where no pixel is inside, or nobody asked
    """

    faults: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def runs_of(counts: pa.ChunkedArray, heights: np.ndarray, widths: np.ndarray) -> Runs:
    """The masks of a string column without nulls."""
    strings = counts.cast(pa.large_string()).combine_chunks()
    if isinstance(strings, pa.ChunkedArray):
        strings = pa.concat_arrays([pa.array([], pa.large_string()), *strings.chunks])
    _, offsets, data = strings.buffers()
    used = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    return Runs(np.frombuffer(data or b"", np.uint8), used, heights.astype(np.int64), widths.astype(np.int64))


def measure(runs: Runs, boxed: bool = True) -> Measures:
    """Reads all runs; a mask with a fault has no area and no box. Boxes take four times as long as all else."""
    count = len(runs.heights)
    measures = Measures(np.zeros(count, np.uint8), np.zeros(count, np.int64), np.zeros((count, 4), np.int64))
    _measure(*runs, *measures, boxed)
    return measures


def overlaps(runs: Runs, rows: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """For each mask, another one of its layer that shares a pixel with it, or -1; of each two, one is told.

    Args:
        runs: of N masks
        rows: int64 (K,), numbers of masks without a fault
        layers: int64 (K,), the layer of each, from 0

    Returns:
        int64 (N,)
    """
    found = np.full(len(runs.heights), -1, np.int64)
    order = np.argsort(layers, kind="stable")
    rows, layers = rows[order].astype(np.int64), layers[order]
    sizes = np.cumsum((runs.offsets[1:] - runs.offsets[:-1])[rows])
    begins = np.flatnonzero(np.append(True, layers[1:] != layers[:-1])[: len(rows)])
    cuts = begins[1:][np.diff((sizes - sizes[:1])[begins] // BYTES_AT_ONCE) > 0]
    for some, layer in zip(np.split(rows, cuts), np.split(layers, cuts), strict=True):
        _find_overlaps(runs, some, layer, found)
    return found


def _find_overlaps(runs: Runs, rows: np.ndarray, layers: np.ndarray, found: np.ndarray) -> None:
    starts, stops, places = _runs_inside(runs.data, runs.offsets, rows)
    first = layers[places] << 40  # an image has fewer pixels
    order = np.argsort(first + starts, kind="stable")  # sorted piece by piece already
    starts, stops, owners = (first + starts)[order], (first + stops)[order], rows[places[order]]
    reach = np.maximum.accumulate(stops)
    shared = np.flatnonzero(starts[1:] < reach[:-1])
    if len(shared):
        reached_by = np.maximum.accumulate(np.where(stops == reach, np.arange(len(stops)), 0))
        found[owners[shared + 1]] = owners[reached_by[shared]]


@inlined
def _number(data: np.ndarray, place: int, end: int) -> tuple[Any, int]:
    """The number whose 5-bit groups begin at a place, and the place after it; that is -1 where there is none."""
    number = shift = 0
    while place < end and shift <= 55:
        group: Any = np.int64(data[place]) - 48
        place += 1
        if group < 0 or group > 63:
            break
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number |= -1 << shift
            return number, place
    return 0, -1


@compiled
def _measure(
    data: np.ndarray,
    offsets: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    faults: np.ndarray,
    areas: np.ndarray,
    boxes: np.ndarray,
    boxed: bool,
) -> None:
    for mask in range(len(heights)):
        start, end = offsets[mask], offsets[mask + 1]
        faults[mask], areas[mask] = _fault_and_area(data, start, end, heights[mask] * widths[mask])
        if boxed and areas[mask] > 0:
            _write_box(data, start, end, heights[mask], boxes[mask])


@inlined
def _fault_and_area(data: np.ndarray, place: int, end: int, pixels: int) -> tuple[int, int]:
    """Of one mask of so many pixels."""
    position = run = area = before = last = 0
    while place < end:
        length: Any = np.int64(data[place]) - 48
        if 0 <= length < 32:  # as most are: a number of one group, negative from 16 on
            length -= 2 * (length & 16)
            place += 1
        else:
            length, place = _number(data, place, end)
            if place < 0:
                return NO_STRING, 0
        if run > 2:
            length += before
        if length < 0:
            return NEGATIVE, 0
        if length > pixels - position:
            return TOO_LONG, 0
        position += length
        area += length * (run & 1)
        before, last = last, length
        run += 1
    return (0, area) if position == pixels else (TOO_SHORT, 0)


@inlined
def _write_box(data: np.ndarray, place: int, end: int, height: int, box: np.ndarray) -> None:
    """Of one mask without a fault, and with a pixel inside."""
    position = run = before = last = 0
    left, top, right, bottom = -1, height, 0, 0
    while place < end:
        length, place = _number(data, place, end)
        if run > 2:
            length += before
        if run % 2 == 1 and length > 0:
            column = position // height
            row = position - column * height
            left = column if left < 0 else left
            if row + length <= height:
                top, bottom = min(top, row), max(bottom, row + length)
            else:  # from one column's foot to the next one's head
                top, bottom = 0, height
                column = (position + length - 1) // height
            right = column + 1
        position += length
        before, last = last, length
        run += 1
    box[:] = left, top, right - left, bottom - top


@compiled
def _runs_inside(data: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First pixel, pixel after the last, and place in `rows`, of each run inside of some masks."""
    most = 0
    for row in rows:
        most += (offsets[row + 1] - offsets[row]) // 2
    starts, stops, places = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    count = 0
    for number, row in enumerate(rows):
        place, end = offsets[row], offsets[row + 1]
        position = run = before = last = 0
        while place < end:
            length, place = _number(data, place, end)
            if run > 2:
                length += before
            if run % 2 == 1 and length > 0:
                starts[count], stops[count], places[count] = position, position + length, number
                count += 1
            position += length
            before, last = last, length
            run += 1
    return starts[:count], stops[:count], places[:count]
