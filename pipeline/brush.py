"""Label Studio's brush masks, from and to COCO's runs; a mask of pixels is never made.

A brush mask is an image's RGBA bytes, row by row, packed by https://github.com/thi-ng/umbrella (packages/rle-pack): 32
bits that say how many bytes, 5 the bits of a word, less one, 4 x 4 those of the four sizes of a length, less one. Then
come blocks: a bit that is 1 for one word repeated and 0 for words as they are, 2 bits that choose a size, a length
less one of that size, and the word or words. A pixel is inside where alpha, its fourth byte, is not 0.
"""

from __future__ import annotations

import numpy as np

from prelabel.operators.counts import read_counts
from prelabel.schemas.compiled import compiled
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle, from_run_lengths

CHANNELS = 4
SIZES = (3, 4, 8, 16)
"""Bits that the length of a block may have."""
LONGEST = 2**16
SETTINGS = 7 << 16 | 0x237F
"""What a header says after the number of bytes: words of 7 + 1 bits, lengths of 2 + 1, 3 + 1, 7 + 1 and 15 + 1."""
BLOCK_BITS = 3 + 16 + 8
MOST_PIXELS = 2**32 // CHANNELS - 1
MOST_CHANGES = 2**25
"""A mask whose runs begin and end at more pixels than that is a trap, and would take gigabytes."""
CUT_OFF, TOO_LONG = 1, 2
FAULTS = {CUT_OFF: "is cut off", TOO_LONG: "has more pixels than its image"}


def encode_brush(rle: Rle) -> np.ndarray:
    """A mask as uint8 bytes of Label Studio's `rle`: inside all four channels are 255, outside 0.

    Raises:
        UserError: the image has more pixels than the format can count, or the mask too many runs.
    """
    height, width = rle.size
    if height * width > MOST_PIXELS:
        raise UserError(f"a brush mask has {MOST_PIXELS} pixels at most, not {height} x {width}: leave the image out")
    edges = np.cumsum(read_counts(np.frombuffer(rle.counts.encode(), np.uint8)))
    return _pack(_transposed(edges[: len(edges) // 2 * 2], height, width), height * width)


def decode_brush(packed: bytes, height: int, width: int) -> Rle:
    """The mask of Label Studio's `rle`.

    Raises:
        UserError: it does not hold height x width pixels, or has too many runs.
    """
    total = CHANNELS * height * width
    data = np.frombuffer(packed, np.uint8)
    if len(data) >= 4 and int.from_bytes(packed[:4], "big") != total:
        raise UserError(f"a brush mask is not of {height * width} pixels: export it once more")
    fault, edges = _unpack(data, total)
    if fault:
        raise UserError(f"a brush mask {FAULTS[fault]}: export it once more")
    by_columns = _transposed(edges, width, height)
    lengths = np.diff(by_columns, prepend=0, append=height * width)
    filled = len(lengths) > 1 and lengths[-1] == 0
    return from_run_lengths([lengths[:-1] if filled else lengths], (height, width))[0]


def _transposed(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where runs begin and end, in turn, row by row, from where they do column by column: int64, no two equal.

    A run along a row begins or ends at the pixels in which a mask differs from itself moved one column to the right.
    Swap height and width for the opposite direction.
    """
    changes = np.sort(np.concatenate([edges, edges + height]))
    count = int((changes[1::2] - changes[0::2]).sum())
    if count > MOST_CHANGES:
        raise UserError(f"a mask has {count:,} runs, more than {MOST_CHANGES:,}: leave it out")
    return _turned(changes, count, height, width)


@compiled
def _turned(changes: np.ndarray, count: int, height: int, width: int) -> np.ndarray:
    """The pixels between pairs of changes, in the other order; but for those that are there twice.

    There, a run that ends with its row goes on with the next one.
    """
    pixels = np.empty(count, np.int64)
    at = 0
    for k in range(0, len(changes), 2):
        for pixel in range(changes[k], changes[k + 1]):
            pixels[at] = pixel % height * width + pixel // height
            at += 1
    pixels.sort()
    kept = 0
    for k in range(count):
        if kept and pixels[kept - 1] == pixels[k]:
            kept -= 1
        else:
            pixels[kept] = pixels[k]
            kept += 1
    return pixels[:kept]


@compiled
def _pack(edges: np.ndarray, pixels: int) -> np.ndarray:
    """The bytes of a mask, from where its runs begin and end row by row."""
    blocks = len(edges) + 1 + CHANNELS * pixels // LONGEST
    packed = np.zeros((64 + BLOCK_BITS * blocks) // 8, np.uint8)
    place = _put(packed, _put(packed, 0, CHANNELS * pixels, 32), SETTINGS, 21)
    begin, word = 0, 0
    for k in range(len(edges) + 1):
        end = edges[k] if k < len(edges) else pixels
        rest = CHANNELS * (end - begin)
        while rest > 0:
            length = min(rest, LONGEST)
            choice = 0
            while length > 1 << SIZES[choice]:
                choice += 1
            place = _put(packed, place, 4 | choice, 3)
            place = _put(packed, place, length - 1, SIZES[choice])
            place = _put(packed, place, word, 8)
            rest -= length
        begin, word = end, 255 - word
    return packed[: (place + 7) // 8]


@compiled
def _put(packed: np.ndarray, place: int, value: int, bits: int) -> int:
    """Writes a number of so many bits from that bit on; returns the bit after it."""
    for bit in range(bits - 1, -1, -1):
        packed[place // 8] |= (value >> bit & 1) << (7 - place % 8)
        place += 1
    return place


@compiled
def _unpack(packed: np.ndarray, total: int) -> tuple[int, np.ndarray]:
    """A fault, or 0, and where runs inside begin and end row by row, in turn: int64, no two equal."""
    edges, kept = np.empty(64, np.int64), 0
    last = 8 * len(packed)
    if last < 32 + 5 + 4 * 4:
        return CUT_OFF, edges[:0]
    word = _get(packed, 32, 5) + 1
    place, at = 32 + 5 + 4 * 4, 0
    while at < total:
        if place + 3 > last:
            return CUT_OFF, edges[:0]
        repeated, choice = _get(packed, place, 1), _get(packed, place + 1, 2)
        size = _get(packed, 32 + 5 + 4 * choice, 4) + 1
        if place + 3 + size > last:
            return CUT_OFF, edges[:0]
        length = _get(packed, place + 3, size) + 1
        place += 3 + size
        words, pixels = (1, length) if repeated else (length, 1)
        if at + length > total:
            return TOO_LONG, edges[:0]
        if place + words * word > last:
            return CUT_OFF, edges[:0]
        for _ in range(words):
            begin, end = at // CHANNELS, (at + pixels) // CHANNELS  # of the pixels whose fourth byte it has
            if begin < end and _get(packed, place, word):
                if kept and edges[kept - 1] == begin:
                    kept -= 1
                else:
                    if kept + 2 > len(edges):
                        edges = np.concatenate((edges, edges))
                    edges[kept] = begin
                    kept += 1
                edges[kept] = end
                kept += 1
            at, place = at + pixels, place + word
    return 0, edges[:kept]


@compiled
def _get(packed: np.ndarray, place: int, bits: int) -> int:
    """The number of so many bits from that bit on."""
    value = 0
    for bit in range(place, place + bits):
        value = value << 1 | (packed[bit // 8] >> (7 - bit % 8) & 1)
    return value
