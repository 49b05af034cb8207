"""Imported objects as rows of the annotations table, once they are what that table promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prelabel.pipeline.imports.base import ImportedImage, ImportedObject
from prelabel.schemas import rle
from prelabel.schemas.categories import Category
from prelabel.schemas.errors import UserError
from prelabel.schemas.tables import ROWS_PER_IMAGE

SPARE = 1.0
"""Pixels by which tools let boxes reach over the border of an image; rows end there."""
FARTHEST = 2.0**31
"""Of a keypoint: no image is as large."""
Row = dict[str, Any]


def object_rows(image: ImportedImage, categories: Mapping[str, Category]) -> list[Row]:
    """An image's objects by falling score, without the columns that say of which image and model they are.

    Args:
        image: with its objects
        categories: by what the document calls them

    Raises:
        UserError: one is not what the table promises; says which.
    """
    if len(image.objects) > ROWS_PER_IMAGE:
        raise UserError(f"{image.key!r:.99} has {len(image.objects):,} objects, more than {ROWS_PER_IMAGE:,}")
    rows = [_checked(number, one, image, categories) for number, one in enumerate(image.objects)]
    return sorted(rows, key=lambda row: -row["score"])


def _checked(number: int, one: ImportedObject, image: ImportedImage, categories: Mapping[str, Category]) -> Row:
    try:
        return _row(one, image, categories)
    except UserError as error:
        which = f"object {number + 1}" if one.annotation_id is None else f"annotation {one.annotation_id}"
        raise UserError(f"{which} of {image.key!r:.99}: {error}") from None


def _row(one: ImportedObject, image: ImportedImage, categories: Mapping[str, Category]) -> Row:
    if one.category not in categories:
        raise UserError(f"there is no category {one.category!r:.99}")
    category, mask = categories[one.category], one.segmentation
    if mask is not None and mask.size != (image.height, image.width):
        raise UserError(
            "its mask is of {} x {} pixels, its image of {} x {}".format(*mask.size, image.height, image.width)
        )
    if mask is None and one.bbox is None:
        raise UserError("it has neither a box nor a mask")
    if not 0 <= one.score <= 1:
        raise UserError(f"its score is {one.score}: give a number from 0 to 1")
    sides = _box(one.bbox if one.bbox is not None else rle.bbox(mask), image)  # type: ignore[arg-type]
    return {
        "category_id": category.id,
        "category": category.name,
        "score": float(np.float32(one.score)),  # ranks follow what the table keeps
        "bbox": dict(zip(("x", "y", "width", "height"), sides, strict=True)),
        "area": sides[2] * sides[3] if mask is None else rle.area(mask),
        "segmentation": mask and mask.to_coco(),
        "keypoints": one.keypoints and _keypoints(one.keypoints, category),
        "iscrowd": one.iscrowd,
    }


def _box(sides: tuple[float, float, float, float], image: ImportedImage) -> list[float]:
    """The box as the table keeps it, float32, within the image."""
    x, y, width, height = sides
    if not (all(map(math.isfinite, sides)) and width >= 0 and height >= 0):
        raise UserError(f"its box is {list(sides)}: give x, y, width and height")
    over = max(-x, -y, x + width - image.width, y + height - image.height)
    if over > SPARE:
        size = f"{image.width} x {image.height} (width x height)"
        raise UserError(f"its box {list(sides)} reaches over the border of its image, of {size}")
    if over > 0:
        right, bottom = min(x + width, image.width), min(y + height, image.height)
        x, y = max(x, 0), max(y, 0)
        width, height = max(right - x, 0), max(bottom - y, 0)
    return np.array([x, y, width, height], np.float32).tolist()


def _keypoints(points: list[float], category: Category) -> list[float]:
    count = len(category.keypoints) if category.keypoints else len(points) // 3
    if (
        len(points) != 3 * count
        or not all(abs(point) < FARTHEST for point in points)
        or not {*points[2::3]} <= {0, 1, 2}
    ):
        raise UserError(f"its keypoints should be x, y and visibility (0, 1 or 2) of {count} points")
    return points
