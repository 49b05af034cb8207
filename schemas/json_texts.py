"""Rows of columns as JSON objects, without a Python object for any value: to the byte what orjson writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prelabel.schemas.compiled import compiled

INTEGER, FLOAT, STRING = 0, 1, 2
_MOST = 1e10
_LEAST = {pa.float32(): 0.0, pa.float64(): 1e-5}
"""Between these, Arrow and orjson write the same shortest digits, but for the `.0` of whole numbers."""
_DOT, _ZERO, _EXPONENT, _COMMA, _BACKSLASH = b".0e,\\"
_FIRST, _LAST = b"#~"
"""From one to the other only the backslash is escaped."""


class NotPlainError(ValueError):
    """A value that may have to be written differently: whoever asked leaves it to orjson."""


class Texts(NamedTuple):
    """A text for each row, and what it is of: INTEGER, FLOAT or STRING, which differ in what is added to the text."""

    column: pa.Array
    kind: int


Piece = str | Texts
"""Of the rows: the same text for all, or one for each."""


def json_numbers(*columns: pa.Array) -> list[Texts]:
    """Of some columns of one type, integers or floats.

    Raises:
        NotPlainError: a value is null, not finite, or so small or large that it may need an exponent.
    """
    together = pa.concat_arrays(columns)  # a call costs as much as a hundred rows
    if together.null_count:
        raise NotPlainError("a null")
    floating = pa.types.is_floating(together.type)
    if floating:
        sizes = np.abs(together.to_numpy())
        if not ((sizes >= _LEAST[together.type]) & (sizes < _MOST) | (sizes == 0)).all():
            raise NotPlainError("a number with an exponent")
    texts, length = together.cast(pa.string()), len(columns[0])
    kind = FLOAT if floating else INTEGER
    return [Texts(texts.slice(place * length, length), kind) for place in range(len(columns))]


def json_rows(pieces: Sequence[Piece]) -> memoryview:
    """The pieces of each row, one behind the other; a comma between each two rows.

    Raises:
        NotPlainError: a string is null, or has a character other than those from # to ~.
    """
    texts = [piece for piece in pieces if isinstance(piece, Texts)]
    if any(text.column.null_count for text in texts):
        raise NotPlainError("a null")
    together = pa.concat_arrays([text.column.cast(pa.large_string()) for text in texts])  # perhaps beyond 2 GiB
    if not len(together):
        return memoryview(b"")
    _, offsets, data = together.buffers()
    ends = np.frombuffer(offsets, np.int64)[together.offset :][: len(together) + 1]
    kinds, fixed = np.array([text.kind for text in texts]), _between(pieces)
    bounds = np.cumsum([0, *map(len, fixed)])
    most = (bounds[-1] + len(",")) * len(texts[0].column) + len(".0") * len(together) + 2 * (ends[-1] - ends[0])
    out = np.empty(most, np.uint8)
    joined = np.frombuffer(b"".join(fixed), np.uint8)
    end = _write_rows(np.frombuffer(data, np.uint8), ends, kinds, joined, bounds, out)
    if end < 0:
        raise NotPlainError("a character that may have to be escaped")
    return out[:end].data


def _between(pieces: Sequence[Piece]) -> list[bytes]:
    """What stands before each text of a row, and behind the last one."""
    fixed = [""]
    for piece in pieces:
        if isinstance(piece, Texts):
            quote = '"' * (piece.kind == STRING)
            fixed[-1] += quote
            fixed.append(quote)
        else:
            fixed[-1] += piece
    return [one.encode() for one in fixed]


@compiled
def _write_rows(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, fixed: np.ndarray, bounds: np.ndarray, out: np.ndarray
) -> int:
    """Writes the rows of texts that stand column by column; returns the end, or -1 where a string is not plain.

    All in one loop: a compiled function counts references to the arrays that it is given, which takes longer than to
    copy a text.
    """
    at, columns = 0, len(kinds)
    rows = (len(offsets) - 1) // columns
    for row in range(rows):
        for column in range(columns):
            for place in range(bounds[column], bounds[column + 1]):
                out[at] = fixed[place]
                at += 1
            kind, whole = kinds[column], True
            for place in range(offsets[column * rows + row], offsets[column * rows + row + 1]):
                character = data[place]
                if kind == STRING:
                    if character < _FIRST or character > _LAST:
                        return -1
                    if character == _BACKSLASH:
                        out[at] = character
                        at += 1
                whole &= character != _DOT and character != _EXPONENT
                out[at] = character
                at += 1
            if kind == FLOAT and whole:
                out[at], out[at + 1] = _DOT, _ZERO
                at += 2
        for place in range(bounds[columns], bounds[columns + 1]):
            out[at] = fixed[place]
            at += 1
        out[at] = _COMMA
        at += 1
    return at - 1
