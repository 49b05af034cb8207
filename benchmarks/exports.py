"""How fast each export writes, and in how much memory, over a made-up job of 1,000,000 objects in 100,000 images.

    python benchmarks/exports.py FOLDER FORMAT...

The job is written into FOLDER (about 100 MB for 1,000,000 objects) unless it is there; ANNOTATIONS=N makes another
number of them, rounded down to whole images. Every object has a mask, those of the first category have keypoints as
well, and each image has two panoptic segments and two proposals. Each format is written by a process of its own,
without images, and removed again; KEEP=1 leaves it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import forget_peak, peak_memory
from pycocotools import mask as coco_mask
from review import HEIGHT, IMAGES_OF_A_UNIT, MODEL, OBJECTS, WIDTH, facts_of, record_of, some_masks, table_of

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.categories import COCO_PERSON, Category, CategorySet
from prelabel.schemas.job import Job
from prelabel.schemas.tables import ANNOTATIONS, BBOX, IMAGES, PROPOSALS, ROWS_PER_IMAGE, SEGMENTATION, SEGMENTS

POINTS = COCO_PERSON[1].keypoints
CATEGORIES = CategorySet(
    Category(number, f"category {number}", keypoints=None if number else POINTS) for number in range(80)
)
TASKS = ("detect_keypoints", "fuse_panoptic", "propose", "segment_instances")


def write_job(folder: Path, images: int) -> None:
    """The job's manifest and parts; there are no image files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{folder}/{k // 1_000:03d}/photo {k:07d}.jpg\n" for k in range(images))
    (folder / "images.txt").write_text("".join(names))
    job = Job.of(folder / "images.txt", output=folder / "labels", model=MODEL, unit_images=IMAGES_OF_A_UNIT)
    manifest = Manifest(Storage(job.output))
    units, planned = manifest.write_plan(plan_units(job.labels))
    tables = ("annotations", "images", "proposals", "segments")
    changes = {"categories": CATEGORIES.to_coco(), "tables": tables, "tasks": TASKS}
    manifest.write_job(record_of(job, planned, units).model_copy(update=changes))
    masks, halves = measured(some_masks()), measured(halves_of_an_image())
    for wave in manifest.waves(set()):
        for unit in wave:
            write_unit(manifest, unit.number, tables_of(unit, masks, halves), {}, {})
            print(f"\r{unit.number + 1} of {units} units written", end="", file=sys.stderr)
    print(file=sys.stderr)


def tables_of(unit: Unit, masks: pa.Table, halves: pa.Table) -> dict[str, pa.Table]:
    """OBJECTS in each image, two panoptic segments (its left and its right half) and two proposals."""
    ids = np.arange(unit.image_ids.start, unit.image_ids.stop)
    objects = objects_of(ids, OBJECTS, masks, unit.number)
    segments = objects_of(ids, 2, halves, unit.number) | {
        "segment_id": np.tile([1, 2], len(ids)),
        "isthing": np.ones(2 * len(ids), bool),
        "kind": ["panoptic"] * 2 * len(ids),
    }
    segments |= columns_of(halves.take(pa.array(np.tile([0, 1], len(ids)))))
    segments["annotation_id"] = pa.nulls(2 * len(ids), pa.int64())
    proposals = objects_of(ids, 2, masks, unit.number)
    return {
        "images": images_of(unit, ids),
        "annotations": table_of(objects, ANNOTATIONS),
        "segments": table_of(segments, SEGMENTS),
        "proposals": table_of({"proposal_id": proposals.pop("annotation_id"), **proposals}, PROPOSALS),
    }


def images_of(unit: Unit, ids: np.ndarray) -> pa.Table:
    columns = facts_of(unit, ids) | {
        "num_bytes": np.full(len(ids), 1_000),
        "digest": ["0" * 64] * len(ids),
        "status": ["ok"] * len(ids),
        "num_annotations": np.full(len(ids), OBJECTS, np.int32),
    }
    return table_of(columns, IMAGES)


def objects_of(ids: np.ndarray, each: int, masks: pa.Table, seed: int) -> dict[str, object]:
    """Columns of `each` objects in each image, best first."""
    rng, number = np.random.default_rng(seed), each * len(ids)
    scores = -np.sort(-rng.random((len(ids), each), np.float32), axis=1).ravel()
    categories = (80 * rng.random(number) ** 2).astype(np.int32)
    chosen = masks.take(pa.array(rng.integers(0, len(masks), number)))
    return {
        "annotation_id": np.repeat(ids * ROWS_PER_IMAGE, each) + np.tile(np.arange(each), len(ids)),
        "image_id": np.repeat(ids, each),
        "category_id": categories,
        "category": np.array(CATEGORIES.names)[categories],
        "score": scores,
        "keypoints": pa.array([points(rng) if number == 0 else None for number in categories], pa.list_(pa.float32())),
        "iscrowd": np.zeros(number, bool),
        "model": [MODEL] * number,
    } | columns_of(chosen)


def columns_of(table: pa.Table) -> dict[str, object]:
    return {name: table[name].combine_chunks() for name in table.column_names}


def measured(masks: pa.Array) -> pa.Table:
    """Masks and what follows from them: the columns segmentation, bbox and area."""
    runs = masks.to_pylist()
    boxes = pa.StructArray.from_arrays(list(coco_mask.toBbox(runs).astype(np.float32).T), fields=list(BBOX))
    return pa.table({"segmentation": masks, "bbox": boxes, "area": [float(coco_mask.area(one)) for one in runs]})


def points(rng: np.random.Generator) -> np.ndarray:
    """x, y and visibility of 17 points anywhere in the image."""
    places = rng.random((17, 3)) * (WIDTH, HEIGHT, 0) + (0, 0, 2)
    return places.astype(np.float32).ravel()


def halves_of_an_image() -> pa.Array:
    sides = np.arange(WIDTH)[None, :] < WIDTH // 2
    masks = [np.asfortranarray(np.broadcast_to(inside, (HEIGHT, WIDTH)).view(np.uint8)) for inside in (sides, ~sides)]
    runs = [coco_mask.encode(mask)["counts"].decode() for mask in masks]
    return pa.array([{"size": [HEIGHT, WIDTH], "counts": counts} for counts in runs], SEGMENTATION)


def measure(name: str, labels: Path, folder: Path) -> None:
    """Writes one export, in a process of its own; prints."""
    exporter, to = exporter_of(name), folder / f"export-{name}"
    place = to / f"labels{exporter.suffix}"
    forget_peak()
    before = peak_memory()
    began, busy = time.perf_counter(), time.process_time()
    summary = exporter.write(LabelDataset(str(labels)), str(place))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    written = sum(file.stat().st_size for file in to.rglob("*") if file.is_file()) / 1e6
    speeds = f"{summary.annotations / seconds:>7,.0f} /s, {written:>6,.0f} MB, {written / seconds:>5.1f} MB/s"
    times = f"{summary.annotations:>9,} objects {seconds:>7.1f} s ({busy:.1f} s of a core)"
    print(f"{name:>16} {times}, {speeds}, {peak_memory():.0f} MiB at most ({before:.0f} before)", flush=True)
    if os.environ.get("KEEP") != "1":
        shutil.rmtree(to)


def main() -> None:
    folder, names = Path(sys.argv[1]).absolute(), sys.argv[2:]
    if not (folder / "labels").exists():
        write_job(folder, int(os.environ.get("ANNOTATIONS", "1000000")) // OBJECTS)
    for name in names:
        process = get_context("spawn").Process(target=measure, args=(name, folder / "labels", folder))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{name:>20} failed", file=sys.stderr)


if __name__ == "__main__":
    main()
