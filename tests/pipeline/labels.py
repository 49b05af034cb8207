"""Writes small jobs of which a test says every row, on top of those of `jobs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from jobs import CATEGORIES, MODEL, annotation_row, image_row, job_of, metadata_of, pending, plan, ring

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas import rle
from prelabel.schemas.categories import COCO_PERSON, Category, CategorySet
from prelabel.schemas.tables import TABLES

Row = dict[str, Any]
POSED = CategorySet(
    Category(one.id, one.name, one.supercategory, keypoints=COCO_PERSON[1].keypoints, skeleton=COCO_PERSON[1].skeleton)
    for one in CATEGORIES
)


def box(*sides: float) -> Row:
    return dict(zip(("x", "y", "width", "height"), map(float, sides), strict=True))


def segment_row(image_id: int, segment_id: int, category: Category, mask: Any, kind: str = "panoptic") -> Row:
    """A row of the segments table from a bool (H, W) mask."""
    runs = rle.encode(mask)
    return {
        "segment_id": segment_id,
        "image_id": image_id,
        "category_id": category.id,
        "category": category.name,
        "isthing": category.isthing,
        "area": rle.area(runs),
        "bbox": box(*rle.bbox(runs)),
        "segmentation": runs.to_coco(),
        "kind": kind,
        "model": MODEL,
    }


def keypoints_of(rank: int) -> list[float]:
    """17 points within an image's object of that rank, the last one not placed."""
    return [value for k in range(16) for value in (4.5 + 2 * rank + k / 2, 3.25 + rank + k / 2, 2)] + [0, 0, 0]


def rows_of_everything(image: Row) -> dict[str, list[Row]]:
    """The objects of `jobs` with keypoints, as many panoptic segments, and a proposal at each object."""
    objects = [annotation_row(image["image_id"], rank) for rank in range(image["num_annotations"])]
    masks = [ring(0), ~ring(0)]
    return {
        "annotations": [row | {"keypoints": keypoints_of(rank)} for rank, row in enumerate(objects)],
        "segments": [
            segment_row(image["image_id"], rank + 1, CATEGORIES[row["category_id"]], masks[rank])
            for rank, row in enumerate(objects)
        ],
        "proposals": [
            {"proposal_id": row["annotation_id"]} | {name: row[name] for name in ("image_id", "score", "bbox", "model")}
            for row in objects
        ],
    }


def write_labels(
    source: str,
    output: str,
    rows: Callable[[Row], dict[str, list[Row]]],
    tasks: Iterable[str],
    categories: CategorySet = CATEGORIES,
    units: int | None = None,
    models: Iterable[str] = (MODEL,),
) -> LabelDataset:
    """A job over the source's images whose tables, but for `images`, hold what `rows` says of each image's row."""
    storage, job = Storage(output), job_of(source, output)
    record = plan(storage, job)
    work = [(unit.number, _tables(unit, rows)) for unit in pending(storage)]
    changes = {"tables": tuple(sorted(work[0][1])), "tasks": tuple(tasks), "categories": categories.to_coco()}
    changes["models"] = [{"name": name, "digest": "weights"} for name in models]
    Manifest(storage).write_job(record.model_copy(update=changes))
    for number, tables in work[:units]:
        write_unit(Manifest(storage), number, tables, metadata_of(job), {})
    return LabelDataset(output)


def _tables(unit: Unit, rows: Callable[[Row], dict[str, list[Row]]]) -> dict[str, pa.Table]:
    images = [image_row(unit, position) for position in range(len(unit))]
    found: dict[str, list[Row]] = {"images": images}
    for image in images:
        for name, some in rows(image).items():
            found.setdefault(name, []).extend(some)
    return {name: pa.Table.from_pylist(some, schema=TABLES[name]) for name, some in found.items()}
