"""JSON made column by column is what orjson makes of each value, or is refused."""

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prelabel.schemas.json_texts import NotPlainError, json_rows

ANYTHING = st.one_of(
    st.floats(width=32), st.floats(-1e4, 1e4, width=32), st.floats(2**-13, 1, width=32), st.integers(-(2**54), 2**54)
)


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
            text = written(pa.array([one]))
        except NotPlainError:
            assert not 1e-5 <= abs(one) < 1e10
        else:
            assert text == dumped(np.array([one]))
    plain = numbers[(np.abs(numbers) >= 1e-5) & (np.abs(numbers) < 1e10) | (numbers == 0)]
    both = written("[", pa.array(plain), ",", pa.array(plain), "]")
    assert both == dumped([*map(list, zip(plain, plain, strict=True))])


@pytest.mark.parametrize("most", [1e10, 2**24])
def test_floats_of_all_exponents(most):
    """Some 200,000 of them, with each sign."""
    numbers = np.arange(0, np.float32(most).view(np.uint32), 5_003, np.uint32).view(np.float32)
    for some in (numbers, -numbers, numbers[numbers >= 1e-4]):
        assert written(pa.array(some)) == dumped(some)


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**53), 2**53), st.integers(-99, 99))))
def test_integers(values):
    try:
        text = written(pa.array(values, pa.int64()))
    except NotPlainError:
        assert max(map(abs, values)) >= 2**53
    else:
        assert text == dumped(values)


def test_rows_of_all_kinds():
    columns = [["a", "b\\"], [7, -3], [0.5, 2.0], [12.0, 1e5], [0.1, 1 / 3]]
    of = [pa.string(), pa.int32(), pa.float32(), pa.float64(), pa.float64()]
    texts, *numbers = [pa.array(values, kind) for values, kind in zip(columns, of, strict=True)]
    pieces = [piece for number in numbers for piece in (number, ",")]
    text = written("[", *pieces, texts, ",", texts, "]")
    assert text == dumped([[*row[1:], row[0], row[0]] for row in zip(*columns, strict=True)])


@given(st.lists(st.one_of(st.text(), st.text("0123O\\`no"), st.none())), st.integers(0, 3))
def test_strings(values, start):
    column = pa.array(values, pa.string()).slice(start)
    try:
        texts = written("[", column, "]")
    except NotPlainError:
        assert any(one is None or any(not "#" <= character <= "~" for character in one) for one in values[start:])
    else:
        assert texts == dumped([[one] for one in values[start:]])
