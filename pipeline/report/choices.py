"""Which images a gallery shows, chosen by SQL, none twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.report.blocks import number
from prelabel.pipeline.report.figures import Figures

ANNOTATIONS = "SELECT image_id, category_id, score FROM annotations WHERE score >= {lowest!r}::DOUBLE"
SEGMENTS = "SELECT image_id, category_id, score FROM segments WHERE kind = '{kind}'"
BY_SCORE = """
SELECT image_id, round(avg(score::DOUBLE), 6) AS score FROM ({drawn})
WHERE score IS NOT NULL AND NOT list_contains(?, image_id) GROUP BY image_id
ORDER BY score {order}, image_id LIMIT ?
"""
RANDOM = """
SELECT image_id FROM images WHERE status = 'ok' AND NOT list_contains(?, image_id)
ORDER BY md5(concat(?, ':', image_id)), image_id LIMIT ?
"""
RAREST = """
WITH best AS (
    SELECT category_id, count(*) AS objects, max(ROW(coalesce(score, 0), -image_id))
        FILTER (NOT list_contains(?, image_id)) AS place
    FROM ({drawn}) GROUP BY category_id
)
SELECT -place[2] AS image_id, arg_min(category_id, ROW(objects, category_id)) AS category_id, min(objects) AS objects
FROM best WHERE place IS NOT NULL GROUP BY ALL ORDER BY objects, category_id LIMIT ?
"""
WITHOUT = """
SELECT image_id FROM images WHERE status = 'ok' AND NOT list_contains(?, image_id)
    AND image_id NOT IN (SELECT image_id FROM ({drawn})) ORDER BY image_id LIMIT ?
"""


@dataclass(frozen=True)
class Drawn:
    """What pictures show: annotations from a score on, or where a job has none, its segments of one kind."""

    kind: str
    threshold: float

    @classmethod
    def of(cls, dataset: LabelDataset, threshold: float) -> Drawn | None:
        """By what the job writes; None where there is nothing to draw."""
        if "annotations" in dataset.record.tables:
            return cls("annotations", threshold)
        if "segments" not in dataset.record.tables:
            return None
        return cls("panoptic" if "fuse_panoptic" in dataset.record.tasks else "semantic", threshold)

    @property
    def lowest(self) -> float:
        """The threshold as scores are kept, so that an object of 0.7 passes 0.7."""
        return float(np.float32(self.threshold))

    @property
    def sql(self) -> str:
        """Their image_id, category_id and score."""
        text = ANNOTATIONS if self.kind == "annotations" else SEGMENTS
        return text.format(lowest=self.lowest, kind=self.kind)

    @property
    def says(self) -> str:
        """In words."""
        return (
            f"labels that score {self.threshold:g} or more" if self.kind == "annotations" else f"{self.kind} segments"
        )


@dataclass(frozen=True)
class Group:
    """Images that were chosen for the same reason: image_id -> what is to be said of each."""

    title: str
    says: str
    images: dict[int, str]


class Choices:
    """Chooses group after group.

    Attributes:
        groups: chosen so far
    """

    def __init__(self, figures: Figures, drawn: Drawn | None, count: int) -> None:
        self._figures, self._drawn, self._count = figures, drawn, count
        self._what = drawn.says if drawn else "labels"
        self.groups: list[Group] = []

    @property
    def taken(self) -> list[int]:
        """The images of all groups."""
        return [image for group in self.groups for image in group.images]

    def by_truth(self, f1: Mapping[int, float]) -> None:
        """The worst and the best by how well they agree with a truth."""
        order = sorted(f1, key=lambda image: (f1[image], image))
        best = order[: -self._count - 1 : -1] if len(order) >= 2 * self._count else order[: self._count - 1 : -1]
        about = f"F1 of the {self._what} against the truth: a partner has the same category and an IoU of 0.5 or more."
        for title, which, chosen in (("Worst", "lowest", order[: self._count]), ("Best", "highest", best)):
            self._add(title, f"The {which} {about}", {image: f"F1 {f1[image]:.3f}" for image in chosen})

    def by_score(self) -> None:
        """The worst and the best by their mean scores."""
        if not self._drawn:
            return
        for title, which, sure, order in (("Worst", "lowest", "least", "ASC"), ("Best", "highest", "most", "DESC")):
            found = self._figures.rows(BY_SCORE, self.taken, self._count, drawn=self._drawn.sql, order=order)
            says = f"The {which} mean score of the {self._what}: what the model was {sure} sure of."
            self._add(title, says, {row["image_id"]: f"mean score {row['score']:.3f}" for row in found})

    def rarest(self, names: Mapping[int, str]) -> None:
        """The best object of each of the rarest categories."""
        if not self._drawn:
            return
        found = self._figures.rows(RAREST, self.taken, self._count, drawn=self._drawn.sql)
        self._add(
            "Rarest categories",
            f"For each of the categories with the fewest {self._what}, the image with its highest score.",
            {row["image_id"]: f"{names.get(row['category_id'])}: {number(row['objects'])} in the job" for row in found},
        )

    def random(self, seed: int) -> None:
        """Any."""
        found = self._figures.rows(RANDOM, self.taken, str(seed), self._count)
        self._add(
            "Random",
            f"Drawn by lot from all images that were labeled, with seed {seed}.",
            dict.fromkeys((row["image_id"] for row in found), ""),
        )

    def without(self) -> None:
        """Those with nothing to draw."""
        if not self._drawn:
            return
        found = self._figures.rows(WITHOUT, self.taken, self._count, drawn=self._drawn.sql)
        self._add(
            "Without labels",
            f"The first images without {self._what}.",
            dict.fromkeys((row["image_id"] for row in found), ""),
        )

    def _add(self, title: str, says: str, images: dict[int, str]) -> None:
        if images:
            self.groups.append(Group(title, says, images))
