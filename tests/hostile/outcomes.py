"""What becomes of a source: planned, read, decoded, labeled and written as a job does it, without Ray."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from jobs import record_of
from tiny_models import Channels

from prelabel.operators.base import Task
from prelabel.operators.label import Asked, Labeler, make_tables
from prelabel.operators.options import DEFAULTS
from prelabel.operators.registry import operators_for
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units, source_options
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import PrelabelError
from prelabel.schemas.job import Job
from prelabel.schemas.tables import file_metadata

LABELED = "labeled"


def plan(source: str, output: Path, **options: Any) -> Job:
    """Writes the plan of a job, as `run` does."""
    job = Job.of(source, output=str(output), model="python:tiny_models:channels", **options)
    manifest = Manifest(Storage(job.output))
    units, images = manifest.write_plan(plan_units(job.labels))
    manifest.write_job(record_of(job, images, units).model_copy(update={"categories": Channels.categories.to_coco()}))
    return job


def work(job: Job) -> LabelDataset:
    """Works the job's open units, as tasks and actors do."""
    manifest = Manifest(Storage(job.output))
    model = Channels()
    asked = [Asked(model, model.tasks, {one: one for one in model.categories.ids})]
    labeler = Labeler(asked, batch_size=4, max_pixels=job.labels.max_image_pixels, threads=2)
    operators = operators_for([Task.SEGMENT_INSTANCES], model.categories, DEFAULTS)
    for wave in manifest.waves(manifest.committed()):
        for unit in wave:
            rows = _read(job, unit)
            tables = make_tables(rows, labeler.look(rows), operators)
            write_unit(manifest, unit.number, tables, _metadata(model.categories), {})
    return LabelDataset(job.output)


def _read(job: Job, unit: Unit) -> pa.Table:
    rows = source_of_kind(unit.shard.kind, unit.shard.uri, source_options(job.labels)).read(unit)
    rows = rows.append_column("shard", pa.array([unit.shard.uri] * len(rows), pa.string()))
    return rows.append_column("unit", pa.array([unit.number] * len(rows), pa.int32()))


def _metadata(categories: CategorySet) -> dict[str, str]:
    return file_metadata("0" * 64, categories.to_json())


def rows_of(source: str, output: Path, **options: Any) -> list[dict[str, Any]] | str:
    """The rows of `images`, or the line that the job stops with."""
    try:
        images = work(plan(source, output, **options)).table("images").to_table()
    except PrelabelError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        return line
    return images.to_pylist()


def outcome_of(row: dict[str, Any]) -> str:
    """LABELED or the code."""
    return LABELED if row["status"] == "ok" else str(row["error_code"])


def outcomes(source: str, output: Path, **options: Any) -> list[tuple[str, str]] | str:
    """Key and outcome of each image, or the line that the job stops with."""
    rows = rows_of(source, output, **options)
    return rows if isinstance(rows, str) else [(row["key"], outcome_of(row)) for row in rows]


def everything_below(folder: Path) -> Iterable[str]:
    """The names of all files and folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
