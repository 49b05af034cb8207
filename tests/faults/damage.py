"""Damage to a job's files by chance, and what of it anybody can know."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

from simulated import told


def damage(path: Path, chance: random.Random) -> None:
    """One bit flipped, cut off, gone, or all zeros."""
    data = bytearray(path.read_bytes())
    how = chance.choice(("flip", "cut", "remove", "zeros"))
    if how == "remove":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif how == "zeros":
        path.write_bytes(bytes(len(data)))
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


def unit_of(path: Path) -> int:
    """Of a part or commit, by its name."""
    return int("".join(filter(str.isdigit, path.stem)))


def says_the_same(path: Path, data: bytes) -> bool:
    """Whether a commit differs in a time alone, which nobody can know better; of parts each byte counts."""
    with suppress(ValueError):
        return path.suffix == ".json" and told({path.name: data}) == told({path.name: path.read_bytes()})
    return False
