"""Rows of columns as JSON objects, without a Python object for any value: to the byte what orjson writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from prelabel.schemas.compiled import compiled, inlined

INTEGER, FLOAT, FLOAT_TEXT, STRING = range(4)
"""How a column's values become text: numbers written here, numbers that Arrow has written, strings."""
_WHOLE = 2.0**53
"""Below, float64 holds every integer."""
_LEAST_FLOAT32, _MOST_FLOAT32 = 1e-4, 2.0**24
"""Between these `_shortest` is exact."""
_LEAST = {pa.float32(): 0.0, pa.float64(): 1e-5}
_MOST = 1e10
"""Between these Arrow and orjson write the same shortest digits, but for the `.0` of whole numbers."""
_MOST_LETTERS = 24
"""Of a number, with a comma."""
_DOT, _ZERO, _EXPONENT, _COMMA, _BACKSLASH, _MINUS = b".0e,\\-"
_FIRST, _LAST = b"#~"
"""From one to the other only the backslash is escaped."""


class NotPlainError(ValueError):
    """A value that may have to be written differently: whoever asked leaves it to orjson."""


Piece: TypeAlias = "str | pa.Array"
"""Of the rows: the same text for all, or a value for each: integers, floats or strings."""


def json_rows(pieces: Sequence[Piece]) -> memoryview:
    """The pieces of each row, one behind the other; a comma between each two rows.

    Raises:
        NotPlainError: a value is null; a number not finite, or so small or large that it may need an exponent; or a
            string has a character other than those from # to ~.
    """
    columns = [_column(piece) for piece in pieces if not isinstance(piece, str)]
    numbers = np.array([values for _, values in columns if isinstance(values, np.ndarray)], np.float64, ndmin=2)
    texts = [values for _, values in columns if not isinstance(values, np.ndarray)]
    together = pa.concat_arrays([pa.array([], pa.large_string()), *texts])
    _, offsets, data = together.buffers()
    ends = np.frombuffer(offsets, np.int64)[: len(together) + 1]
    kinds, fixed = np.array([kind for kind, _ in columns]), _between(pieces)
    bounds = np.cumsum([0, *map(len, fixed)])
    rows = len(columns[0][1])
    most = (bounds[-1] + len(",")) * rows + _MOST_LETTERS * numbers.size + len(".0") * len(together) + 2 * ends[-1]
    out = np.empty(most, np.uint8)
    joined = np.frombuffer(b"".join(fixed), np.uint8)
    end = _write_rows(rows, numbers, np.frombuffer(data or b"", np.uint8), ends, kinds, joined, bounds, out)
    if end < 0:
        raise NotPlainError("a character that may have to be escaped")
    return out[: max(end - len(","), 0)].data


def _column(column: pa.Array) -> tuple[int, np.ndarray | pa.Array]:
    """A kind, and the numbers or texts."""
    if column.null_count:
        raise NotPlainError("a null")
    if not _is_number(column):
        return STRING, column.cast(pa.large_string())  # perhaps beyond 2 GiB
    values = column.to_numpy()
    if pa.types.is_integer(column.type):
        if not ((values > -_WHOLE) & (values < _WHOLE)).all():
            raise NotPlainError("an integer that is no float64")
        return INTEGER, values
    sizes = np.abs(values)
    if column.type == pa.float32():
        ours = (sizes >= _LEAST_FLOAT32) & (sizes < _MOST_FLOAT32) | (sizes == 0)
    else:
        ours = (sizes < _WHOLE) & (values == np.rint(values))
    if ours.all():
        return FLOAT, values
    if not ((sizes >= _LEAST[column.type]) & (sizes < _MOST) | (sizes == 0)).all():
        raise NotPlainError("a number with an exponent")
    return FLOAT_TEXT, column.cast(pa.large_string())


def _is_number(column: pa.Array) -> bool:
    return pa.types.is_floating(column.type) or pa.types.is_integer(column.type)


def _between(pieces: Sequence[Piece]) -> list[bytes]:
    """What stands before the value of each column, and behind the last one."""
    fixed = [""]
    for piece in pieces:
        if isinstance(piece, str):
            fixed[-1] += piece
        else:
            quote = "" if _is_number(piece) else '"'
            fixed[-1] += quote
            fixed.append(quote)
    return [one.encode() for one in fixed]


@compiled
def _write_rows(
    rows: int,
    numbers: np.ndarray,
    data: np.ndarray,
    offsets: np.ndarray,
    kinds: np.ndarray,
    fixed: np.ndarray,
    bounds: np.ndarray,
    out: np.ndarray,
) -> int:
    """Writes the rows of numbers and texts that stand column by column, a comma behind each; returns the end, or -1."""
    at, columns = 0, len(kinds)
    for row in range(rows):
        number, text = 0, row
        for column in range(columns):
            for place in range(bounds[column], bounds[column + 1]):
                out[at] = fixed[place]
                at += 1
            kind = kinds[column]
            if kind <= FLOAT:
                at = _write_number(out, at, numbers[number, row], kind == FLOAT)
                number += 1
            else:
                at = _write_text(out, at, data, offsets[text], offsets[text + 1], kind)
                if at < 0:
                    return -1
                text += rows
        for place in range(bounds[columns], bounds[columns + 1]):
            out[at] = fixed[place]
            at += 1
        out[at] = _COMMA
        at += 1
    return at


@inlined
def _write_text(out: np.ndarray, at: int, data: np.ndarray, place: int, end: int, kind: int) -> int:
    """Returns the place behind it, or -1 where it is not plain."""
    whole = kind == FLOAT_TEXT
    while place < end:
        character = data[place]
        if kind == STRING:
            if character < _FIRST or character > _LAST:
                return -1
            if character == _BACKSLASH:
                out[at] = character
                at += 1
        elif character in (_DOT, _EXPONENT):
            whole = False
        out[at] = character
        at += 1
        place += 1
    if whole:
        out[at], out[at + 1] = _DOT, _ZERO
        at += 2
    return at


@inlined
def _write_number(out: np.ndarray, at: int, number: float, floating: bool) -> int:
    """Returns the place behind it. Where it is no whole number, it is a float32."""
    if math.copysign(1.0, number) < 0:
        out[at] = _MINUS
        at += 1
    size = abs(number)
    digits: Any = np.int64(size)
    decimals = 0
    if digits != size:
        digits, decimals = _shortest(size)
    elif floating:
        digits, decimals = digits * 10, 1
    begin, least, rest = at, decimals, digits
    while rest > 0 or least >= 0:
        rest //= 10
        at += 1
        least -= 1
    at += decimals > 0
    for place in range(at - 1, begin - 1, -1):
        if decimals > 0 and place == at - 1 - decimals:
            out[place] = _DOT
        else:
            out[place] = _ZERO + digits % 10
            digits //= 10
    return at


@compiled
def _shortest(size: float) -> tuple[int, int]:
    """The fewest digits that read back as the same float32, the nearest of those; how many are behind the point.

    Six digits are kept by any float32, so whatever has fewer is found among those; nine tell all apart. The products
    are exact: 24 bits times 5 ** 12 are 52; and so is, after its rounding to float64, the comparison: for a quotient
    of so few digits can't be as near to the middle of two float32 as float64 would round away.
    """
    scale, decimals = 1.0, 0
    while size * scale < 1e5:
        scale *= 10
        decimals += 1
    digits = np.rint(size * scale)
    while np.float32(digits / scale) != size:
        scale *= 10
        decimals += 1
        digits = np.rint(size * scale)
    whole: Any = np.int64(digits)
    while whole % 10 == 0:
        whole //= 10
        decimals -= 1
    return whole, decimals
