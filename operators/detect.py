"""detect: boxes with a category and a score."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa

from prelabel.operators.base import ImageInfo, Instances, Model, Operator, Prediction, Task
from prelabel.schemas.tables import ANNOTATIONS, ANNOTATIONS_PER_IMAGE, BBOX, NAME


def constant_names(value: str, count: int) -> pa.DictionaryArray:
    """A dictionary column that says the same `count` times."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value], pa.string()))


def annotation_rows(
    image: ImageInfo,
    found: Instances,
    model: Model,
    areas: np.ndarray,
    segmentation: pa.Array | None = None,
) -> pa.Table:
    """Rows of the annotations table for one image's objects, ranked by descending score.

    Args:
        image: the image they are in
        found: N objects
        model: names the categories and itself
        areas: float64 (N,) square pixels
        segmentation: N structs of the annotations table's segmentation; None: the objects have no masks
    """
    count = len(found)
    if count > ANNOTATIONS_PER_IMAGE:
        raise ValueError(f"image {image.image_id}: {count} objects, at most {ANNOTATIONS_PER_IMAGE} have ids")
    x0, y0, x1, y1 = found.boxes.astype(np.float32, copy=False).T
    columns = {
        "annotation_id": pa.array(image.image_id * ANNOTATIONS_PER_IMAGE + np.arange(count)),
        "image_id": pa.array(np.full(count, image.image_id)),
        "category_id": pa.array(found.category_ids, pa.int32()),
        "category": pa.array([model.categories[i].name for i in found.category_ids.tolist()], pa.string()).cast(NAME),
        "score": pa.array(found.scores, pa.float32()),
        "bbox": pa.StructArray.from_arrays([pa.array(side) for side in (x0, y0, x1 - x0, y1 - y0)], fields=list(BBOX)),
        "area": pa.array(areas, pa.float64()),
        "segmentation": pa.nulls(count, ANNOTATIONS.field("segmentation").type)
        if segmentation is None
        else segmentation,
        "keypoints": pa.nulls(count, ANNOTATIONS.field("keypoints").type),
        "iscrowd": pa.array(np.zeros(count, np.bool_)),
        "model": constant_names(model.name, count),
    }
    return pa.Table.from_arrays([columns[name] for name in ANNOTATIONS.names], schema=ANNOTATIONS)


class Detect(Operator):
    """One annotation per object, with a box and no mask."""

    task: ClassVar[Task] = Task.DETECT
    table: ClassVar[str] = "annotations"

    def rows(self, image: ImageInfo, prediction: Prediction, model: Model) -> pa.Table:
        """The image's objects; `area` is the box's."""
        assert prediction.instances is not None, f"{model.name} was asked to detect and returned no instances"
        boxes = prediction.instances.boxes.astype(np.float64)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return annotation_rows(image, prediction.instances, model, areas)
