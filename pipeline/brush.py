"""Label Studio's brush masks, from and to COCO's runs; a mask of pixels is never made.

A brush mask is an image's RGBA bytes, row by row, packed by https://github.com/thi-ng/umbrella (packages/rle-pack): 32
bits that say how many bytes, 5 the bits of a word, less one, 4 x 4 those of the four sizes of a length, less one. Then
come blocks: a bit that is 1 for one word repeated and 0 for words as they are, 2 bits that choose a size, a length
less one of that size, and the word or words. A pixel is inside where alpha, its fourth byte, is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle, from_run_lengths, run_lengths

CHANNELS = 4
SIZES = np.array([3, 4, 8, 16])
"""Bits that the length of a block may have."""
LONGEST = 2**16
SETTINGS = 7 << 16 | 0x237F
"""What a header says after the number of bytes: words of 7 + 1 bits, lengths of 2 + 1, 3 + 1, 7 + 1 and 15 + 1."""
HEADER_BITS = 32 + 5 + 4 * 4
MOST_PIXELS = 2**32 // CHANNELS - 1
MOST_CHANGES = 2**25
"""A mask whose runs begin and end at more pixels than that is a trap, and would take gigabytes."""


def encode_brush(rle: Rle) -> np.ndarray:
    """A mask as uint8 bytes of Label Studio's `rle`: inside all four channels are 255, outside 0.

    Raises:
        UserError: the image has more pixels than the format can count, or the mask too many runs.
    """
    height, width = rle.size
    if height * width > MOST_PIXELS:
        raise UserError(f"a brush mask has {MOST_PIXELS} pixels at most, not {height} x {width}: leave the image out")
    edges = np.cumsum(run_lengths(rle.counts))
    by_rows = _transposed(edges[: len(edges) // 2 * 2], height, width)
    runs = CHANNELS * np.diff(by_rows, prepend=0, append=height * width)
    there = np.flatnonzero(runs)
    blocks = -(-runs[there] // LONGEST)
    lengths = np.full(blocks.sum(), LONGEST)
    lengths[np.cumsum(blocks) - 1] = (runs[there] - 1) % LONGEST + 1
    return _packed(CHANNELS * height * width, lengths, np.repeat(there % 2 * 255, blocks))


def _packed(total: int, lengths: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The bytes of a header and of one or more blocks, each a word repeated."""
    choice = np.searchsorted(2**SIZES, lengths)
    bits = 3 + SIZES[choice] + 8
    blocks = ((4 | choice) << SIZES[choice] | lengths - 1) << 8 | words
    ends = HEADER_BITS + np.cumsum(bits)
    first, skipped = np.divmod(ends - bits, 8)
    packed = np.zeros(ends[-1] // 8 + 5, np.uint8)
    packed[:7] = np.frombuffer(((total << 21 | SETTINGS) << 3).to_bytes(7, "big"), np.uint8)
    blocks <<= 40 - skipped - bits  # each is within five bytes
    for place in range(5):
        np.add.at(packed, first + place, (blocks >> 32 - 8 * place & 255).astype(np.uint8))
    return packed[: -(-ends[-1] // 8)]


def decode_brush(packed: bytes, height: int, width: int) -> Rle:
    """The mask of Label Studio's `rle`.

    Raises:
        UserError: it does not hold height x width pixels, or has too many runs.
    """
    pieces = list(_alpha(packed, CHANNELS * height * width))
    edges = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    by_columns = _transposed(edges, width, height)
    lengths = np.diff(by_columns, prepend=0, append=height * width)
    filled = len(lengths) > 1 and lengths[-1] == 0
    return from_run_lengths([lengths[:-1] if filled else lengths], (height, width))[0]


def _alpha(packed: bytes, total: int) -> Iterator[np.ndarray]:
    """Where runs of pixels inside begin and end, row by row; some may touch."""
    read = _Bits(packed)
    if read(32) != total:
        raise UserError(f"a brush mask is not of {total // CHANNELS} pixels: export it once more")
    word = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    start = 0
    while start < total:
        repeated = read(1)
        end = start + read(sizes[read(2)]) + 1
        if end > total:
            raise UserError("a brush mask has more pixels than its image: export it once more")
        if repeated:
            if read(word):
                yield np.array([start // CHANNELS, end // CHANNELS])
        else:
            words = read.words(end - start, word)
            inside = np.flatnonzero(words[-(start + 1) % CHANNELS :: CHANNELS]) + start // CHANNELS
            yield np.stack([inside, inside + 1], axis=1).ravel()
        start = end


class _Bits:
    """Reads numbers from bytes, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def __call__(self, bits: int) -> int:
        """The next number of so many bits, 32 at most."""
        start, self._place = self._place, self._place + bits
        if self._place > 8 * len(self._data):
            raise UserError("a brush mask is cut off: export it once more")
        window = int.from_bytes(self._data[start // 8 : start // 8 + 5].ljust(5, b"\0"), "big")
        return window >> (40 - start % 8 - bits) & ((1 << bits) - 1)

    def words(self, count: int, bits: int) -> np.ndarray:
        """Whether each of the next numbers of so many bits is not 0: bool (count,)."""
        start, self._place = self._place, self._place + count * bits
        if self._place > 8 * len(self._data):
            raise UserError("a brush mask is cut off: export it once more")
        data = np.frombuffer(self._data, np.uint8)[start // 8 : -(-self._place // 8)]
        words = np.unpackbits(data)[start % 8 :][: count * bits].reshape(count, bits)
        return np.any(words, axis=1)


def _transposed(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where runs begin and end, in turn, row by row, from where they do column by column: int64, no two equal.

    A run along a row begins or ends at the pixels in which a mask differs from itself moved one column to the right.
    Swap height and width for the opposite direction.
    """
    changes = np.sort(np.concatenate([edges, edges + height]))
    begins, lengths = changes[0::2], changes[1::2] - changes[0::2]
    if lengths.sum() > MOST_CHANGES:
        raise UserError(f"a mask has {lengths.sum():,} runs, more than {MOST_CHANGES:,}: leave it out")
    before = np.cumsum(lengths) - lengths
    pixels = np.repeat(begins - before, lengths) + np.arange(lengths.sum())
    found = np.sort(pixels % height * width + pixels // height)
    return _apart(found)


def _apart(edges: np.ndarray) -> np.ndarray:
    """Sorted edges without those that cancel: a run that ends where the next one begins goes on."""
    values, counts = np.unique(edges, return_counts=True)
    return values[counts % 2 == 1]
