"""How long the review server takes to answer, over a made-up job of 1,000,000 images and 10,000,000 objects.

    python benchmarks/review.py FOLDER [IMAGES]

The job is written into FOLDER (about 1 GB) unless it is there. The server is another process, as people start it; times
are those that a browser on this machine would see. Each filter is asked for the first time.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

from prelabel.pipeline.manifest import Manifest, checksum
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.job import Job, JobRecord
from prelabel.schemas.tables import ANNOTATIONS, BBOX, IMAGES, SEGMENTATION

IMAGES_OF_A_UNIT = 500
OBJECTS = 10
HEIGHT, WIDTH = 480, 640
FILES, FOLDERS = 200, 1_000
MODEL = "scenes:maskrcnn"
FILTERS = {
    "category and score": "category=3&min_score=0.9",
    "two categories, best first": "category=1&category=7&min_score=0.3&order=highest",
    "score, worst first": "max_score=0.5&order=lowest",
    "any score, best first": "order=highest",
    "part of a name": "text=471/../files/00",
    "failed": "status=failed",
    "no verdict": "verdict=none",
    "few objects": "max_objects=8",
    "SQL over images": "sql=num_annotations+%3C+8",
    "SQL over objects": "sql=area+%3E+90000+AND+score+%3E+0.99",
}


def write_job(folder: Path, images: int) -> None:
    """The job's manifest and parts."""
    digests = write_files(folder)
    for number in range(FOLDERS):  # so that an image has many names
        (folder / f"{number:03d}").mkdir()
    names = (f"{k % FOLDERS:03d}/../files/{k // FOLDERS % FILES:03d}.jpg\n" for k in range(images))
    (folder / "images.txt").write_text("".join(names))
    job = Job.of(folder / "images.txt", output=folder / "labels", model=MODEL, unit_images=IMAGES_OF_A_UNIT)
    manifest = Manifest(Storage(job.output))
    units, planned = manifest.write_plan(plan_units(job.labels))
    manifest.write_job(record_of(job, planned, units))
    masks = some_masks()
    for wave in manifest.waves(set()):
        for unit in wave:
            tables = {"images": images_of(unit, digests), "annotations": annotations_of(unit, masks)}
            write_unit(manifest, unit.number, tables, {}, {})
            print(f"\r{unit.number + 1} of {units} units written", end="", file=sys.stderr)
    print(file=sys.stderr)


def write_files(folder: Path) -> list[str]:
    """JPEGs of colored noise; their digests."""
    (folder / "files").mkdir(parents=True)
    rng, digests = np.random.default_rng(0), []
    for number in range(FILES):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((WIDTH, HEIGHT)).save(buffer, "JPEG")
        (folder / f"files/{number:03d}.jpg").write_bytes(buffer.getvalue())
        digests.append(checksum(buffer.getvalue()))
    return digests


def record_of(job: Job, images: int, units: int) -> JobRecord:
    categories = [{"id": number, "name": name, "isthing": 1} for number, name in enumerate(category_names())]
    return JobRecord(
        job=job,
        fingerprint="0" * 64,
        models=[{"name": MODEL, "digest": "0" * 64}],
        tasks=("detect", "segment_instances"),
        tables=("annotations", "images"),
        categories=categories,
        images=images,
        units=units,
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )


def category_names() -> list[str]:
    return [f"category {number}" for number in range(80)]


def some_masks() -> pa.Array:
    """Ellipses as COCO's runs."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rng, masks = np.random.default_rng(1), []
    for _ in range(300):
        top, left, high, wide = rng.uniform(0, 1, 4) * (HEIGHT, WIDTH, HEIGHT / 3, WIDTH / 3) + (0, 0, 8, 8)
        inside = ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1
        rle = coco_mask.encode(np.asfortranarray(inside.view(np.uint8)))
        masks.append({"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()})
    return pa.array(masks, SEGMENTATION)


def images_of(unit: Unit, digests: list[str]) -> pa.Table:
    ids = np.arange(unit.image_ids.start, unit.image_ids.stop)
    failed = ids % 1_000 == 999
    columns = facts_of(unit, ids) | {
        "digest": [digests[image // FOLDERS % FILES] for image in ids],
        "status": np.where(failed, "failed", "ok"),
        "error_code": pa.array(["truncated"] * len(ids), mask=~failed),
        "num_annotations": count(ids),
    }
    return table_of(columns, IMAGES)


def facts_of(unit: Unit, ids: np.ndarray) -> dict[str, object]:
    """Columns of images that all have one size."""
    return {
        "image_id": ids,
        "key": unit.keys,
        "uri": unit.keys,
        "shard": [unit.shard.uri] * len(ids),
        "unit": np.full(len(ids), unit.number, np.int32),
        "width": np.full(len(ids), WIDTH, np.int32),
        "height": np.full(len(ids), HEIGHT, np.int32),
        "orientation": np.ones(len(ids), np.int8),
        "format": ["jpeg"] * len(ids),
    }


def count(ids: np.ndarray) -> np.ndarray:
    """As many objects as an image has: OBJECTS on the average, none in those that failed."""
    return np.where(ids % 1_000 == 999, 0, OBJECTS - 4 + ids % 9)


def annotations_of(unit: Unit, masks: pa.Array) -> pa.Table:
    ids = np.arange(unit.image_ids.start, unit.image_ids.stop)
    counts = count(ids)
    images, number = np.repeat(ids, counts), int(counts.sum())
    rank = np.arange(number) - np.repeat(np.cumsum(counts) - counts, counts)
    rng = np.random.default_rng(unit.number)
    scores = rng.random(number)
    scores = scores[np.lexsort((-scores, images))].astype(np.float32)
    categories = (80 * rng.random(number) ** 2).astype(np.int32)
    corners, sides = rng.random((2, number)) * [[WIDTH / 2], [HEIGHT / 2]], rng.random((2, number)) * [[320], [240]] + 8
    boxes = [pa.array(one.astype(np.float32)) for one in (*corners, *sides)]
    columns = {
        "annotation_id": images * 65_536 + rank,
        "image_id": images,
        "category_id": categories,
        "category": np.array(category_names())[categories],
        "score": scores,
        "bbox": pa.StructArray.from_arrays(boxes, fields=list(BBOX)),
        "area": sides[0] * sides[1],
        "segmentation": masks.take(pa.array(rng.integers(0, len(masks), number))),
        "iscrowd": np.zeros(number, bool),
        "model": [MODEL] * number,
    }
    return table_of(columns, ANNOTATIONS)


def table_of(columns: dict[str, object], schema: pa.Schema) -> pa.Table:
    length = len(next(iter(columns.values())))  # type: ignore[arg-type]
    return pa.table(
        [
            pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(length, field.type)
            for field in schema
        ],
        schema=schema,
    )


def measure(labels: Path) -> None:
    """Starts the server, asks, prints."""
    command = [sys.executable, "-c", "from prelabel.pipeline.cli import main; main()", "review", str(labels)]
    began = time.perf_counter()
    server = subprocess.Popen([*command, "--no-open", "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        say("listening after", began)
        with httpx.Client(base_url=line.split(" at ")[1].split()[0], timeout=120) as client:
            ask_all(client, psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait()


def ask_all(client: httpx.Client, process: psutil.Process) -> None:
    began = time.perf_counter()
    images = ask(client, "first page", "/api/images")["total"]
    ask(client, "next page", "/api/images?offset=100")
    ask(client, "far page", f"/api/images?offset={images * 3 // 4}")
    ask(client, "an image", f"/api/images/{images // 3}")
    print(f"{'memory without the index':>32} {process.memory_info().rss / 2**20:8,.0f} MiB")
    while not client.get("/api/job").json()["ready"]:
        time.sleep(0.05)
    say("index built after", began)
    print(f"{'memory with the index':>32} {process.memory_info().rss / 2**20:8,.0f} MiB")
    for name, query in FILTERS.items():
        total = ask(client, name, f"/api/images?{query}")["total"]
        ask(client, f"next page ({total:,})", f"/api/images?{query}&offset={min(100, total // 2)}")
    ask(client, "next page of all", "/api/images?offset=200")
    ask(client, "progress", "/api/progress")
    thumbnails(client, images)
    print(f"{'memory at the end':>32} {process.memory_info().rss / 2**20:8,.0f} MiB")


def thumbnails(client: httpx.Client, images: int) -> None:
    """A page of them from all over the job, six at a time, as a browser asks."""
    began = time.perf_counter()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(client.get, [f"/api/images/{k * images // 100}/thumbnail" for k in range(100)]))
    assert all(answer.status_code == 200 for answer in answers), answers[0].text
    say("100 thumbnails of 100 units", began)


def ask(client: httpx.Client, what: str, url: str) -> dict[str, int]:
    began = time.perf_counter()
    answer = client.get(url)
    say(what, began)
    answer.raise_for_status()
    found: dict[str, int] = answer.json()
    return found


def say(what: str, began: float) -> None:
    print(f"{what:>32} {1_000 * (time.perf_counter() - began):8,.0f} ms", flush=True)


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    if not (target / "labels").exists():
        write_job(target, int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
    measure(target / "labels")
