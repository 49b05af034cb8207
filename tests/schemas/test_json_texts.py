"""JSON made column by column is what orjson makes of each value, or is refused."""

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prelabel.schemas.json_texts import STRING, NotPlainError, Texts, json_numbers, json_rows

ANYTHING = st.one_of(st.floats(width=32), st.floats(-1e4, 1e4, width=32), st.integers(-(2**24), 2**24).map(float))


def dumped(values):
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()[1:-1]


def written(*pieces):
    return bytes(json_rows(pieces)).decode()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@settings(deadline=None)  # the first one compiles
@given(values=st.lists(ANYTHING))
def test_floats(kind, values):
    numbers = np.array(values, kind)
    for one in numbers:
        try:
            texts = json_numbers(pa.array([one]))
        except NotPlainError:
            assert not 1e-5 <= abs(one) < 1e10
        else:
            assert written(*texts) == dumped(np.array([one]))
    plain = numbers[(np.abs(numbers) >= 1e-5) & (np.abs(numbers) < 1e10) | (numbers == 0)]
    first, second = json_numbers(pa.array(plain), pa.array(plain))
    assert written("[", first, ",", second, "]") == dumped([*map(list, zip(plain, plain, strict=True))])


def test_floats_of_all_exponents():
    """Some 200,000 of them up to 1e10, with each sign."""
    numbers = np.arange(0, np.float32(1e10).view(np.uint32), 6_211, np.uint32).view(np.float32)
    for some in (numbers, -numbers):
        assert written(*json_numbers(pa.array(some))) == dumped(some)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers(values):
    assert written(*json_numbers(pa.array(values, pa.int64()))) == dumped(values)


@given(st.lists(st.one_of(st.text(), st.text("0123O\\`no"), st.none())), st.integers(0, 3))
def test_strings(values, start):
    column = pa.array(values, pa.string()).slice(start)
    try:
        texts = written("[", Texts(column, STRING), "]")
    except NotPlainError:
        assert any(one is None or any(not "#" <= character <= "~" for character in one) for one in values[start:])
    else:
        assert texts == dumped([[one] for one in values[start:]])
