"""What has changed: counted, and said."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from prelabel.pipeline.compare.images import GROUPS
from prelabel.pipeline.compare.matching import Objects, Pair

SAME = 0.95
"""The IoU from which an object has not moved."""
COUNTS = ("before", "after", "matched", "moved", "reclassified", "appeared", "vanished")
_HEADERS = [name.upper() for name in COUNTS]
_SHOWN = 5


@dataclass
class Change:
    """What became of some objects; `before` are those that are matched, moved, reclassified or vanished.

    Attributes:
        before, after: how many there were and are
        matched: with the same category, at the same place: IoU is SAME or more
        moved: with the same category, at another place
        reclassified: that have another category after
        appeared, vanished: that only one of the jobs has
        iou: the sum over those that are matched or moved
        moves: the sum of 1 - IoU over those that are moved
        score: the sum of differences, after less before, over the `scored` that are matched or moved
        scored: those with a score in both
    """

    before: int = 0
    after: int = 0
    matched: int = 0
    moved: int = 0
    reclassified: int = 0
    appeared: int = 0
    vanished: int = 0
    iou: float = 0.0
    moves: float = 0.0
    score: float = 0.0
    scored: int = 0

    @property
    def amount(self) -> float:
        """How much has changed: 1 for each that appeared, vanished or is reclassified, 1 - IoU for each that moved."""
        return self.appeared + self.vanished + self.reclassified + self.moves

    @property
    def mean_iou(self) -> float | None:
        """From 0 to 1, of those that are matched or moved; None where there are none."""
        return self.iou / (self.matched + self.moved) if self.matched + self.moved else None

    @property
    def score_change(self) -> float | None:
        """The mean, after less before, of those that are matched or moved; None where none has scores."""
        return self.score / self.scored if self.scored else None

    def count_pair(self, iou: float, score: float) -> None:
        """Counts one with the same category; `score` is the difference, NaN where one has none."""
        self.iou += iou
        if iou >= SAME:
            self.matched += 1
        else:
            self.moved += 1
            self.moves += 1 - iou
        if not isnan(score):
            self.score += score
            self.scored += 1

    def add(self, other: Change) -> None:
        """Counts the objects of another as well."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_dict(self) -> dict[str, Any]:
        """The counts and the means."""
        means = {"mean_iou": self.mean_iou, "score_change": self.score_change}
        return {name: getattr(self, name) for name in COUNTS} | means


class Changes:
    """What became of all objects of one kind.

    Attributes:
        categories: what became of those of each, by the name it has before; those reclassified count where they were
        reclassified: how many went from a category to another
    """

    def __init__(self) -> None:
        self.categories: defaultdict[str, Change] = defaultdict(Change)
        self.reclassified: Counter[tuple[str, str]] = Counter()

    @property
    def total(self) -> Change:
        """Of all categories."""
        total = Change()
        for change in self.categories.values():
            total.add(change)
        return total

    def count(self, before: Objects, after: Objects, pairs: Sequence[Pair]) -> Change:
        """Counts the objects of one image, and says what became of them."""
        found: defaultdict[str, Change] = defaultdict(Change)
        for name in before.categories:
            found[name].before += 1
            found[name].vanished += 1
        for name in after.categories:
            found[name].after += 1
            found[name].appeared += 1
        for i, j, iou in pairs:
            ours, theirs = before.categories[i], after.categories[j]
            found[ours].vanished -= 1
            found[theirs].appeared -= 1
            if ours == theirs:
                found[ours].count_pair(iou, float(after.scores[j] - before.scores[i]))
            else:
                found[ours].reclassified += 1
                self.reclassified[ours, theirs] += 1
        image = Change()
        for name, change in found.items():
            self.categories[name].add(change)
            image.add(change)
        return image

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        pairs = [{"before": ours, "after": theirs, "count": n} for (ours, theirs), n in self.reclassified.most_common()]
        categories = {name: change.to_dict() for name, change in sorted(self.categories.items())}
        return {"all": self.total.to_dict(), "categories": categories, "reclassified": pairs}

    def lines(self) -> Iterator[str]:
        """A table of the categories, those that changed most first."""
        ordered = sorted(self.categories.items(), key=lambda one: (-one[1].amount, one[0]))
        rows = [[name, *_counts(change), *_means(change)] for name, change in [*ordered, ("all", self.total)]]
        yield from aligned([["CATEGORY", *_HEADERS, "MEAN IOU", "SCORE CHANGE"], *rows])
        for (ours, theirs), count in self.reclassified.most_common(_SHOWN):
            yield f"{count:,} {ours} became {theirs}"


@dataclass(frozen=True)
class ImageChange:
    """What became of the objects of one image, all kinds together.

    Attributes:
        key: its name
        before, after: its image_id in the two jobs
        change: of its objects
    """

    key: str
    before: int
    after: int
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ids = {"key": self.key, "image_id_before": self.before, "image_id_after": self.after}
        return ids | {"amount": self.change.amount} | self.change.to_dict()


@dataclass(frozen=True)
class Comparison:
    """What differs between two jobs over the same images.

    Attributes:
        before, after: URLs of the jobs
        images: how many were compared, and how many of GROUPS there are
        examples: the keys of the first images of each of GROUPS
        kinds: "objects", "panoptic" and "semantic" segments, as far as both jobs have them
        most_changed: the images whose `change.amount` is highest, in this order
    """

    before: str
    after: str
    images: dict[str, int]
    examples: dict[str, list[str]]
    kinds: dict[str, Changes]
    most_changed: tuple[ImageChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "before": self.before,
            "after": self.after,
            "images": self.images,
            "examples": self.examples,
            "kinds": {name: changes.to_dict() for name, changes in self.kinds.items()},
            "most_changed": [image.to_dict() for image in self.most_changed],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.images['compared']:,} images compared, {self.before} with {self.after}"
        for group, words in GROUPS.items():
            if count := self.images[group]:
                shown = self.examples[group][:_SHOWN]
                more = [f"and {count - len(shown):,} more"] if len(shown) < count else []
                yield f"{count:,} {words}: {', '.join(shown + more)}"
        for kind, changes in self.kinds.items():
            yield from ("", f"{kind}:", *changes.lines())
        if self.most_changed:
            rows = [[one.key, f"{one.change.amount:.2f}", *_counts(one.change)] for one in self.most_changed]
            yield from ("", "images that changed most:", *aligned([["IMAGE", "CHANGE", *_HEADERS], *rows]))


def _counts(change: Change) -> list[str]:
    return [f"{getattr(change, name):,}" for name in COUNTS]


def _means(change: Change) -> list[str]:
    means = ((change.mean_iou, ".3f"), (change.score_change, "+.3f"))
    return ["-" if mean is None else format(mean, form) for mean, form in means]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Names on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        yield "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True))])
