"""Brush masks made of runs and read to runs, against a reader and a packer that go bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from brushes import Bits, pack_freely, read_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from prelabel.pipeline import brush
from prelabel.pipeline.brush import decode_brush, encode_brush
from prelabel.schemas import rle
from prelabel.schemas.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 0.03, 0.5, 0.97, 1]), st.integers(0, 2**32 - 1))
def test_brush_masks_are_those_of_the_format(height: int, width: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    runs = rle.encode(mask)
    packed = encode_brush(runs).tobytes()
    np.testing.assert_array_equal(read_mask(packed, height, width), np.repeat(mask[..., None] * 255, 4, axis=2))
    assert decode_brush(packed, height, width) == runs
    drawn = np.where(mask[..., None], rng.integers(1, 256, (height, width, 1)), 0).repeat(4, axis=2).astype(np.uint8)
    assert decode_brush(pack_freely(drawn, rng), height, width) == runs


def test_brush_mask_of_a_large_image_has_blocks_of_the_longest_runs() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:290, 3:] = True
    mask[299, 399] = True
    runs = rle.encode(mask)
    packed = encode_brush(runs).tobytes()
    np.testing.assert_array_equal(read_mask(packed, 300, 400)[..., 3] == 255, mask)
    assert decode_brush(packed, 300, 400) == runs


def packed(total: int, *blocks: tuple[int, int]) -> bytes:
    """A mask of runs: bytes and the word in them."""
    bits = Bits()
    for value, size in ((total, 32), (7, 5), *((15, 4),) * 4):
        bits.write(value, size)
    for length, word in blocks:
        for value, size in ((1, 1), (0, 2), (length - 1, 16), (word, 8)):
            bits.write(value, size)
    return bits.to_bytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (packed(3000), "not of 768 pixels"),
        (packed(3072, (60, 255)), "cut off"),
        (packed(3072, (3073, 255)), "more pixels than its image"),
    ],
)
def test_brush_mask_that_is_none_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode_brush(data, 24, 32)


def test_masks_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="1073741823 pixels at most"):
        encode_brush(rle.Rle((2**15, 2**15), "0"))
    monkeypatch.setattr(brush, "MOST_CHANGES", 100)
    stripes = packed(4 * 24 * 32, *(((4 * 32, 255), (4 * 32, 0)) * 12))
    with pytest.raises(UserError, match="768 runs, more than 100"):
        decode_brush(stripes, 24, 32)
