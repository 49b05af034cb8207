"""The kinds of labels that two jobs have in common, read and compared image by image."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from prelabel.pipeline.compare.changes import Change, Changes
from prelabel.pipeline.compare.images import Image
from prelabel.pipeline.compare.matching import Objects, match
from prelabel.pipeline.dataset import LabelDataset
from prelabel.schemas.categories import ALIASES, CategorySet
from prelabel.schemas.errors import UserError

Row = dict[str, Any]
Names = dict[int, str]

SEGMENTS = {"panoptic": "fuse_panoptic", "semantic": "segment_semantic"}
"""Kinds of segments, and the task that each is from."""

logger = logging.getLogger("prelabel")


def kinds_in_both(before: LabelDataset, after: LabelDataset, iou: float, score_threshold: float) -> dict[str, Kind]:
    """The "objects", and the "panoptic" and "semantic" segments, as far as both jobs have them.

    Raises:
        UserError: they have none in common.
    """
    ours, theirs = names_in_both(before.categories, after.categories)

    def kind(segments: str | None) -> Kind:
        readers = (Reader(before, ours, segments, score_threshold), Reader(after, theirs, segments, score_threshold))
        return Kind(*readers, iou)

    has = {*before.record.tables, *before.record.tasks} & {*after.record.tables, *after.record.tasks}
    kinds = {"objects": kind(None)} if "annotations" in has else {}
    kinds |= {name: kind(name) for name, task in SEGMENTS.items() if task in has}
    if not kinds:
        raise UserError(
            f"{before.url} and {after.url} have no objects, and no segments of one kind, in common: compare jobs that "
            "were given the same --task"
        )
    return kinds


class Kind:
    """One kind of labels in both jobs, and what has changed."""

    def __init__(self, before: Reader, after: Reader, iou: float) -> None:
        self._before, self._after, self._iou = before, after, iou
        self.changes = Changes()

    def count(self, images: Sequence[tuple[Image, Image]]) -> Iterator[Change]:
        """What has changed in each of the images, all of which are read from the job after at first."""
        found = {image.image_id: self._after.objects(image) for image in sorted(image for _, image in images)}
        for image, same in images:
            before, after = self._before.objects(image), found[same.image_id]
            yield self.changes.count(before, after, match(before, after, self._iou))


class Reader:
    """A job's labels of one kind by image. Where images are asked for as they are stored, each part is read once.

    Args:
        dataset: the job
        names: what its categories are called
        segments: their kind; None for objects
        score_threshold: of what to leave out
    """

    def __init__(self, dataset: LabelDataset, names: Names, segments: str | None, score_threshold: float) -> None:
        self._part, self._names, self._segments = copy(dataset), names, segments
        self._part.units = []
        self._lowest = float(np.float32(score_threshold))  # as scores are kept
        self._asked = -1
        self._groups: Iterator[tuple[int, list[Row]]] = iter(())
        self._found: tuple[int, list[Row]] = (-1, [])

    def objects(self, image: Image) -> Objects:
        """The image's, by rank."""
        if self._part.units != [image.unit] or image.image_id < self._asked:
            self._part.units = [image.unit]
            self._groups, self._found = self._by_image(), (-1, [])
        self._asked = image.image_id
        while self._found[0] < image.image_id:
            self._found = next(self._groups, (sys.maxsize, []))
        rows = self._found[1] if self._found[0] == image.image_id else []
        return Objects.of(rows, [self._names[row["category_id"]] for row in rows])

    def _by_image(self) -> Iterator[tuple[int, list[Row]]]:
        table = "segments" if self._segments else "annotations"
        columns = ["image_id", "category_id", "score", "bbox", "segmentation", *(["kind"] if self._segments else [])]
        rows = (row for batch in self._part.batches(table, columns) for row in batch.to_pylist())
        for image_id, some in groupby(filter(self._counts, rows), key=itemgetter("image_id")):
            yield image_id, list(some)

    def _counts(self, row: Row) -> bool:
        return (row["score"] is None or row["score"] >= self._lowest) and row.get("kind") == self._segments


def names_in_both(before: CategorySet, after: CategorySet) -> tuple[Names, Names]:
    """What the categories of each are called: those that are the same have one name, the one before."""
    same = {ALIASES.get(category.name, category.name): category.name for category in before}
    ours = {category.id: category.name for category in before}
    theirs = {category.id: same.get(ALIASES.get(category.name, category.name)) for category in after}
    if not any(theirs.values()):
        logger.warning("the jobs have no category name in common: categories are compared by id")
        theirs = dict(ours)
    return ours, {category.id: theirs.get(category.id) or category.name for category in after}
