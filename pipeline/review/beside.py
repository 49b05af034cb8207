"""What the page shows beside a job's labels: a ground truth, or another job."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from contextlib import suppress
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.review.labels import labels_of
from prelabel.pipeline.review.units import Units
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

Row = dict[str, Any]


class Beside(ABC):
    """Labels of the same images from elsewhere; `name` says where."""

    name: str

    @abstractmethod
    def labels(self, image: Row) -> Row | None:
        """The labels of an image, given its row in the job's images table; None where it is not there."""


class TruthBeside(Beside):
    """A COCO instances document."""

    def __init__(self, url: str, dataset: LabelDataset) -> None:
        """Raises UserError where it can't be read, or not be matched with the job."""
        from prelabel.pipeline.evaluate.truth import read_truth  # and with it all that measures

        truth = read_truth(url, dataset)
        if truth.is_panoptic:
            raise UserError(f"--truth {url} is a panoptic document: give one of instances or keypoints")
        self.name = url
        self._most_pixels = dataset.record.job.labels.max_image_pixels
        self._images = truth.images
        self._sizes = {one["id"]: (one["height"], one["width"]) for one in truth.document["images"]}
        self._objects = defaultdict(list)
        for one in truth.document["annotations"]:
            self._objects[one["image_id"]].append(one)
        self._ids, self._categories = _numbered(dataset, truth.document["categories"], truth.categories)

    def labels(self, image: Row) -> Row | None:
        """The objects, with the job's category ids; categories that it has not are numbered on."""
        theirs = self._images.get(image["image_id"])
        if theirs is None:
            return None
        objects = [self._object(one, self._sizes[theirs]) for one in self._objects[theirs]]
        return {"annotations": objects, "segments": [], "categories": self._categories}

    def _object(self, one: Row, size: tuple[int, int]) -> Row:
        return {
            "annotation_id": one["id"],
            "category_id": self._ids.get(one["category_id"], one["category_id"]),
            "score": None,
            "bbox": one["bbox"],
            "keypoints": one.get("keypoints"),
            "iscrowd": bool(one["iscrowd"]),
            "model": None,
        } | self._mask(one.get("segmentation"), size)

    def _mask(self, segmentation: Any, size: tuple[int, int]) -> Row:
        """Compressed runs of COCO's polygons or runs; no mask where there is none, or it makes no sense."""
        with suppress(UserError, ValueError, TypeError, LookupError, OverflowError):
            runs = Rle.from_coco(segmentation) if isinstance(segmentation, dict) else self._filled(segmentation, size)
            if 0 < math.prod(runs.size) <= self._most_pixels:
                return runs.to_coco()
        return {"size": None, "counts": None}

    def _filled(self, polygons: Any, size: tuple[int, int]) -> Rle:
        if not 0 < math.prod(size) <= self._most_pixels:
            raise ValueError(size)
        corners = [np.clip(np.asarray(one, float), 0, max(size)).tolist() for one in polygons]
        mask = coco_mask.merge(coco_mask.frPyObjects([one for one in corners if len(one) >= 6], *size))
        return Rle(size, mask["counts"].decode())


class OtherJob(Beside):
    """Another job over the same images, matched by key."""

    def __init__(self, url: str) -> None:
        """Raises JobError where there is no job."""
        dataset = LabelDataset(url)
        self.name = dataset.url
        self._units = Units(dataset)
        self._categories = dataset.categories.to_coco()
        self._images = {
            key: image_id
            for batch in dataset.batches("images", ["key", "image_id"])
            for key, image_id in zip(batch["key"].to_pylist(), batch["image_id"].to_pylist(), strict=True)
        }

    def labels(self, image: Row) -> Row | None:
        """The labels, with that job's category ids, and its categories."""
        theirs = self._images.get(image["key"])
        return None if theirs is None else labels_of(self._units, theirs) | {"categories": self._categories}


def _numbered(dataset: LabelDataset, entries: list[Row], known: dict[int, int]) -> tuple[dict[int, int], list[Row]]:
    """A truth's category ids -> ours, and the categories that have them; those that we have not get new numbers."""
    ids = {theirs: ours for ours, theirs in known.items()}
    free = 1 + max([0, *dataset.categories.ids])
    for entry in entries:
        if entry["id"] not in ids:
            ids[entry["id"]], free = free, free + 1
    return ids, [{"id": ids[one["id"]], "name": str(one.get("name") or f"category {one['id']}")} for one in entries]
