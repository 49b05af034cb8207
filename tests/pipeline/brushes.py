"""Label Studio's brush masks once more, bit by bit, as its own decoder reads them."""

from __future__ import annotations

import numpy as np


class Bits:
    """rle-pack, bit by bit, as Label Studio's own decoder reads it."""

    def __init__(self, data: bytes = b"") -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)

    def read(self, size: int) -> int:
        found, self.text = int(self.text[:size], 2), self.text[size:]
        return found

    def write(self, value: int, size: int) -> None:
        self.text += f"{value:0{size}b}"

    def to_bytes(self) -> bytes:
        padded = self.text + "0" * (-len(self.text) % 8)
        return bytes(int(padded[k : k + 8], 2) for k in range(0, len(padded), 8))


def read_mask(packed: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 4)."""
    bits = Bits(packed)
    total, word, sizes = bits.read(32), bits.read(5) + 1, [bits.read(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < total:
        repeated, length = bits.read(1), bits.read(sizes[bits.read(2)]) + 1
        found += [bits.read(word)] * length if repeated else [bits.read(word) for _ in range(length)]
    assert len(bits.text) < 8
    return np.array(found, np.uint8).reshape(height, width, 4)


def pack_freely(pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """The same format as another packer may use it: blocks of any length, repeated or not, in any of four sizes."""
    sizes = [1, 5, 7, 12]
    values, bits, at = pixels.ravel().tolist(), Bits(), 0
    for value, size in ((len(values), 32), (7, 5), *((size - 1, 4) for size in sizes)):
        bits.write(value, size)
    while at < len(values):
        same = next((k for k, value in enumerate(values[at:]) if value != values[at]), len(values) - at)
        repeated = bool(rng.integers(2))
        choice = int(rng.integers(4))
        length = min(int(rng.integers(1, 2 ** sizes[choice] + 1)), same if repeated else 40, len(values) - at)
        for value, size in ((repeated, 1), (choice, 2), (length - 1, sizes[choice])):
            bits.write(int(value), size)
        for value in values[at : at + 1] if repeated else values[at : at + length]:
            bits.write(value, 8)
        at += length
    return bits.to_bytes()
