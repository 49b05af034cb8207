"""How good labels are, by what people say of a sample of images: no other ground truth is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prelabel.pipeline.compare.changes import Changes, aligned
from prelabel.pipeline.compare.images import Images
from prelabel.pipeline.compare.kinds import Kind, Reader, names_in_both
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.proportions import Proportion, estimate
from prelabel.pipeline.query.connection import connect, wait
from prelabel.pipeline.sampling import Sample, open_sample
from prelabel.pipeline.sampling.objects import view_objects
from prelabel.schemas.errors import UserError, printable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COUNTED = "SELECT category, count(*) FROM objects WHERE counts GROUP BY 1"
OUTSIDE = """
SELECT count(DISTINCT image_id) FROM verdicts
WHERE verdict IN ('accept', 'reject') AND image_id NOT IN (SELECT image_id FROM samples WHERE sample = ?)
"""
SAID = """
WITH chosen AS (SELECT image_id FROM samples WHERE sample = ?), said AS (
    SELECT image_id, annotation_id, arg_max(verdict, (reviewed_at, review_id)) AS verdict
    FROM verdicts WHERE verdict IS NOT NULL GROUP BY ALL
), judged AS (
    SELECT image_id, category, annotation_id IS NOT NULL AS of_object, coalesce(own.verdict, whole.verdict) AS verdict
    FROM chosen LEFT JOIN (FROM objects WHERE counts) AS found USING (image_id)
    LEFT JOIN said AS own USING (image_id, annotation_id)
    LEFT JOIN said AS whole ON whole.image_id = chosen.image_id AND whole.annotation_id IS NULL
)
SELECT image_id, category, count(category), count(*) FILTER (verdict = 'accept'),
    count(*) FILTER (verdict IN ('accept', 'reject')), count(*)
FROM judged GROUP BY ALL ORDER BY ALL
"""
"""Of each image and category: the objects that count, and what the last word on each is, or else that on its image. An
image without objects is asked one thing, whether that is right."""
NO_RECALL = "recall needs images in which people have marked every object: import them and give --corrected URL"
RECALL = "recall holds if every object of the corrected images is marked, and for images that could be read"


@dataclass(frozen=True)
class Counted:
    """The objects of one category in one image.

    Attributes:
        found: by the job
        right: of these
        wanted: that there are; 0 where nobody has said
    """

    image_id: int
    category: str
    found: int
    right: int
    wanted: int = 0


@dataclass(frozen=True)
class Reviewed:
    """What people have said.

    Attributes:
        counts: of the reviewed images
        images: their ids
        begun: images of the sample that have verdicts, but not for all of their objects
        outside: images with verdicts, or corrected ones, that are not in the sample
    """

    counts: list[Counted]
    images: set[int]
    begun: int
    outside: int


@dataclass(frozen=True)
class Audit:
    """How good the labels of a job are.

    Attributes:
        sample: its name
        chosen: images in the sample
        reviewed, begun, outside: see `Reviewed`
        score_threshold: objects that score lower do not count
        objects: in the whole job, by category
        precision, recall: by category; recall is empty where nobody knows what was missed
        all_precision, all_recall: of all categories together
    """

    sample: str
    chosen: int
    reviewed: int
    begun: int
    outside: int
    score_threshold: float | None
    objects: dict[str, int]
    precision: dict[str, Proportion]
    recall: dict[str, Proportion]
    all_precision: Proportion
    all_recall: Proportion | None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        names = ("sample", "chosen", "reviewed", "begun", "outside", "score_threshold")
        categories = {
            name: {
                "objects": count,
                "precision": self.precision[name].to_dict(),
                "recall": self.recall[name].to_dict() if name in self.recall else None,
            }
            for name, count in self.objects.items()
        }
        everything = {
            "objects": sum(self.objects.values()),
            "precision": self.all_precision.to_dict(),
            "recall": self.all_recall.to_dict() if self.all_recall else None,
        }
        return {name: getattr(self, name) for name in names} | {"all": everything, "categories": categories}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"sample {self.sample}: {self.reviewed:,} of {self.chosen:,} images reviewed"
        if self.begun:
            yield f"{self.begun:,} more are begun and don't count: accept or reject the image for its other objects"
        if self.outside:
            yield f"{self.outside:,} images are reviewed that are not in the sample: they don't count"
        header = ["CATEGORY", "OBJECTS", "REVIEWED", "IMAGES", "PRECISION", "95 % INTERVAL"]
        rows = [
            [printable(name), f"{count:,}", *_cells(self.precision[name]), *_cells(self.recall.get(name))[2:]]
            for name, count in sorted(self.objects.items())
        ]
        total = [f"{sum(self.objects.values()):,}", *_cells(self.all_precision), *_cells(self.all_recall)[2:]]
        header += ["RECALL", "95 % INTERVAL"] if self.all_recall else []
        yield from aligned([header, *rows, ["all", *total]])
        yield RECALL if self.all_recall else NO_RECALL


def _cells(share: Proportion | None) -> list[str]:
    if share is None:
        return []
    value = "-" if share.value is None else f"{share.value:.3f}"
    return [f"{share.objects:,}", f"{share.images:,}", value, f"{share.low:.3f} to {share.high:.3f}"]


def audit(
    dataset: LabelDataset,
    sample: str | None = None,
    corrected: LabelDataset | None = None,
    score_threshold: float | None = None,
    iou: float = 0.5,
) -> Audit:
    """Precision of the job's labels, by what people have said of the images in a sample; of recall, what they tell.

    An object is right if its last verdict is accept, or if it has none and that of its image is. An image is reviewed
    if all of its objects are accepted or rejected. Where there are corrected labels, an object is right if one of the
    same category is there, by IoU, as `prelabel compare` matches them.

    Images of the sample that are not reviewed are taken to be missing by chance within their stratum (Särndal, Swensson
    & Wretman 1992, chapter 15): the probabilities are multiplied by the stratum's share of reviewed images.

    Args:
        dataset: the job
        sample: its name; None where there is but one
        corrected: labels as people left them, of images that they went through
        score_threshold: objects that score lower do not count; by default that of the sample
        iou: the lowest at which two objects are the same

    Raises:
        UserError: there is no such sample, or none of its images is reviewed.
        JobError: a part is damaged.
    """
    chosen = open_sample(dataset, sample)
    lowest = chosen.score_threshold if score_threshold is None else score_threshold
    if lowest is not None and lowest < (chosen.score_threshold or 0):
        raise UserError(
            f"--score-threshold {lowest}: sample {chosen.name} has objects from {chosen.score_threshold} on"
        )
    with closing(connect(dataset)) as connection:
        view_objects(connection, dataset.record, lowest)
        objects = dict(_rows(connection, COUNTED))
        if corrected is None:
            reviewed = _said(connection, chosen.name)
        else:
            reviewed = _corrected(dataset, corrected, set(chosen.rows["image_id"].to_pylist()), lowest, iou)
    if not reviewed.images:
        how = f"`prelabel review {dataset.url}`, or --corrected URL" if corrected is None else "is it of other images?"
        raise UserError(f"none of the {len(chosen.rows):,} images of sample {chosen.name} is reviewed yet: {how}")
    names = sorted({*objects, *(one.category for one in reviewed.counts)})
    shares = _Shares(reviewed.counts, _probabilities(chosen, reviewed.images))
    all_precision = shares.of("right", "found")
    all_recall = shares.of("right", "wanted") if corrected is not None else None
    return Audit(
        sample=chosen.name,
        chosen=len(chosen.rows),
        reviewed=len(reviewed.images),
        begun=reviewed.begun,
        outside=reviewed.outside,
        score_threshold=lowest,
        objects={name: objects.get(name, 0) for name in names},
        precision={name: shares.of("right", "found", name, all_precision) for name in names},
        recall={name: shares.of("right", "wanted", name, all_recall) for name in names} if all_recall else {},
        all_precision=all_precision,
        all_recall=all_recall,
    )


def _rows(connection: DuckDBPyConnection, sql: str, *values: object) -> list[Any]:
    return wait(connection, lambda: connection.execute(sql, values).fetchall())


def _said(connection: DuckDBPyConnection, sample: str) -> Reviewed:
    """By the verdicts."""
    counts, said, asked = [], Counter[int](), Counter[int]()
    for image_id, category, found, right, judged, questions in _rows(connection, SAID, sample):
        said[image_id] += judged
        asked[image_id] += questions
        if found:
            counts.append(Counted(image_id, category, found, right))
    images = {image_id for image_id, questions in asked.items() if said[image_id] == questions}
    begun = sum(0 < count < asked[image_id] for image_id, count in said.items())
    ((outside,),) = _rows(connection, OUTSIDE, sample)
    return Reviewed([one for one in counts if one.image_id in images], images, begun, outside)


def _corrected(
    dataset: LabelDataset, corrected: LabelDataset, chosen: set[int], lowest: float | None, iou: float
) -> Reviewed:
    """By labels that people have corrected."""
    if not 0 < iou <= 1:
        raise UserError(f"--iou is {iou}: give a number above 0, up to 1")
    if "annotations" not in dataset.record.tables:
        raise UserError(f"{dataset.url} has no objects to set beside {corrected.url}: review its images instead")
    if "annotations" not in corrected.record.tables:
        raise UserError(f"{corrected.url} has no objects: give what `prelabel import` wrote")
    ours, theirs = names_in_both(dataset.categories, corrected.categories)
    kind = Kind(Reader(dataset, ours, None, lowest or 0.0), Reader(corrected, theirs, None, 0.0), iou)
    counts, images, outside = [], set(), 0
    for pair in Images(dataset, corrected, 0):
        image_id = pair[0].image_id
        if image_id not in chosen:
            outside += 1
            continue
        images.add(image_id)
        kind.changes = Changes()
        list(kind.count([pair]))
        for name, change in kind.changes.categories.items():
            counts.append(Counted(image_id, name, change.before, change.matched + change.moved, change.after))
    return Reviewed(counts, images, 0, outside)


def _probabilities(sample: Sample, reviewed: set[int]) -> dict[int, float]:
    """Of each reviewed image, that it was chosen, and then reviewed."""
    rows = sample.rows.select(["image_id", "stratum", "probability"]).to_pylist()
    chosen = Counter(row["stratum"] for row in rows)
    done = Counter(row["stratum"] for row in rows if row["image_id"] in reviewed)
    return {
        row["image_id"]: row["probability"] * done[row["stratum"]] / chosen[row["stratum"]]
        for row in rows
        if row["image_id"] in reviewed
    }


class _Shares:
    """Estimates from what was counted."""

    def __init__(self, counts: list[Counted], probabilities: dict[int, float]) -> None:
        self._counts, self._probabilities = counts, probabilities

    def of(self, part: str, whole: str, category: str | None = None, usual: Proportion | None = None) -> Proportion:
        """The share of one field of `Counted` in another, of a category or of all; `usual`: that of all."""
        parts, wholes = Counter[int](), Counter[int]()
        for one in self._counts:
            if category is None or one.category == category:
                parts[one.image_id] += getattr(one, part)
                wholes[one.image_id] += getattr(one, whole)
        parted, counted, chosen = (
            np.array([values[image_id] for image_id in wholes], np.float64)
            for values in (parts, wholes, self._probabilities)
        )
        return estimate(parted, counted, chosen, usual.design_effect if usual else 1.0)
