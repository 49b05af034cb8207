"""What a page is made of: sections of facts, tables, charts and galleries. Names may be anybody's text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from prelabel.schemas.errors import printable

LONGEST_TEXT = 160
LONGEST_NAME = 32
Cell = str | int | float | None


@dataclass(frozen=True)
class Facts:
    """Names and what is to be said of them."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under a head, `folded` away until somebody asks for them."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, for each."""
        columns = zip(*self.rows, strict=True)
        return [not any(isinstance(cell, str) for cell in column) for column in columns] or [False] * len(self.head)


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, with its title and a sentence on what it shows."""

    kind: ClassVar[str] = "chart"
    title: str
    says: str
    spec: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """An image with its labels drawn, as a data URI, or what is the trouble with it."""

    name: str
    says: Sequence[str]
    data: str | None = None
    size: tuple[int, int] = (0, 0)
    trouble: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Pictures that were chosen for the same reason, which is said."""

    kind: ClassVar[str] = "gallery"
    title: str
    says: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


Block = Facts | Table | Chart | Gallery | Note


@dataclass(frozen=True)
class Section:
    """A part of the page that its table of contents names."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


def shown(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text of unknown origin: without passwords and signatures of URLs, on one line, and not too long."""
    public = re.sub(r"(?<=://)[^/?#]*@", "", text)
    public = re.sub(r"(?<=\?).*", "…", public) if "://" in public else public
    told = printable(public[: 2 * longest])
    half = longest // 2
    return told if len(told) <= longest else f"{told[:half]}…{told[-half:]}"


def short_names(names: Mapping[int, str]) -> dict[int, str]:
    """The names of categories, each short, and no two the same."""
    short = {key: shown(name, LONGEST_NAME) for key, name in names.items()}
    times = Counter(short.values())
    return {key: name if times[name] == 1 else f"{name} #{key}" for key, name in short.items()}


def number(value: Cell) -> str:
    """A number to read: thousands are told apart, fractions have three digits."""
    if value is None or value != value:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    digits = 3 if abs(value) <= 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def listed(values: Iterable[str], most: int = 5) -> str:
    """The first few, joined by commas, and how many there are besides."""
    texts = list(values)
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return ", ".join(texts[:most] + more)
