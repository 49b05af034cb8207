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


def json_number(column: pa.Array) -> pa.Array:
    """Of integers and floats.

    Raises:
        NotPlainError: a value is null, not finite, or so small or large that it may need an exponent.
    """
    if column.null_count:
        raise NotPlainError("a null")
    text = column.cast(pa.string())
    if not pa.types.is_floating(column.type):
        return text
    values = column.to_numpy()
    sizes = np.abs(values)
    if not ((sizes >= _LEAST[column.type]) & (sizes < _MOST) | (values == 0)).all():
        raise NotPlainError("a number with an exponent")
    whole = np.trunc(values) == values
    return pc.binary_join_element_wise(text, pc.if_else(pa.array(whole), ".0", ""), "") if whole.any() else text


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
