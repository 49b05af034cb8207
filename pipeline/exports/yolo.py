"""YOLO's folders of images and texts, as Ultralytics reads them: https://docs.ultralytics.com/datasets/."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow.compute as pc
import yaml

from prelabel.pipeline.exports.base import Exporter, ExportSummary
from prelabel.pipeline.exports.rows import Row, labeled_images
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import Storage, writing, writing_folder
from prelabel.schemas.errors import UserError
from prelabel.schemas.polygons import inset, join, outlines, pixels_outside
from prelabel.schemas.rle import Rle

FOLDER = "images/train"
LONGEST = 200
"""Bytes of a stem; file systems take 255 with the suffix."""
MARGIN = 0.01
"""Pixels by which polygons keep within their masks: float32 rounds away less, up to 100,000 pixels a side."""
SIDES = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
SIDES |= {other: side for side, other in SIDES.items()}


class YoloLines(ABC):
    """What a text has of an object: its class and numbers from 0 to 1, shares of the image's width and height.

    The class is the category's place among those of the labels, from 0. Coordinates are float32, as readers hold them.
    """

    def __init__(self, dataset: Labels) -> None:
        self._index = {category_id: index for index, category_id in enumerate(dataset.categories.ids)}
        self._counts: Counter[str] = Counter()

    @abstractmethod
    def numbers(self, image: Row, rows: Sequence[Row]) -> Iterable[np.ndarray | None]:
        """x and y in turn of each object of an image; None where the format can't hold it."""

    def text(self, image: Row, rows: Sequence[Row]) -> bytes:
        """A line for each object."""
        found = zip(rows, self.numbers(image, rows), strict=True)
        return b"".join(self._line(row, numbers) for row, numbers in found if numbers is not None)

    def _line(self, row: Row, numbers: np.ndarray) -> bytes:
        self._counts["written"] += 1
        values = orjson.dumps(numbers.astype(np.float32).ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
        return b"%d %b\n" % (self._index[row["category_id"]], values[1:-1].replace(b",", b" "))

    @property
    def written(self) -> int:
        """Objects so far."""
        return self._counts["written"]

    def facts(self) -> dict[str, Any]:
        """What `data.yaml` says besides the names."""
        return {}

    def notes(self) -> list[str]:
        """What was lost or made up, for people."""
        return ["scores are left out: YOLO's labels have no place for them"]


class Boxes(YoloLines):
    """x and y of the centre, width, height."""

    def numbers(self, image: Row, rows: Sequence[Row]) -> Iterable[np.ndarray]:
        """float64 (2, 2) each."""
        start, end = _corners(image, rows)
        return np.stack([(start + end) / 2, end - start], axis=1) / _size(image)


class Polygons(YoloLines):
    """One polygon, of all parts and holes; a rectangle where there is no mask, for readers take no mixture."""

    def __init__(self, dataset: Labels) -> None:
        super().__init__(dataset)
        if "segment_instances" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no masks: label with --task segment_instances, or export yolo")
        self._overlaps, self._least = 0.0, 1.0

    def numbers(self, image: Row, rows: Sequence[Row]) -> Iterable[np.ndarray | None]:
        """float64 (N, 2) each; None of an empty mask."""
        polygons = (self._polygon(image, row) for row in rows)
        return (None if polygon is None else polygon / _size(image) for polygon in polygons)

    def _polygon(self, image: Row, row: Row) -> np.ndarray | None:
        if row["segmentation"] is None:
            self._counts["boxes"] += 1
            ((left, top),), ((right, bottom),) = _corners(image, [row])
            return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        mask = Rle((image["height"], image["width"]), row["segmentation"]["counts"])
        parts = [inset(outline, MARGIN) for outline in outlines(mask)]
        if not parts:
            self._counts["empty"] += 1
            return None
        polygon, bridges = join(parts)
        self._measure(row["area"], pixels_outside(mask, bridges) if len(bridges) else 0, len(bridges))
        return polygon

    def _measure(self, area: float, outside: int, bridges: int) -> None:
        overlap = area / (area + outside)
        self._overlaps, self._least = self._overlaps + overlap, min(self._least, overlap)
        self._counts["masks"] += 1
        self._counts["joined"] += bridges > 0

    def notes(self) -> list[str]:
        """Also how much the polygons are like the masks."""
        counts, notes = self._counts, super().notes()
        if counts["masks"]:
            mean, least = (math.floor(1e4 * one) / 1e4 for one in (self._overlaps / counts["masks"], self._least))
            notes.append(f"masks are polygons: their IoU with the masks is {mean:.4f} on average, {least:.4f} at least")
        if counts["joined"]:
            notes.append(f"{counts['joined']:,} masks of several parts, or with holes, are one polygon with bridges")
        if counts["boxes"]:
            notes.append(f"{counts['boxes']:,} objects have no mask: their boxes stand for it")
        if counts["empty"]:
            notes.append(f"{counts['empty']:,} objects are left out: their masks are empty")
        return notes


class Poses(Boxes):
    """The box, then x, y and visibility of each keypoint; zeros for those that were not placed, or are not there."""

    def __init__(self, dataset: Labels) -> None:
        super().__init__(dataset)
        if "detect_keypoints" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no keypoints: label with --task detect_keypoints")
        named = {self._index[one.id]: [*one.keypoints] for one in dataset.categories if one.keypoints}
        self._number = max([_most_keypoints(dataset), *map(len, named.values())])
        self._names = {index: names for index, names in named.items() if len(names) == self._number}
        lists = {tuple(names) for names in named.values()}
        self._flipped = flipped(lists.pop()) if len(lists) == 1 and self._names else None

    def numbers(self, image: Row, rows: Sequence[Row]) -> Iterable[np.ndarray]:
        """float64 (4 + 3 K,) each."""
        for row, box in zip(rows, super().numbers(image, rows), strict=True):
            yield np.concatenate([box, self._points(image, row)], axis=None)

    def _points(self, image: Row, row: Row) -> np.ndarray:
        points = np.zeros((self._number, 3))
        found = np.array(row["keypoints"] or [], np.float64).reshape(-1, 3)
        points[: len(found)] = found
        points[:, :2] /= _size(image)
        points[:, :2] = points[:, :2].clip(0, 1)  # what float32 leaves beyond a border
        points[points[:, 2] <= 0] = 0
        return points

    def facts(self) -> dict[str, Any]:
        """Number of keypoints, which become which in a mirror, and names, as far as they are known."""
        known = {"flip_idx": self._flipped, "kpt_names": self._names}
        return {"kpt_shape": [self._number, 3], **{key: value for key, value in known.items() if value}}

    def notes(self) -> list[str]:
        """Also what is not known of keypoints."""
        notes = super().notes()
        if self._flipped is None:
            notes.append("no flip_idx: the keypoints' names don't tell left and right, so training mirrors no images")
        return notes


class Yolo(Exporter):
    """A folder: `data.yaml`, `labels/train` (a text of each image), and `images/train` where they are put."""

    lines: ClassVar[type[YoloLines]] = Boxes

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All images that could be read; the text of one without objects is empty, which is to say background."""
        if images.url({"key": ""}) is not None:
            raise UserError("YOLO's readers look for images beside the labels: give --images copy, link or none")
        lines, count = self.lines(dataset), 0
        with writing_folder(to) as folder:
            files = Storage(folder)
            with images.into(f"{folder}/{FOLDER}") as put, writing(f"{folder}/train.txt") as listed:
                for image, rows in labeled_images(dataset, "annotations"):
                    stem, suffix = images.flat_name(image)
                    put(image, stem + suffix)
                    files.add(f"labels/train/{stem}.txt", lines.text(image, rows["annotations"]))
                    listed.write(f"./{FOLDER}/{stem}{suffix}\n".encode())
                    count += 1
            files.add("data.yaml", _data(dataset.categories.names, lines.facts()))
        notes = ["train and val of data.yaml are the same images: choose those that you validate with"]
        if not images.are_put:
            notes.append(f"put the images into {FOLDER}, by the names in train.txt")
        return ExportSummary(to, count, lines.written, (*lines.notes(), *notes))


class YoloSegment(Yolo):
    """The same with polygons."""

    lines = Polygons


class YoloPose(Yolo):
    """The same with keypoints."""

    lines = Poses


def flipped(names: tuple[str, ...]) -> list[int] | None:
    """Where each keypoint is in a mirror, told by their names: left_eye becomes right_eye; None where they don't tell.

    >>> flipped(("nose", "left_eye", "right_eye"))
    [0, 2, 1]
    """
    mirrored = [re.sub("|".join(SIDES), lambda side: SIDES[side[0]], name) for name in names]
    if mirrored == [*names] or not {*mirrored} <= {*names}:
        return None
    return [names.index(name) for name in mirrored]


def _most_keypoints(dataset: Labels) -> int:
    """Of any object of the job."""
    batches = dataset.origin.batches("annotations", ["keypoints"])
    return max((pc.max(pc.list_value_length(batch["keypoints"])).as_py() or 0 for batch in batches), default=0) // 3


def _corners(image: Row, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Top-left and bottom-right of the objects' boxes, within the image: float64 (N, 2) each, x and y in pixels."""
    sides = np.array([[*row["bbox"].values()] for row in rows]).reshape(-1, 2, 2)
    start, end = sides[:, 0], sides.sum(1)
    return np.clip(start, 0, _size(image)), np.clip(end, 0, _size(image))


def _size(image: Row) -> np.ndarray:
    return np.array([image["width"], image["height"]])


def _data(names: Iterable[str], facts: dict[str, Any]) -> bytes:
    """Without `path`, paths are relative to the folder that `data.yaml` is in, wherever that goes."""
    data = {"train": FOLDER, "val": FOLDER, **facts, "names": dict(enumerate(names))}
    text: str = yaml.safe_dump(data, allow_unicode=True, sort_keys=False, default_flow_style=None, width=120)
    return text.encode()
