"""Columns as JSON, a text for each value, without a Python object for any: to the byte what orjson writes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Pieces = tuple["str | pa.Array", ...]
"""Of the texts of some rows: the same for all, or one for each."""
_MOST = 1e10
_LEAST = {pa.float32(): 0.0, pa.float64(): 1e-5}
"""Between these, Arrow and orjson write the same shortest digits, but for the `.0` of whole numbers."""


class NotPlainError(ValueError):
    """A value that Arrow may write differently: whoever asked leaves it to orjson."""


def json_numbers(*columns: pa.Array) -> list[pa.Array]:
    """Of some columns of one type, integers or floats.

    Raises:
        NotPlainError: a value is null, not finite, or so small or large that it may need an exponent.
    """
    together = pa.concat_arrays(columns)  # a call costs as much as a hundred rows
    if together.null_count:
        raise NotPlainError("a null")
    texts = together.cast(pa.string())
    if pa.types.is_floating(together.type):
        values = together.to_numpy()
        sizes = np.abs(values)
        if not ((sizes >= _LEAST[together.type]) & (sizes < _MOST) | (values == 0)).all():
            raise NotPlainError("a number with an exponent")
        texts = json_joined(texts, pc.if_else(pa.array(np.trunc(values) == values), ".0", ""))
    length = len(together) // len(columns)
    return [texts.slice(start * length, length) for start in range(len(columns))]


def json_string(column: pa.Array) -> pa.Array:
    """Of strings, a null for each null.

    Raises:
        NotPlainError: a character is not one of those from # to ~, of which only the backslash is escaped.
    """
    _, offsets, data = column.buffers()
    if data is None:
        return column
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    characters = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    if len(characters) and not (characters.min() >= ord("#") and characters.max() <= ord("~")):
        raise NotPlainError("a character that may have to be escaped")
    return json_joined('"', pc.replace_substring(column, "\\", "\\\\"), '"')


def json_joined(*pieces: str | pa.Array) -> pa.Array:
    """The pieces of each row, one behind the other; null where one is."""
    return pc.binary_join_element_wise(*pieces, "")
