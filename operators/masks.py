"""From a network's mask probabilities to runs at the image's size, with no full-size mask in between.

The result is, bit for bit, torchvision's `paste_masks_in_image(...) > threshold` followed by pycocotools' `encode`. The
bilinear interpolation is separable, and between two rows of the small mask it is monotone: a column of the image needs
one crossing per pair of such rows, not one value per pixel.

Bit for bit means rounding as torch does. Its CPU code has two kernels, one for outputs of height + width <= 128, and
its compiler fuses some multiplications with additions, depending on the processor and on torch's version. So each
kernel is compared with torch once per process; where no known way of rounding agrees, torch itself resizes the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba.extending import intrinsic
from torch.nn.functional import interpolate

from prelabel.operators.counts import extend, with_room, write_counts
from prelabel.schemas.compiled import compiled
from prelabel.schemas.rle import Rle, area, bbox, encode, from_run_lengths, place

Axis = tuple[np.ndarray, np.ndarray, np.ndarray]

ROUNDING_ERROR = np.float32(1e-6)
"""More than all roundings of an interpolated probability add up to."""


@dataclass(frozen=True)
class MaskRuns:
    """A mask at the image's size.

    Attributes:
        rle: its runs
        area: the number of pixels inside
        bbox: the mask's own tight box, x y width height in pixels; four zeros where no pixel is inside
    """

    rle: Rle
    area: int
    bbox: tuple[int, int, int, int]


class Box(NamedTuple):
    """The first and the last pixel, in the image, of a padded mask; the image's borders do not clip it."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.y1 - self.y0 + 1, self.x1 - self.x0 + 1

    def visible(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of the image that it covers; a slice that ends before it begins covers none."""
        return slice(max(self.y0, 0), min(self.y1 + 1, height)), slice(max(self.x0, 0), min(self.x1 + 1, width))


class Rounding(NamedTuple):
    """Where a kernel of torch rounds once, in a fused multiply-add, instead of twice."""

    source: bool
    blend: bool


def paste_runs(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[MaskRuns]:
    """Pastes the masks of boxes into an image, as runs. Several threads may call it; the kernel lets them run.

    Args:
        probabilities: float32 (N, M, M), 0..1
        boxes: float32 (N, 4), x0 y0 x1 y1 in pixels of the image; they may reach over its borders
        height: of the image, in pixels
        width: of the image, in pixels
        threshold: a pixel is inside where its probability is greater

    Returns:
        N masks of the image's size, empty where a box is inverted or outside the image.
    """
    masks = np.pad(np.asarray(probabilities, np.float32), ((0, 0), (1, 1), (1, 1)))
    padded = _padded_boxes(boxes, masks.shape[-1])
    of_small, of_large = torch_rounding(small=True), torch_rounding(small=False)
    if of_small is None or of_large is None:
        return [_paste_with_torch(*one, height, width, threshold) for one in zip(masks, padded, strict=True)]
    found = _paste_all(masks, padded, height, width, np.float32(threshold), of_small, of_large)
    return masks_in(*found, (height, width))


def masks_in(
    text: np.ndarray, ends: np.ndarray, areas: np.ndarray, corners: np.ndarray, size: tuple[int, int]
) -> list[MaskRuns]:
    """Masks from the strings of them all.

    Args:
        text: uint8, COCO's counts of one mask after the other
        ends: where each one's ends
        areas, corners: of each, x0 y0 x1 y1
        size: height, width
    """
    counts, begin = text[: ends[-1] if len(ends) else 0].tobytes().decode("ascii"), 0
    masks = []
    for end, area_, (x0, y0, x1, y1) in zip(ends.tolist(), areas.tolist(), corners.tolist(), strict=False):
        masks.append(MaskRuns(Rle(size, counts[begin:end]), area_, (x0, y0, x1 - x0, y1 - y0)))
        begin = end
    return masks


def _padded_boxes(boxes: np.ndarray, side: int) -> np.ndarray:
    """int64 (N, 4): boxes grown by their masks' padding and truncated, as torchvision's `expand_boxes` does."""
    corners = np.asarray(boxes, np.float32).reshape(-1, 2, 2)
    half = (corners[:, 1] - corners[:, 0]) * np.float32(0.5) * np.float32(side / (side - 2))
    center = (corners[:, 1] + corners[:, 0]) * np.float32(0.5)
    return np.concatenate([center - half, center + half], axis=1).astype(np.int64)


def _paste_with_torch(mask: np.ndarray, corners: np.ndarray, height: int, width: int, threshold: float) -> MaskRuns:
    """One padded mask, resized by torch itself."""
    box = Box(*corners.tolist())
    rows, columns = box.visible(height, width)
    rle = from_run_lengths([np.array([height * width])], (height, width))[0]
    if rows.start < rows.stop and columns.start < columns.stop:
        resized = _resize_with_torch(mask, box.size)
        inside = resized[rows.start - box.y0 : rows.stop - box.y0, columns.start - box.x0 : columns.stop - box.x0]
        rle = place(encode((inside > threshold).numpy()), (height, width), rows.start, columns.start)
    return MaskRuns(rle, area(rle), bbox(rle))


def _resize_with_torch(mask: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return interpolate(torch.from_numpy(mask)[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@cache
def torch_rounding(small: bool) -> Rounding | None:
    """How torch's kernel for small (or for other) outputs rounds in this process; None for a way not known here."""
    mask = np.random.default_rng(0).random((30, 30), np.float32)
    size = (59, 67) if small else (307, 211)
    expected = _resize_with_torch(mask, size).numpy()
    for rounding in (Rounding(*fused) for fused in product((False, True), repeat=2)):
        if np.array_equal(_resize(mask, *size, small, *rounding), expected):
            return rounding
    return None


@intrinsic
def _fused_multiply_add(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return numba.float32(a, b, c), lambda _context, builder, _signature, values: builder.fma(*values)


@compiled
def _multiply_add(a: np.float32, b: np.float32, c: np.float32, fused: bool) -> np.float32:
    return _fused_multiply_add(a, b, c) if fused else a * b + c


@compiled
def _axis(nodes: int, size: int, start: int, stop: int, fused_source: bool) -> Axis:
    """For pixels start..stop of an axis of `size` pixels: the node before each, its weight, and that of the next one.

    The nodes are the padded mask's pixels along that axis.
    """
    node = np.empty(stop - start, np.int64)
    near, far = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
    scale = np.float32(nodes) / np.float32(size)
    for pixel in range(start, stop):
        center = np.float32(pixel) + np.float32(0.5)
        source = max(_multiply_add(scale, center, np.float32(-0.5), fused_source), np.float32(0))
        before = min(int(source), nodes - 1)
        node[pixel - start] = before
        far[pixel - start] = source - np.float32(before)
        near[pixel - start] = np.float32(1) - far[pixel - start]
    return node, near, far


@compiled
def _at(axis: Axis, pixel: int, nodes: int) -> tuple[int, int, np.float32, np.float32]:
    """The nodes before and after a pixel, and their weights."""
    node, near, far = axis
    return node[pixel], min(node[pixel] + 1, nodes - 1), near[pixel], far[pixel]


@compiled
def _blend(a: np.float32, near: np.float32, b: np.float32, far: np.float32, fused: bool) -> np.float32:
    """One dimension of torch's general kernel."""
    return _multiply_add(near, a, far * b, fused)


@compiled
def _blend_four(mask: np.ndarray, rows: Axis, y: int, columns: Axis, x: int, fused: bool) -> np.float32:
    """Both dimensions at once: torch's kernel for small outputs."""
    above, below, near_y, far_y = _at(rows, y, mask.shape[0])
    left, right, near_x, far_x = _at(columns, x, mask.shape[1])
    value = _multiply_add(near_y * near_x, mask[above, left], near_y * far_x * mask[above, right], fused)
    value = _multiply_add(far_y * near_x, mask[below, left], value, fused)
    return _multiply_add(far_y * far_x, mask[below, right], value, fused)


@compiled
def _profile(mask: np.ndarray, columns: Axis, x: int, fused: bool) -> np.ndarray:
    """The mask at a column of pixels and each of its own rows; the last row twice, as there is none after it."""
    nodes = len(mask)
    left, right, near, far = _at(columns, x, nodes)
    profile = np.empty(nodes + 1, np.float32)
    for node in range(nodes):
        profile[node] = _blend(mask[node, left], near, mask[node, right], far, fused)
    profile[nodes] = profile[nodes - 1]
    return profile


@compiled
def _resize(
    mask: np.ndarray, height: int, width: int, small: bool, fused_source: bool, fused_blend: bool
) -> np.ndarray:
    """float32 (height, width): every value, to compare with torch's."""
    rows = _axis(len(mask), height, 0, height, fused_source)
    columns = _axis(len(mask), width, 0, width, fused_source)
    resized = np.empty((height, width), np.float32)
    for x in range(width):
        profile = _profile(mask, columns, x, fused_blend)
        for y in range(height):
            if small:
                resized[y, x] = _blend_four(mask, rows, y, columns, x, fused_blend)
            else:
                node, _, near, far = _at(rows, y, len(mask))
                resized[y, x] = _blend(profile[node], near, profile[node + 1], far, fused_blend)
    return resized


@compiled
def _turn(edges: np.ndarray, found: int, row: int, inside: bool | np.bool_) -> int:
    """From `row` on, a column is inside (or outside). An odd number of edges found means that it has been inside."""
    if (found % 2 == 1) == inside:
        return found
    if found > 0 and edges[found - 1] == row:
        return found - 1
    edges[found] = row
    return found + 1


@compiled
def _column_of_small(
    edges: np.ndarray, mask: np.ndarray, rows: Axis, columns: Axis, x: int, threshold: np.float32, fused: bool
) -> int:
    """The number of rows, written to `edges`, at which a column of pixels turns; every pixel is looked at."""
    found = 0
    for y in range(len(rows[0])):
        found = _turn(edges, found, y, _blend_four(mask, rows, y, columns, x, fused) > threshold)
    return _turn(edges, found, len(rows[0]), False)


@compiled
def _column_of_large(
    edges: np.ndarray,
    profile: np.ndarray,
    rows: Axis,
    cells: np.ndarray,
    pitch: float,
    first: float,
    threshold: np.float32,
    fused: bool,
) -> int:
    """The same, looking at what lies between two nodes as a whole.

    `cells[node]` is the first row at or after a node, `pitch` the distance of nodes in rows, `first` the row of node 0.
    """
    found = 0
    for node in range(len(cells) - 1):
        start, stop = cells[node], cells[node + 1]
        if start == stop:
            continue
        a, b = profile[node], profile[node + 1]
        if min(a, b) > threshold + ROUNDING_ERROR:
            found = _turn(edges, found, start, True)
        elif max(a, b) < threshold - ROUNDING_ERROR:
            found = _turn(edges, found, start, False)
        elif abs(b - a) > pitch * ROUNDING_ERROR:
            guess = first + pitch * (node + (threshold - a) / (b - a))
            row = _crossing(a, b, rows, start, stop, guess, threshold, fused)
            found = _turn(edges, found, start, a > b)
            found = _turn(edges, found, row, b > a)
        else:  # so flat that rounding decides, pixel by pixel
            for y in range(start, stop):
                found = _turn(edges, found, y, _blend(a, rows[1][y], b, rows[2][y], fused) > threshold)
    return _turn(edges, found, len(rows[0]), False)


@compiled
def _crossing(
    a: np.float32, b: np.float32, rows: Axis, start: int, stop: int, guess: float, threshold: np.float32, fused: bool
) -> int:
    """The first of the rows start..stop that is on the side of b, or `stop`, where values go from a to b."""
    _, near, far = rows
    row = int(min(max(math.ceil(guess), start), stop))
    while row > start and (_blend(a, near[row - 1], b, far[row - 1], fused) > threshold) == (b > a):
        row -= 1
    while row < stop and (_blend(a, near[row], b, far[row], fused) > threshold) != (b > a):
        row += 1
    return row


@compiled
def _turns(
    mask: np.ndarray,
    box: Box,
    height: int,
    width: int,
    threshold: np.float32,
    small: bool,
    rounding: Rounding,
) -> np.ndarray:
    """The places in an image, column by column, at which a padded mask turns; none where its box is not visible."""
    nodes = len(mask)
    left, right = max(box.x0, 0), min(box.x1 + 1, width)
    top, bottom = max(box.y0, 0), min(box.y1 + 1, height)
    turns, count = np.empty(1024, np.int64), 0
    if left >= right or top >= bottom:
        return turns[:0]
    columns = _axis(nodes, box.x1 - box.x0 + 1, left - box.x0, right - box.x0, rounding.source)
    rows = _axis(nodes, box.y1 - box.y0 + 1, top - box.y0, bottom - box.y0, rounding.source)
    cells = np.searchsorted(rows[0], np.arange(nodes + 1))
    pitch = (box.y1 - box.y0 + 1) / nodes
    edges = np.empty(bottom - top + 2, np.int64)
    for x in range(right - left):
        if small:
            found = _column_of_small(edges, mask, rows, columns, x, threshold, rounding.blend)
        else:
            profile = _profile(mask, columns, x, rounding.blend)
            found = _column_of_large(
                edges, profile, rows, cells, pitch, 0.5 * pitch - 0.5 + box.y0 - top, threshold, rounding.blend
            )
        if count + found > len(turns):
            turns = np.concatenate((turns, np.empty(len(turns) + found, np.int64)))
        for edge in edges[:found] + ((left + x) * height + top):
            count = _turn(turns, count, edge, count % 2 == 0)
    return turns[:count]


@compiled
def _lengths_between(turns: np.ndarray, pixels: int) -> np.ndarray:
    """The lengths of the runs between the pixels at which a mask turns; a last run of none is left out."""
    lengths = np.empty(len(turns) + 1, np.uint32)
    position = 0
    for run, turn in enumerate(turns):
        lengths[run] = turn - position
        position = turn
    lengths[len(turns)] = pixels - position
    return lengths[: len(turns)] if len(turns) and position == pixels else lengths


@compiled
def _paste_all(
    masks: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    threshold: np.float32,
    of_small: Rounding,
    of_large: Rounding,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All padded masks of an image: their strings, where each ends, their areas and their corners; see `masks_in`."""
    text, at = np.empty(64 * len(masks), np.uint8), 0
    ends, areas, corners = (
        np.zeros(len(masks), np.int64),
        np.zeros(len(masks), np.int64),
        np.zeros(boxes.shape, np.int64),
    )
    for k in range(len(masks)):
        box = Box(boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3])
        small = box.x1 - box.x0 + box.y1 - box.y0 + 2 <= 128
        turns = _turns(masks[k], box, height, width, threshold, small, of_small if small else of_large)
        for begin in range(0, len(turns), 2):
            extend(corners[k], areas[k] == 0, turns[begin], turns[begin + 1] - 1, height)
            areas[k] += turns[begin + 1] - turns[begin]
        text = with_room(text, at, len(turns) + 1)
        at = write_counts(_lengths_between(turns, height * width), text, at)
        ends[k] = at
    return text, ends, areas, corners
