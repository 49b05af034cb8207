"""An image's labels as the page takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from prelabel.pipeline.review.units import Units

Row = dict[str, Any]
PROPOSALS = 100
OBJECT = ["annotation_id", "category_id", "score", "bbox", "segmentation", "keypoints", "iscrowd", "model"]
SEGMENT = ["segment_id", "category_id", "isthing", "score", "bbox", "segmentation", "kind", "model"]


def labels_of(units: Units, image_id: int) -> dict[str, list[Row]]:
    """The annotations, segments and best proposals of an image."""
    ids = np.array([image_id])
    proposals = units.rows("proposals", ids, ["bbox", "score"]).slice(0, PROPOSALS)
    return {
        "annotations": [_flat(row) for row in units.rows("annotations", ids, OBJECT).to_pylist()],
        "segments": [_flat(row) for row in units.rows("segments", ids, SEGMENT).to_pylist()],
        "proposals": [row | {"bbox": _box(row["bbox"])} for row in proposals.to_pylist()],
    }


def _flat(row: Row) -> Row:
    """With the box as a list, and the mask's size and runs beside it."""
    mask = row.pop("segmentation") or {"size": None, "counts": None}
    return row | {"bbox": _box(row["bbox"])} | mask


def _box(box: Row) -> list[float]:
    return [box[side] for side in ("x", "y", "width", "height")]
