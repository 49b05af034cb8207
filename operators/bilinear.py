"""A network's small mask at the image's size, value by value, each rounded just as torch rounds it.

Torch's code for processors has two kernels, one for outputs of height + width <= 128, and its compiler fuses some
multiplications with additions, depending on the processor and on torch's version. So each kernel is compared with torch
once per process; where no known way of rounding agrees, torch itself has to resize the mask.

Masks here are transposed: the values of a column are neighbours.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba.extending import intrinsic
from torch.nn.functional import interpolate

from prelabel.schemas.compiled import compiled

Axis = tuple[np.ndarray, np.ndarray, np.ndarray]
"""For each of some pixels along an axis: the node before it (int64), its weight, and that of the next one (float32)."""


class Rounding(NamedTuple):
    """Where a kernel of torch rounds once, in a fused multiply-add, instead of twice."""

    source: bool
    blend: bool


class Column(NamedTuple):
    """A column of pixels: the node before it, its weight, and that of the next one."""

    node: int
    near: np.float32
    far: np.float32


def resize_with_torch(mask: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A mask, not transposed, at that height and width."""
    return interpolate(torch.from_numpy(mask)[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@cache
def torch_rounding(small: bool) -> Rounding | None:
    """How torch's kernel for small (or for other) outputs rounds in this process; None for a way not known here."""
    mask = np.random.default_rng(0).random((30, 30), np.float32)
    size = (59, 67) if small else (307, 211)
    expected = resize_with_torch(mask, size).numpy()
    for rounding in (Rounding(*fused) for fused in product((False, True), repeat=2)):
        if np.array_equal(resize(mask.T.copy(), *size, small, *rounding), expected):
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
def axis(nodes: int, size: int, start: int, stop: int, fused_source: bool) -> Axis:
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
def blend(a: np.float32, near: np.float32, b: np.float32, far: np.float32, fused: bool) -> np.float32:
    """One dimension of torch's general kernel."""
    return _multiply_add(near, a, far * b, fused)


@compiled
def blend_four(
    mask: np.ndarray, node: int | np.int64, near: np.float32, far: np.float32, column: Column, fused: bool
) -> np.float32:
    """Both dimensions at once: torch's kernel for small outputs. The node is the one before the pixel's row."""
    after, right = min(node + 1, len(mask) - 1), min(column.node + 1, len(mask) - 1)
    value = _multiply_add(near * column.near, mask[column.node, node], near * column.far * mask[right, node], fused)
    value = _multiply_add(far * column.near, mask[column.node, after], value, fused)
    return _multiply_add(far * column.far, mask[right, after], value, fused)


@compiled
def profiles(mask: np.ndarray, columns: Axis, fused: bool, multiple: int) -> np.ndarray:
    """float32: the mask at columns of pixels and each of its own rows, the last one twice, as there is none after.

    Then zeros, one more than a multiple of so many values in all.
    """
    nodes, nears, fars = columns
    count = len(mask)
    values = np.zeros((len(nodes), -(-count // multiple) * multiple + 1), np.float32)
    for x in range(len(nodes)):
        left, right, near, far = nodes[x], min(nodes[x] + 1, count - 1), nears[x], fars[x]
        for node in range(count):
            values[x, node] = blend(mask[left, node], near, mask[right, node], far, fused)
        values[x, count] = values[x, count - 1]
    return values


@compiled
def resize(mask: np.ndarray, height: int, width: int, small: bool, fused_source: bool, fused_blend: bool) -> np.ndarray:
    """float32 (height, width): every value, to compare with torch's."""
    nodes, nears, fars = axis(len(mask), height, 0, height, fused_source)
    columns = axis(len(mask), width, 0, width, fused_source)
    resized, values = np.empty((height, width), np.float32), profiles(mask, columns, fused_blend, 1)
    for x in range(width):
        column = Column(columns[0][x], columns[1][x], columns[2][x])
        for y in range(height):
            node = nodes[y]
            if small:
                resized[y, x] = blend_four(mask, node, nears[y], fars[y], column, fused_blend)
            else:
                resized[y, x] = blend(values[x, node], nears[y], values[x, node + 1], fars[y], fused_blend)
    return resized
