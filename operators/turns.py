"""Where a mask turns from outside to inside and back, at the image's size: found without a look at most pixels.

Bilinear interpolation is separable, and between two rows of the small mask it is monotone: a column of the image needs
one crossing per pair of such rows, not one value per pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from prelabel.operators.bilinear import Axis, Column, Rounding, axis, blend, blend_four, profiles
from prelabel.schemas.compiled import compiled, inlined

ROUNDING_ERROR = np.float32(1e-6)
"""More than all roundings of an interpolated probability add up to; and those of a pixel's place, in nodes, for each
node before it."""
CELLS = 32
"""Nodes whose bits make a word."""


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


class Way(NamedTuple):
    """How a mask is resized.

    Attributes:
        threshold: a pixel is inside where its value is greater
        small: by torch's kernel for small outputs
        rounding: of that kernel
    """

    threshold: np.float32
    small: bool
    rounding: Rounding


class Grid(NamedTuple):
    """Where a box is.

    Attributes:
        pitch: the distance of a mask's rows, in rows of the image
        origin: where the first of them is, in visible rows; it may lie between two, and be negative
        first: the place of the visible part's first pixel in the image, column by column
        height: of the image
        nodes: rows of the mask
    """

    pitch: float
    origin: float
    first: int
    height: int
    nodes: int


class Cell(NamedTuple):
    """What lies between two rows of a mask, in a column of pixels.

    Attributes:
        node: the upper one
        a, b: the values there, and at the next one
        start, stop: its visible rows
    """

    node: int | np.int64
    a: np.float32
    b: np.float32
    start: int
    stop: int


@compiled
def turns(mask: np.ndarray, box: Box, height: int, width: int, way: Way) -> np.ndarray:
    """Where in an image a padded mask turns.

    Args:
        mask: float32 (M, M), transposed
        box: that it fills; where it is not visible the mask does not turn
        height, width: of the image
        way: how it is resized

    Returns:
        int64, ascending: the places of pixels, column by column, from which on the mask is inside, outside, inside ...
    """
    count, fused = len(mask), way.rounding.source
    left, right = max(box.x0, 0), min(box.x1 + 1, width)
    top, bottom = max(box.y0, 0), min(box.y1 + 1, height)
    if left >= right or top >= bottom:
        return np.empty(0, np.int64)
    columns = axis(count, box.x1 - box.x0 + 1, left - box.x0, right - box.x0, fused)
    rows = axis(count, box.y1 - box.y0 + 1, top - box.y0, bottom - box.y0, fused)
    pitch = (box.y1 - box.y0 + 1) / count
    grid = Grid(pitch, 0.5 * pitch - 0.5 + box.y0 - top, left * height + top, height, count)
    return _turns(mask, profiles(mask, columns, way.rounding.blend, CELLS), columns, rows, grid, way)


@compiled
def _undecided(values: np.ndarray, first: int, last: int, high: np.float32, low: np.float32) -> np.ndarray:
    """uint32 (columns, words): bit k of word w is set where node 32 w + k and the next don't lie on one side for sure.

    Args:
        values: of each column at all nodes
        first, last: nodes that are asked for; the bits of others are not set
        high, low: what is above, and below, is so for sure
    """
    undecided = np.empty((len(values), last // CELLS + 1), np.uint32)
    for x in range(len(values)):
        for word in range(undecided.shape[1]):
            begin, bits = word * CELLS, np.uint32(0)
            some = values[x, begin : begin + CELLS + 1]
            for cell in range(CELLS):
                a, b = some[cell], some[cell + 1]
                bits |= np.uint32((min(a, b) <= high) & (max(a, b) >= low)) << np.uint32(cell)
            below = (1 << min(max(first - begin, 0), CELLS)) - 1
            undecided[x, word] = bits & np.uint32(((1 << min(last + 1 - begin, CELLS)) - 1) & ~below)
    return undecided


@intrinsic
def _lowest_bit(_context: Any, word: Any) -> Any:
    """The place of the lowest bit that is set in a uint32 other than 0."""
    return numba.uint32(word), lambda _context, builder, _signature, values: builder.cttz(values[0], cgutils.true_bit)


@inlined
def _turn(edges: np.ndarray, found: int, row: int, inside: bool | np.bool_) -> int:
    """From `row` on, a column is inside (or outside). An odd number of edges found means that it has been inside."""
    if (found % 2 == 1) == inside:
        return found
    if found > 0 and edges[found - 1] == row:
        return found - 1
    edges[found] = row
    return found + 1


@inlined
def _first_past(cell: Cell, rows: Axis, grid: Grid, way: Way) -> int:
    """The first row on the side of b; one past the cell if there is none. Values are looked at in case of doubt."""
    (_, nears, fars), (node, a, b, start, stop) = rows, cell
    threshold, fused = way.threshold, way.rounding.blend
    slope = np.float32(1) / (b - a)
    place = grid.origin + grid.pitch * (node + (threshold - a) * slope)
    before = int(np.floor(place))
    row = min(max(before + 1, start), stop)
    doubt = grid.pitch * ROUNDING_ERROR * (abs(slope) + grid.nodes)
    if not doubt < place - before < 1 - doubt:
        while row > start and (blend(a, nears[row - 1], b, fars[row - 1], fused) > threshold) == (b > a):
            row -= 1
        while row < stop and (blend(a, nears[row], b, fars[row], fused) > threshold) != (b > a):
            row += 1
    return row


@compiled
def _turns(mask: np.ndarray, values: np.ndarray, columns: Axis, rows: Axis, grid: Grid, way: Way) -> np.ndarray:
    """The same, of its visible columns and rows, from its values at columns of pixels and its own rows, the nodes.

    Nodes on one side of the threshold are looked at together, and pixels one by one only where rounding may decide.
    """
    (nodes_x, nears_x, fars_x), (nodes, nears, fars) = columns, rows
    threshold, fused, last = way.threshold, way.rounding.blend, nodes[-1]
    cells = np.searchsorted(nodes, np.arange(grid.nodes + 1))  # the first row at or after each node
    high, low = threshold + ROUNDING_ERROR, threshold - ROUNDING_ERROR
    undecided = _undecided(values, nodes[0], last, high, low)
    turns, found = np.empty(1024, np.int64), 0
    for x in range(len(values)):
        if found + len(nodes) + 2 > len(turns):
            turns = np.concatenate((turns, np.empty(len(turns) + len(nodes) + 2, np.int64)))
        top, after, column = grid.first + x * grid.height, nodes[0], Column(nodes_x[x], nears_x[x], fars_x[x])
        for word in range(undecided.shape[1]):
            bits = undecided[x, word]
            while bits:
                node = word * CELLS + np.int64(_lowest_bit(bits))
                bits &= bits - np.uint32(1)
                if node > after:
                    found = _turn(turns, found, top + cells[after], values[x, after] > high)
                cell, after = Cell(node, values[x, node], values[x, node + 1], cells[node], cells[node + 1]), node + 1
                if not way.small and abs(cell.b - cell.a) > grid.pitch * ROUNDING_ERROR:
                    found = _turn(turns, found, top + cell.start, cell.a > cell.b)
                    found = _turn(turns, found, top + _first_past(cell, rows, grid, way), cell.b > cell.a)
                    continue
                for y in range(cell.start, cell.stop):
                    if way.small:
                        value = blend_four(mask, node, nears[y], fars[y], column, fused)
                    else:
                        value = blend(cell.a, nears[y], cell.b, fars[y], fused)
                    found = _turn(turns, found, top + y, value > threshold)
        if after <= last:
            found = _turn(turns, found, top + cells[after], values[x, after] > high)
        found = _turn(turns, found, top + len(nodes), False)
    return turns[:found]
