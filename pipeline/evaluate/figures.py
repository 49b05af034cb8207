"""What `evaluate` returns: headline figures, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

Metrics = dict[str, float]
Tables = dict[str, dict[str, Metrics]]
"""Kind of figures -> category's name -> its metrics."""

_NAMED = 10


@dataclass(frozen=True)
class Names:
    """Some images: how many, and the keys or file names of the first ones."""

    count: int
    first: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Counts all and keeps the first ten, in the order given."""
        listed = list(names)
        return cls(len(listed), tuple(listed[:_NAMED]))

    def plus(self, name: str) -> Names:
        """With one more."""
        return Names(self.count + 1, (*self.first, name)[:_NAMED])


@dataclass(frozen=True)
class MatchedImages:
    """Which images were measured.

    Attributes:
        measured: how many are in both the job and the truth; all figures are about these
        failed: those of them that could not be read, so nothing was found in them: each counts as empty
        not_labeled: images of the truth that the job does not have, by file_name; they count nowhere
        without_truth: images of the job that the truth does not have, by key; they count nowhere
    """

    measured: int
    failed: Names
    not_labeled: Names
    without_truth: Names


@dataclass(frozen=True)
class Bin:
    """A bar of the reliability curve: of the objects with a score above `low`, up to `high`.

    Attributes:
        low, high: the bin's edges; the first one includes 0
        count: how many objects
        score: their mean score; -1 where there are none
        precision: how many of them are right, from 0 to 1; -1 where there are none
    """

    low: float
    high: float
    count: int
    score: float
    precision: float


@dataclass(frozen=True)
class Threshold:
    """The lowest score to keep for the best F1, and what it gives: objects with `score` or more are kept."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ScoreQuality:
    """How far the scores of some objects can be trusted.

    Attributes:
        truth: objects of the truth that count
        found: objects of the job that count
        right: those of them that have a partner
        ece: expected calibration error, from 0 to 1 (Guo et al., "On Calibration of Modern Neural Networks", ICML
            2017); -1 where nothing was found
        bins: the reliability curve it is made of: ten bins of equal width from score 0 to 1
        best: the threshold of the highest F1; None where nothing is right
    """

    truth: int
    found: int
    right: int
    ece: float
    bins: tuple[Bin, ...]
    best: Threshold | None


@dataclass(frozen=True)
class Confusion:
    """Which category was taken for which.

    Attributes:
        score: objects below it were left out
        categories: names of the rows and columns; the last is "background": of its row, what was found where nothing
            is; of its column, what was not found
        counts: (row, column, how many) for each pair that occurs: the truth's category, the one found
    """

    score: float
    categories: tuple[str, ...]
    counts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Detections:
    """How the objects fare one by one, where a partner is one with an IoU of 0.5 or more.

    Attributes:
        matched_by: whose IoU it is: "masks" where job and truth have them, else "boxes"
        overall: of all categories' objects together
        categories: by category's name
        confusion: across categories
    """

    matched_by: str
    overall: ScoreQuality
    categories: dict[str, ScoreQuality]
    confusion: Confusion

    def thresholds(self) -> dict[str, float]:
        """The best threshold of each category; no entry for one of which nothing is right."""
        return {name: of.best.score for name, of in self.categories.items() if of.best}


class Evaluation(dict[str, Metrics]):
    """Headline figures by kind, `evaluation["boxes"]["AP"]`, and beside them what they are made of.

    Attributes:
        images: which images were measured
        categories: `evaluation.categories["boxes"]["leaf"]["AP"]`: the same kinds by category
        detections: calibration, thresholds and confusion of the objects; None for a panoptic truth, or where the job
            has proposals alone
    """

    def __init__(
        self, figures: dict[str, Metrics], images: MatchedImages, categories: Tables, detections: Detections | None
    ) -> None:
        super().__init__(figures)
        self.images = images
        self.categories = categories
        self.detections = detections

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the headline figures by kind, then "images", "categories" and "detections"."""
        detections = asdict(self.detections) if self.detections else None
        return {**self, "images": asdict(self.images), "categories": self.categories, "detections": detections}
