"""What people drew in Label Studio, as objects: percent become pixels, brush strokes and polygons become runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from prelabel.pipeline.brush import decode_brush
from prelabel.pipeline.imports.base import ImportedObject
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

LONGEST_OUTLINE = 2**22
"""Pixels along a polygon; rasterizing takes memory in proportion."""
KEYPOINT = "keypoint"
MOST_KEYPOINTS = 1000
OBJECTS = {"rectangle": "width", "brush": "rle", "polygon": "points"}
"""Shapes of objects, and a key that their values have."""
OTHERS = ("ellipse", "bitmask", "magicwand", "vector", "cuboid")

Row = dict[str, Any]
Sides = tuple[float, float, float, float]


class Place(NamedTuple):
    """Which of an object's keypoints one was: name, number from 1, of how many there are, and COCO's visibility."""

    name: str
    keypoint: int
    of: int
    visibility: int


class Region(NamedTuple):
    """What an annotation says of one region.

    Attributes:
        shape: one of OBJECTS, or of OTHERS, or KEYPOINT
        labels: names
        value: the shape's own, in percent of the image
        size: height and width of the image, as the tool saw it
        parent: the id of the region above
        place: of a keypoint, as an export told it
    """

    region_id: str
    shape: str
    labels: list[str]
    value: Row
    size: tuple[Any, Any]
    parent: str | None
    place: Place | None


def regions_of(results: Iterable[Any]) -> Iterator[Region]:
    """The regions of an annotation's results; one of these says a shape, its labels, or both.

    Raises:
        UserError: they are not what Label Studio writes.
    """
    by_id: dict[str, list[Row]] = {}
    for number, one in enumerate(results):
        if not (isinstance(one, dict) and isinstance(one.get("type"), str)):
            raise UserError(f"a result is {one!r:.60}")
        if isinstance(one.get("value"), dict):  # relations have none
            by_id.setdefault(str(one.get("id", f"#{number}")), []).append(one)
    for region_id, some in by_id.items():
        shapes = (one["type"].removesuffix("labels") for one in some)
        if shape := next((shape for shape in shapes if shape in (*OBJECTS, KEYPOINT, *OTHERS)), None):
            yield _region(region_id, shape, some)


def _region(region_id: str, shape: str, results: list[Row]) -> Region:
    given = [one["value"].get(one["type"]) for one in results if one["type"].endswith("labels")]
    names = (name for some in given if isinstance(some, list) for name in some)
    labels = [name for name in names if isinstance(name, str) and name.strip()]
    one = next(one for one in results if one["type"].startswith(shape))
    size, parent = (one.get("original_height"), one.get("original_width")), one.get("parentID")
    return Region(region_id, shape, labels, one["value"], size, parent and str(parent), _place(one.get("meta")))


def _place(meta: Any) -> Place | None:
    found: list[Any] = [meta.get(name) for name in Place._fields] if isinstance(meta, dict) else []
    if [*map(type, found)] != [str, int, int, int]:
        return None
    place = Place(*found)
    return place if 1 <= place.keypoint <= place.of <= MOST_KEYPOINTS and place.visibility in (1, 2) else None


def object_of(region: Region, label: str, height: int, width: int) -> ImportedObject:
    """The object of one of its region's labels, in an image of that size.

    A rectangle that was rotated, about its first corner, becomes its bounding box; a polygon is rasterized as
    pycocotools does it.

    Raises:
        UserError: the shape is none, or does not fit the image.
    """
    value, region_id = region.value, region.region_id
    known = int(region_id) if region_id.isdecimal() and len(region_id) < 17 else None
    if region.shape == "rectangle":
        return ImportedObject(label, _box(value, height, width), annotation_id=known)
    mask = _brush(value, height, width) if region.shape == "brush" else _polygon(value.get("points"), height, width)
    return ImportedObject(label, None, mask, annotation_id=known)


def keypoints_of(points: list[tuple[Place, Region]], height: int, width: int) -> list[float]:
    """x, y and visibility of an object's keypoints, in an image of that size; 0 where one is not placed.

    Raises:
        UserError: one has no position.
    """
    found = np.zeros((max(place.of for place, _ in points), 3))
    for place, region in points:
        x, y = _numbers(region.value.get("x"), region.value.get("y"))
        found[place.keypoint - 1] = x * width / 100, y * height / 100, place.visibility
    return [float(value) for value in found.ravel()]


def _box(value: Row, height: int, width: int) -> Sides:
    x, y, w, h, angle = _numbers(*map(value.get, ("x", "y", "width", "height")), value.get("rotation") or 0)
    x, y, w, h = x * width / 100, y * height / 100, w * width / 100, h * height / 100
    if angle % 360 == 0:
        return x, y, w, h
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = np.array([(0, 0), (w, 0), (w, h), (0, h)]) @ [[cosine, sine], [-sine, cosine]] + (x, y)
    corners = np.clip(corners, 0, (width, height))
    (x, y), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return x, y, right - x, bottom - y


def _brush(value: Row, height: int, width: int) -> Rle:
    try:
        packed = bytes([*value["rle"]])
    except (KeyError, TypeError, ValueError):
        raise UserError("a brush mask has no rle: a list of numbers from 0 to 255") from None
    return decode_brush(packed, height, width)


def _polygon(points: Any, height: int, width: int) -> Rle:
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise UserError("a polygon has no points, or one that is not x and y")
    if len(points) < 3:
        raise UserError(f"a polygon has {len(points)} points: draw three or more")
    percent = np.array(_numbers(*(side for point in points for side in point))).reshape(-1, 2)
    corners = np.clip(percent * (width, height) / 100, 0, (width, height))
    if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > LONGEST_OUTLINE:
        raise UserError("a polygon is too long to be drawn")
    (found,) = coco_mask.frPyObjects([corners.ravel().tolist()], height, width)
    return Rle((height, width), found["counts"].decode("ascii"))


def _numbers(*values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values if isinstance(value, Real)]
    except OverflowError:
        numbers = []
    if len(numbers) < len(values) or not all(map(math.isfinite, numbers)):
        raise UserError(f"a region is at {[*values][:4]!r:.80}: these should be numbers")
    return numbers
