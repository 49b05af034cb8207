"""COCO's instances and keypoints documents: masks as polygons or runs, or boxes alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as coco_mask

from prelabel.pipeline.imports.base import ImportedImage, ImportedObject, Importer
from prelabel.pipeline.imports.json_document import JsonDocument
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError, one_line
from prelabel.schemas.rle import Rle

LONGEST_OUTLINE = 2**22
"""Pixels around an object's polygons; rasterizing takes memory in proportion."""
SPARE = 1.0
"""Pixels by which tools let polygons reach over the border of an image."""


class _Image(NamedTuple):
    image_id: int
    key: str
    height: int
    width: int


class CocoImporter(Importer):
    """A document with images, annotations and categories; annotations may come in any order."""

    name = "coco"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._document = JsonDocument(url)
        self._categories = self._read_categories()
        self._images = [self._image(one) for one in self._document.parse(self._spans("images"))]
        self._check_unique("images", [image.image_id for image in self._images])
        self._annotations, self._bounds = self._grouped()

    @property
    def digest(self) -> str:
        """Of the file."""
        return self._document.digest

    def categories(self) -> CategorySet:
        """The document's, with its ids."""
        return self._categories

    def images(self) -> Iterator[ImportedImage]:
        """Each with its annotations; one without a score counts as sure."""
        for image, begin, end in zip(self._images, self._bounds, self._bounds[1:], strict=False):
            objects = [self._object(entry, image) for entry in self._document.parse(self._annotations[begin:end])]
            yield ImportedImage(image.key, image.height, image.width, image.image_id, objects)

    def _spans(self, name: str) -> np.ndarray:
        spans = self._document.spans(name)
        if spans is None:
            raise UserError(f"{self.url} is no COCO instances document: it has no list of {name}")
        return spans

    def _read_categories(self) -> CategorySet:
        try:
            categories = CategorySet(map(Category.from_coco, self._document.parse(self._spans("categories"))))
        except UserError as error:
            raise error if self.url in str(error) else UserError(f"{self.url}: {error}") from None
        self._check_unique("categories", categories.names, "name")
        return categories

    def _check_unique(self, part: str, values: Any, key: str = "id") -> None:
        for value, times in Counter(values).most_common(1):
            if times > 1:
                raise UserError(f"{self.url} has {times} {part} of the {key} {value!r:.99}: each must have its own")

    def _image(self, entry: Any) -> _Image:
        types = {"id": int, "file_name": str, "height": int, "width": int}
        if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in types.items()):
            raise UserError(f"{self.url}: an image is {entry!r:.99}: give its {', '.join(types)}")
        image = _Image(*(entry[key] for key in types))
        sides = image.height, image.width
        if not image.key or min(sides) < 1 or max(sides) >= 2**31 or image.height * image.width >= 2**32:
            raise UserError(f"{self.url}: an image is {entry!r:.99}: no image has such a name or size")
        return image

    def _grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of all annotations, image by image, and where among them each image begins and the last ends."""
        spans = self._spans("annotations")
        places = {image.image_id: place for place, image in enumerate(self._images)}
        owners = np.fromiter(
            (self._owner(entry, places) for entry in self._document.parse(spans)), np.int64, len(spans)
        )
        order = np.argsort(owners, kind="stable")
        return spans[order], np.searchsorted(owners[order], np.arange(len(self._images) + 1))

    def _owner(self, entry: Any, places: dict[int, int]) -> int:
        if not isinstance(entry, dict) or "segments_info" in entry:
            raise UserError(f"{self.url} is no COCO instances document: an annotation is {entry!r:.99}")
        image_id = entry.get("image_id")
        if type(image_id) is not int or image_id not in places:
            raise UserError(f"{self.url}: {_named(entry)} is of image {image_id!r:.40}, which is not among the images")
        return places[image_id]

    def _object(self, entry: dict[str, Any], image: _Image) -> ImportedObject:
        try:
            return self._read_object(entry, image)
        except UserError as error:
            raise UserError(f"{self.url}: {_named(entry)} of {image.key!r:.99}: {error}") from None

    def _read_object(self, entry: dict[str, Any], image: _Image) -> ImportedObject:
        category_id, annotation_id = entry.get("category_id"), entry.get("id")
        if type(category_id) is not int or category_id not in self._categories:
            raise UserError(f"its category_id is {category_id!r:.40}, which is not among the categories")
        segmentation = read_segmentation(entry.get("segmentation"), image.height, image.width)
        bbox, points, score = entry.get("bbox"), entry.get("keypoints"), entry.get("score")
        if bbox is None and segmentation is None:
            raise UserError("it has neither bbox nor segmentation")
        return ImportedObject(
            self._categories[category_id].name,
            None if bbox is None else cast("tuple[float, float, float, float]", tuple(_numbers(bbox, "bbox", 4))),
            segmentation,
            _numbers(points, "keypoints") if points and entry.get("num_keypoints") != 0 else None,
            1.0 if score is None else _numbers([score], "score")[0],
            bool(entry.get("iscrowd")),
            annotation_id if type(annotation_id) is int else None,
        )


def _named(entry: dict[str, Any]) -> str:
    return f"annotation {entry.get('id')!r:.40}"


def _numbers(values: Any, name: str, count: int | None = None) -> list[float]:
    if (
        not isinstance(values, list)
        or count not in (None, len(values))
        or not all(isinstance(value, Real) and math.isfinite(value) for value in values)
    ):
        raise UserError(f"its {name} is {values!r:.60}: give {count or ''} numbers".replace("  ", " "))
    return [float(value) for value in values]


def read_segmentation(segmentation: Any, height: int, width: int) -> Rle | None:
    """The mask of an annotation's `segmentation`, in an image of this size; None where it is absent or empty.

    Polygons are rasterized as pycocotools does it: their union, pixels by its rule for borders.

    Raises:
        UserError: it is neither polygons nor a run-length encoding, or does not fit the image.
    """
    if isinstance(segmentation, list):
        polygons = [_polygon(one, height, width) for one in segmentation if one != []]
        return _rasterized(polygons, height, width) if polygons else None
    if not segmentation:
        return None
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise UserError(f"its segmentation is {segmentation!r:.60}, its image's size is {[height, width]}")
    try:
        return Rle.from_coco(segmentation)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"its segmentation is no run-length encoding: {one_line(error)!s:.99}") from None


def _polygon(values: Any, height: int, width: int) -> list[float]:
    """x and y of each corner in turn, within the image."""
    numbers = _numbers(values, "polygon")
    if len(numbers) < 6 or len(numbers) % 2:
        raise UserError(f"its polygon has {len(numbers)} numbers: give x and y of three corners or more")
    corners = np.reshape(numbers, (-1, 2))
    inside = np.clip(corners, 0, (width, height))
    if np.abs(corners - inside).max() > SPARE:
        raise UserError(f"its polygon reaches over the border of its image, of {width} x {height} (width x height)")
    return cast("list[float]", inside.ravel().tolist())


def _rasterized(polygons: list[list[float]], height: int, width: int) -> Rle:
    corners = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    if sum(np.abs(one - np.roll(one, 1, axis=0)).max(1).sum() for one in corners) > LONGEST_OUTLINE:
        raise UserError("its polygons are too long to be drawn: give a run-length encoding")
    found = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return Rle((height, width), found["counts"].decode("ascii"))
