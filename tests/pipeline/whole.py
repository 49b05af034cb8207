"""A job with rows of every table, for tests of what proves it, on a file system in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from fsspec.implementations.memory import MemoryFileSystem
from jobs import CATEGORIES, files_of, image_row, job_of, record_of, ring
from labels import POSED, Row, rows_of_everything, segment_row

from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.manifest import Manifest, to_json
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.job import JobRecord, fingerprint
from prelabel.schemas.tables import ADDED, TABLES, file_metadata

OUTPUT = "memory://labels"
Change = Callable[[dict[str, list[Row]]], object]


def rows_of(image: Row) -> dict[str, list[Row]]:
    """Every table's rows of an image, with panoptic and semantic segments, and labels in the image's own row."""
    tables = rows_of_everything(image)
    layer = [segment_row(image["image_id"], 1_000_001, CATEGORIES[2], ring(0), "semantic")]
    for segment, one in zip(tables["segments"], tables["annotations"], strict=True):
        segment["annotation_id"] = one["annotation_id"]
    labels = [
        {"category_id": 5, "category": "leaf", "score": 0.75},
        {"category_id": 2, "category": "ball", "score": 0.5},
    ]
    if image["status"] == "ok":
        image["labels"] = labels
    if tables["segments"]:
        tables["segments"] += layer
    return tables | {"images": [image]}


def tables_of(unit: Unit) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {name: [] for name in TABLES if name not in ADDED}
    for position in range(len(unit)):
        for name, rows in rows_of(image_row(unit, position)).items():
            tables[name] += rows
    return tables


class Made:
    """A finished job, which each test finds whole."""

    def __init__(self, source: str) -> None:
        self.job = job_of(source, OUTPUT)
        self.units = list(plan_units(self.job.labels))
        print_ = fingerprint(self.job.labels, ["weights"], POSED.digest)
        changes = {
            "fingerprint": print_,
            "categories": POSED.to_coco(),
            "tables": tuple(sorted(tables_of(self.units[0]))),
        }
        self.record: JobRecord = record_of(self.job, 7, 3).model_copy(update=changes)
        self.metadata = file_metadata(print_, POSED.to_json())
        clear()
        storage = Storage(OUTPUT)
        Manifest(storage).write_plan(self.units)
        Manifest(storage).write_job(self.record)
        for unit in self.units:
            self.write(unit.number)
        write_reviews(open_dataset(OUTPUT), "anna", [Review(0, verdict="accept"), Review(1, 65_536, "reject", "no")])
        self.files = files_of(OUTPUT)

    def write(self, number: int, change: Change = id) -> None:
        """A unit's parts, with right checksums, of rows that are wrong in one way."""
        tables = tables_of(self.units[number])
        change(tables)
        arrow = {name: pa.Table.from_pylist(rows, schema=TABLES[name]) for name, rows in tables.items()}
        write_unit(Manifest(Storage(OUTPUT)), number, arrow, self.metadata, {"rows": 1.5})


def clear() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def restore(files: dict[str, bytes]) -> None:
    clear()
    for name, data in files.items():
        Storage(OUTPUT).put(name.lstrip("/"), data)


def edit(storage: Storage, name: str, change: Callable[[Any], object]) -> None:
    """Changes a JSON file."""
    content = json.loads(storage.read(name))
    change(content)
    storage.put(name, to_json(content))


def damage(data: bytes, chance: random.Random) -> bytes:
    """The bytes cut off, or with one bit flipped."""
    if chance.random() < 0.1:
        return data[: chance.randrange(len(data))]
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
