"""From predictions to rows of the tables: the columns that operators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Instances, Segments
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.tables import ANNOTATIONS, BBOX, NAME, ROWS_PER_IMAGE, SEGMENTATION, SEGMENTS

_NO_ANNOTATIONS = ANNOTATIONS.empty_table()


def constant(value: str, count: int) -> pa.DictionaryArray:
    """A dictionary column that says the same `count` times."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value], pa.string()))


def names_of(category_ids: np.ndarray, categories: CategorySet) -> pa.DictionaryArray:
    """The categories' names as a dictionary column."""
    return pa.array([categories[one].name for one in category_ids.tolist()], pa.string()).cast(NAME)


def bbox_column(x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray) -> pa.StructArray:
    """COCO boxes as structs of float32."""
    sides = [pa.array(side.astype(np.float32, copy=False)) for side in (x, y, width, height)]
    return pa.StructArray.from_arrays(sides, fields=list(BBOX))


def corners_to_bbox(boxes: np.ndarray) -> pa.StructArray:
    """Boxes (N, 4) of x0 y0 x1 y1 as COCO's structs."""
    x0, y0, x1, y1 = boxes.astype(np.float32, copy=False).T
    return bbox_column(x0, y0, x1 - x0, y1 - y0)


def segmentation_column(masks: Sequence[MaskRuns], image: ImageInfo) -> pa.StructArray:
    """The masks as structs of (height, width) and COCO's compressed counts."""
    sizes = np.tile(np.array([image.height, image.width], np.int32), len(masks))
    counts = pa.array([mask.rle.counts for mask in masks], pa.string())
    size_column = pa.FixedSizeListArray.from_arrays(pa.array(sizes), type=SEGMENTATION.field("size").type)
    return pa.StructArray.from_arrays([size_column, counts], fields=list(SEGMENTATION))


def row_ids(image: ImageInfo, ranks: np.ndarray) -> np.ndarray:
    """int64 ids of an image's rows."""
    return image.image_id * ROWS_PER_IMAGE + ranks


def in_order(parts: Sequence[pa.Table], ranks: Sequence[np.ndarray]) -> pa.Table:
    """The rows of some models by rank; those beyond ROWS_PER_IMAGE, which no id could be given, are left out."""
    if len(parts) == 1:
        return parts[0].slice(0, ROWS_PER_IMAGE)
    order = np.argsort(np.concatenate(ranks))
    return pa.concat_tables(parts).unify_dictionaries().take(pa.array(order[:ROWS_PER_IMAGE]))


def ranks_of(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each model's scores, their places in the image's order: by descending score, ties in the models' order."""
    together = np.concatenate([np.zeros(0, np.float32), *scores])
    ranks = np.empty(len(together), np.int64)
    ranks[np.argsort(-together, kind="stable")] = np.arange(len(together))
    return np.split(ranks, np.cumsum([len(one) for one in scores], dtype=np.int64))[: len(scores)]


def instances_of(answers: Sequence[Answer]) -> list[tuple[str, Instances]]:
    """The models that found objects, or looked for some, and what they found."""
    return [(model, found) for model, answer in answers if (found := answer.instances) is not None]


def annotation_rows(image: ImageInfo, answers: Sequence[Answer], categories: CategorySet) -> pa.Table:
    """Rows of the annotations table for the objects that an image's models found, ranked by descending score.

    `area` is the mask's; the box's where there is no mask.
    """
    found = [(model, instances) for model, instances in instances_of(answers) if instances]
    if not found:  # as for most images of some jobs, which then cost nothing here
        return _NO_ANNOTATIONS
    ranks = ranks_of([instances.scores for _, instances in found])
    parts = [
        _annotation_rows(image, instances, model, categories, row_ids(image, rank))
        for (model, instances), rank in zip(found, ranks, strict=True)
    ]
    return in_order(parts, ranks)


def _annotation_rows(
    image: ImageInfo, found: Instances, model: str, categories: CategorySet, ids: np.ndarray
) -> pa.Table:
    count, boxes = len(found), found.boxes.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    columns: dict[str, Any] = {
        "annotation_id": pa.array(ids),
        "image_id": pa.array(np.full(count, image.image_id)),
        "category_id": pa.array(found.category_ids, pa.int32()),
        "category": names_of(found.category_ids, categories),
        "score": pa.array(found.scores, pa.float32()),
        "bbox": corners_to_bbox(found.boxes),
        "area": pa.array(areas if found.masks is None else [mask.area for mask in found.masks], pa.float64()),
        "segmentation": pa.nulls(count, SEGMENTATION)
        if found.masks is None
        else segmentation_column(found.masks, image),
        "keypoints": pa.nulls(count, ANNOTATIONS.field("keypoints").type)
        if found.keypoints is None
        else pa.array([one.ravel() for one in found.keypoints], ANNOTATIONS.field("keypoints").type),
        "iscrowd": pa.array(np.zeros(count, np.bool_)),
        "model": constant(model, count),
    }
    return pa.Table.from_arrays([columns[name] for name in ANNOTATIONS.names], schema=ANNOTATIONS)


def segment_rows(
    image: ImageInfo,
    segments: Segments,
    categories: CategorySet,
    *,
    kind: str,
    model: str | Sequence[str],
    first_id: int,
    annotation_ids: Sequence[int | None] | None = None,
) -> pa.Table:
    """Rows of the segments table for an image's segments.

    Args:
        image: which they are of
        segments: N of them; a score of NaN is null
        categories: name them, and tell things from stuff
        kind: "panoptic" or "semantic"
        model: the name of theirs, or of each one's
        first_id: the segment_id of the first one; the others follow
        annotation_ids: of the annotation that each came from, None for those that came from none
    """
    count = len(segments)
    boxes = np.array([mask.bbox for mask in segments.masks], np.float32).reshape(count, 4)
    columns: dict[str, Any] = {
        "segment_id": pa.array(np.arange(first_id, first_id + count), pa.int32()),
        "image_id": pa.array(np.full(count, image.image_id)),
        "category_id": pa.array(segments.category_ids, pa.int32()),
        "category": names_of(segments.category_ids, categories),
        "isthing": pa.array([categories[one].isthing for one in segments.category_ids.tolist()], pa.bool_()),
        "score": pa.nulls(count, pa.float32())
        if segments.scores is None
        else pa.array(segments.scores, pa.float32(), from_pandas=True),
        "area": pa.array([mask.area for mask in segments.masks], pa.int64()),
        "bbox": bbox_column(*boxes.T),
        "segmentation": segmentation_column(segments.masks, image),
        "annotation_id": pa.array([None] * count if annotation_ids is None else annotation_ids, pa.int64()),
        "kind": constant(kind, count),
        "model": constant(model, count) if isinstance(model, str) else pa.array(model, pa.string()).cast(NAME),
    }
    return pa.Table.from_arrays([columns[name] for name in SEGMENTS.names], schema=SEGMENTS)
