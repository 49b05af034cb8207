"""What is wrong with a job, named by file and row, and what that comes to."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from prelabel.schemas.errors import printable

PROMISES = {
    "job": "job.json is whole, and its fingerprint is that of what it holds",
    "plan": "the plan is whole: units and image ids follow without a gap, and add up to what job.json says",
    "commit": "a commit is whole, of a planned unit, names a part of each table, and counts what is there",
    "failure": "what is said of a failed unit can be read",
    "stray": "a table's folder holds parts of planned units alone, since Arrow tools read all that is in it",
    "part": "each part is there, has the bytes that its commit names, and can be read",
    "schema": "each part has its table's schema, and the job's fingerprint and categories",
    "image": "each planned image has one row, in the plan's order, with the plan's key",
    "status": "a row is ok, with the image's facts and no error, or failed, with a code and without labels",
    "reference": "an image, a category, a model or an annotation that is named exists, and is called so",
    "rank": "rows are in order: ids are the image's id and a rank that falls with the score, without a gap",
    "count": "num_annotations is the number of the image's annotations",
    "score": "a score is from 0 to 1",
    "box": "a box has finite sides, none negative; that of a model that clips is within the upright image",
    "runs": "a mask has the image's size, and runs that fill it",
    "area": "area is that of the mask, and where there is none that of the box",
    "extent": "a segment's box is its mask's",
    "segment": "segment ids are above 0, and each is in its image once",
    "overlap": "no pixel is in two segments of a layer: the panoptic one, or a model's semantic one",
    "keypoints": "keypoints are x, y, visibility of each of the category's points",
    "review": "a review can be read, and what it is about exists",
}
"""Kind of violation -> what holds where there is none."""


@dataclass(frozen=True)
class Violation:
    """A promise that is broken, or something that is left over.

    Attributes:
        kind: a key of PROMISES, or of what is left over
        message: what is wrong
        unit: that is damaged, and can be worked again
        file: as named in the job's folder
        row: of that file, from 0
    """

    kind: str
    message: str
    unit: int | None = None
    file: str | None = None
    row: int | None = None

    def line(self) -> str:
        """For people: where, and what, without what a terminal would obey."""
        unit = "" if self.unit is None else f"unit {self.unit}: "
        row = "" if self.row is None else f" row {self.row}"
        file = "" if self.file is None else f"{self.file}{row}: "
        return printable(f"{unit}{file}{self.message}")


class Wrong:
    """Rows that break a promise, and what to say of each."""

    def __init__(self, kind: str, bad: np.ndarray, say: Callable[[int], str]) -> None:
        """`bad` is bool (N,), one for each row of a part; `say` takes a row's number."""
        self.kind, self.rows, self.say = kind, np.flatnonzero(bad), say


@dataclass
class Violations:
    """As many as there are, of which `limit` of each kind are kept.

    Attributes:
        limit: of each kind
        kept: some of them
        counts: kind -> how many there are
        units: that are damaged
    """

    limit: int
    kept: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    units: set[int] = field(default_factory=set)

    def add(
        self, kind: str, message: str, *, unit: int | None = None, file: str | None = None, row: int | None = None
    ) -> None:
        """Counts one, and keeps it if there is room."""
        if self.counts[kind] < self.limit:
            self.kept.append(Violation(kind, message, unit, file, row))
        self.counts[kind] += 1
        if unit is not None:
            self.units.add(unit)

    def add_rows(self, wrong: Wrong, unit: int | None, file: str) -> None:
        """Counts all of the rows."""
        if not len(wrong.rows):
            return
        room = max(0, self.limit - self.counts[wrong.kind])
        for row in wrong.rows[:room].tolist():
            self.add(wrong.kind, wrong.say(row), unit=unit, file=file, row=row)
        self.counts[wrong.kind] += len(wrong.rows[room:])
        if unit is not None:
            self.units.add(unit)

    def merge(self, other: Violations) -> None:
        """Adds all of another's."""
        room = {kind: self.limit - self.counts[kind] for kind in other.counts}
        for one in other.kept:
            if room[one.kind] > 0:
                self.kept.append(one)
                room[one.kind] -= 1
        self.counts += other.counts
        self.units |= other.units

    def lines(self, show: int) -> Iterator[str]:
        """Up to `show` of each kind, and how many more there are."""
        for kind, count in self.counts.items():
            some = [one for one in self.kept if one.kind == kind][:show]
            yield from (one.line() for one in some)
            if count > len(some):
                yield f"… and {count - len(some):,} more like that ({kind})"


@dataclass
class Validation:
    """What reading a job has come to.

    Attributes:
        url: of the job
        violations: of the promises
        leftovers: harmless
        quick: whether the parts were not read
        units, images: planned
        committed: units
        wanted: committed units that were to be looked at
        checked: those of them that were
        rows: table -> rows that were read
        masks: that were read
        fixed: units that were sent back to work; None: nothing was to be fixed
        seconds: it took
    """

    url: str
    violations: Violations
    leftovers: Violations
    quick: bool = False
    units: int = 0
    images: int = 0
    committed: int = 0
    wanted: int = 0
    checked: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    fixed: list[int] | None = None
    seconds: float = 0.0

    @property
    def is_proven(self) -> bool:
        """Whether no violation was found."""
        return not self.violations.counts

    @property
    def exit_code(self) -> int:
        """0, or 3 where there are violations."""
        return 0 if self.is_proven else 3

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        told = {name: getattr(self, name) for name in ("violations", "leftovers")}
        facts = {name: value for name, value in vars(self).items() if name not in told}
        for name, some in told.items():
            facts |= {name: [asdict(one) for one in some.kept], f"{name}_by_kind": dict(some.counts)}
        return facts | {"proven": self.is_proven, "damaged_units": sorted(self.violations.units)}

    def lines(self, show: int) -> Iterator[str]:
        """For people: up to `show` of each kind, what that comes to, and what to do."""
        yield from self.violations.lines(show)
        yield from (f"harmless: {line}" for line in self.leftovers.lines(show))
        rows = ", ".join(f"{count:,} {table}" for table, count in self.rows.items())
        looked = "sizes and commits" if self.quick else f"{rows}, {self.masks:,} masks"
        result = "proven:" if self.is_proven else f"{_some(self.violations.counts.total(), 'violation')} in"
        yield f"{self.url}: {result} {looked} of {self.checked:,} of {self.committed:,} committed units"
        resume = f"prelabel resume {shlex.quote(self.url)}"
        damaged = self.violations.units
        if self.fixed:
            yield f"sent {_some(len(self.fixed), 'unit')} back to work: go on with {resume}"
        elif damaged:
            yield f"{_some(len(damaged), 'damaged unit')}: the option --fix sends such back to work"
        if self.committed < self.units and not self.fixed:
            yield f"{self.units - self.committed:,} of {self.units:,} units are not committed: go on with {resume}"
        if any(one.unit is None for one in self.violations.kept):
            yield "what is of no unit can't be worked again: put those files back from a copy, or remove what is stray"


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
