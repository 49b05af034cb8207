"""Writes the jobs that `scale.py` exports, and the mask of those whose units it counts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from exports import CATEGORIES, images_of, measured, objects_of
from pycocotools import mask as coco_mask
from review import HEIGHT, MODEL, OBJECTS, WIDTH, record_of, table_of

from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.job import Job, JobRecord
from prelabel.schemas.tables import ANNOTATIONS, ROWS_PER_IMAGE, SEGMENTATION

IMAGES_OF_A_UNIT = 500
MASKS = 2_000
"""Different ones: more than a row group has rows, so that Parquet does not write each once and a number for it."""


@cache
def some_masks(number: int) -> pa.Table:
    """Different ellipses, as many small ones as large ones, with their boxes and areas."""
    rng, masks = np.random.default_rng(1), []
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(number):
        top, left = rng.random(2) * (HEIGHT, WIDTH)
        high, wide = 4 * (HEIGHT / 12, WIDTH / 12) ** rng.random(2)
        inside = ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1
        counts = coco_mask.encode(np.asfortranarray(inside.view(np.uint8)))["counts"].decode()
        masks.append({"size": [HEIGHT, WIDTH], "counts": counts})
    return measured(pa.array(masks, SEGMENTATION))


MASK = some_masks(1)


def write_job(folder: Path, units: int) -> None:
    """A job of so many units, of 500 images with ten objects each; all units have the same masks."""
    folder.mkdir(parents=True)
    images = units * IMAGES_OF_A_UNIT
    (folder / "images.txt").write_text("".join(f"{folder}/{k:07d}.jpg\n" for k in range(images)))
    output = folder / "labels"
    job = Job.of(folder / "images.txt", output=output, model=MODEL, unit_images=IMAGES_OF_A_UNIT)
    manifest = Manifest(Storage(str(output)))
    manifest.write_plan(plan_units(job.labels))
    record: JobRecord = record_of(job, images, units)
    manifest.write_job(record.model_copy(update={"categories": CATEGORIES.to_coco()}))
    number = IMAGES_OF_A_UNIT * OBJECTS
    columns = objects_of(np.arange(IMAGES_OF_A_UNIT), OBJECTS, some_masks(MASKS), 0)
    rows = table_of(columns | {"keypoints": pa.nulls(number, ANNOTATIONS.field("keypoints").type)}, ANNOTATIONS)
    write = partial(_write_unit, manifest, rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for wave in manifest.waves(set()):
            list(pool.map(write, wave))


def _write_unit(manifest: Manifest, rows: pa.Table, unit: Unit) -> None:
    ids = np.arange(unit.image_ids.start, unit.image_ids.stop)
    for place, name, each in ((0, "annotation_id", ROWS_PER_IMAGE), (1, "image_id", 1)):
        moved = pc.add(rows[name], pa.scalar(unit.first_image_id * each, pa.int64()))
        rows = rows.set_column(place, ANNOTATIONS.field(name), moved)
    write_unit(manifest, unit.number, {"images": images_of(unit, ids), "annotations": rows}, {}, {})
