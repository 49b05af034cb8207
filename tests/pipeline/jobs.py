"""Writes small jobs with made-up labels, for tests of what keeps and reads them: no network, no Ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from shards import tiny_images, write_files

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.job import Job, JobRecord, fingerprint
from prelabel.schemas.tables import ANNOTATIONS, IMAGES, file_metadata

HEIGHT, WIDTH = 24, 32
FAILED = 4
"""The image_id of the one that can't be read."""
CATEGORIES = CategorySet([Category(2, "ball"), Category(5, "leaf", "plant")])
MODEL = "scenes:maskrcnn"


def write_images(folder: str, count: int = 7) -> str:
    write_files(folder, tiny_images(count))
    return folder


def job_of(source: str, output: str, **options: Any) -> Job:
    return Job.of(source, output=output, model=MODEL, **{"unit_images": 3} | options)


def record_of(job: Job, images: int, units: int) -> JobRecord:
    return JobRecord(
        job=job,
        fingerprint=fingerprint(job.labels, ["weights"], CATEGORIES.digest),
        models=[{"name": MODEL, "digest": "weights"}],
        tasks=("detect", "segment_instances"),
        tables=("annotations", "images"),
        categories=CATEGORIES.to_coco(),
        images=images,
        units=units,
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )


def metadata_of(job: Job) -> dict[str, str]:
    return file_metadata(record_of(job, 0, 0).fingerprint, CATEGORIES.to_json())


def ring(k: int) -> np.ndarray:
    """The mask of an image's k-th object, which has a hole: bool (HEIGHT, WIDTH)."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2 + k : 14 + k, 3 + 2 * k : 17 + 2 * k] = True
    mask[6 + k : 9 + k, 7 + 2 * k : 11 + 2 * k] = False
    return mask


def image_row(unit: Unit, position: int) -> dict[str, Any]:
    image_id = unit.first_image_id + position
    row = {
        "image_id": image_id,
        "key": unit.keys[position],
        "uri": f"{unit.shard.uri}/{unit.keys[position]}",
        "shard": unit.shard.uri,
        "unit": unit.number,
        "num_bytes": int(unit.sizes[position]),
        "digest": "0" * 64,
    }
    if image_id == FAILED:
        return row | {"status": "failed", "error_code": "truncated", "error": "cut off", "num_annotations": 0}
    facts = {"width": WIDTH, "height": HEIGHT, "orientation": 1, "format": "png"}
    return row | facts | {"status": "ok", "num_annotations": image_id % 3}


def annotation_row(image_id: int, rank: int) -> dict[str, Any]:
    mask = rle.encode(ring(rank))
    x, y, width, height = rle.bbox(mask)
    category = list(CATEGORIES)[(image_id + rank) % 2]
    return {
        "annotation_id": image_id * 65_536 + rank,
        "image_id": image_id,
        "category_id": category.id,
        "category": category.name,
        "score": 0.9 - 0.1 * rank,
        "bbox": {"x": x, "y": y, "width": width, "height": height},
        "area": rle.area(mask),
        "segmentation": mask.to_coco(),
        "iscrowd": False,
        "model": MODEL,
    }


def tables_of(unit: Unit) -> dict[str, pa.Table]:
    """What operators might find in a unit: image_id % 3 objects, none in the image that failed."""
    images = [image_row(unit, position) for position in range(len(unit))]
    annotations = [annotation_row(row["image_id"], rank) for row in images for rank in range(row["num_annotations"])]
    return {
        "images": pa.Table.from_pylist(images, schema=IMAGES),
        "annotations": pa.Table.from_pylist(annotations, schema=ANNOTATIONS),
    }


def plan(storage: Storage, job: Job) -> JobRecord:
    """As `run` begins."""
    manifest = Manifest(storage)
    manifest.check_free()
    units, images = manifest.write_plan(plan_units(job.labels))
    record = record_of(job, images, units)
    manifest.write_job(record)
    return record


def work(storage: Storage, job: Job, units: Iterable[Unit]) -> None:
    for unit in units:
        write_unit(Manifest(storage), unit.number, tables_of(unit), metadata_of(job), {"label_seconds": 1.5})


def pending(storage: Storage) -> list[Unit]:
    manifest = Manifest(storage)
    return [unit for wave in manifest.waves(manifest.committed()) for unit in wave]


def write_job(source: str, output: str, units: int | None = None, **options: Any) -> LabelDataset:
    """A job over the source's images of which all units, or the first few, are committed."""
    storage, job = Storage(output), job_of(source, output, **options)
    plan(storage, job)
    work(storage, job, pending(storage)[:units])
    return LabelDataset(output)


def files_of(url: str) -> dict[str, bytes]:
    """Every file under a URL, by its path there."""
    fs, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)} if fs.exists(root) else {}
