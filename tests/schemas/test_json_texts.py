"""JSON made column by column is what orjson makes of each value, or is refused."""

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelabel.schemas.json_texts import NotPlainError, json_joined, json_numbers, json_string

ANYTHING = st.one_of(st.floats(width=32), st.floats(-1e4, 1e4, width=32), st.integers(-(2**24), 2**24).map(float))


def dumped(values):
    return [orjson.dumps(one, option=orjson.OPT_SERIALIZE_NUMPY).decode() for one in values]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(values=st.lists(ANYTHING))
def test_floats(kind, values):
    numbers = np.array(values, kind)
    for one in numbers:
        try:
            (text,) = json_numbers(pa.array([one]))
        except NotPlainError:
            assert not 1e-5 <= abs(one) < 1e10
        else:
            assert text.to_pylist() == dumped([one])
    plain = numbers[(np.abs(numbers) >= 1e-5) & (np.abs(numbers) < 1e10) | (numbers == 0)]
    assert [one.to_pylist() for one in json_numbers(pa.array(plain), pa.array(plain))] == 2 * [dumped(plain)]


def test_floats_of_all_exponents():
    """Some 200,000 of them up to 1e10, with each sign."""
    numbers = np.arange(0, np.float32(1e10).view(np.uint32), 6_211, np.uint32).view(np.float32)
    for some in (numbers, -numbers):
        texts = ",".join(json_numbers(pa.array(some))[0].to_pylist())
        assert texts == orjson.dumps(some, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode()


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers(values):
    assert json_numbers(pa.array(values, pa.int64()))[0].to_pylist() == dumped(values)


@given(st.lists(st.one_of(st.text(), st.text("0123O\\`no"), st.none())), st.integers(0, 3))
def test_strings(values, start):
    column = pa.array(values, pa.string()).slice(start)
    try:
        texts = json_string(column).to_pylist()
    except NotPlainError:
        assert any(not "#" <= character <= "~" for one in values[start:] if one for character in one)
    else:
        assert texts == [None if one is None else orjson.dumps(one).decode() for one in values[start:]]


def test_pieces():
    assert json_joined("[", pa.array(["1", None]), "]").to_pylist() == ["[1]", None]
