"""Rows of images that are worked again take the place of the old ones, whole, whenever the process dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jobs import (
    FAILED,
    annotation_row,
    files_of,
    image_row,
    job_of,
    metadata_of,
    pending,
    plan,
    tables_of,
    write_images,
)

from prelabel.pipeline.amend import amend_unit, failed_images, finish_amending
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.validate import validate
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.errors import JobError
from prelabel.schemas.job import Job
from prelabel.schemas.tables import ANNOTATIONS, IMAGES

OUTPUT = "memory://labels"


class CrashError(BaseException):
    pass


class Crashing(Storage):
    """Changes so many files, and no more."""

    def __init__(self, url: str, changes: int) -> None:
        super().__init__(url)
        self.changes = changes

    def put(self, name: str, data: bytes) -> None:
        self._change(lambda: Storage.put(self, name, data))

    def delete(self, name: str) -> None:
        self._change(lambda: Storage.delete(self, name))

    def _change(self, make: Callable[[], None]) -> None:
        if self.changes == 0:
            raise CrashError
        self.changes -= 1
        make()


@pytest.fixture
def job(tmp_path: Any) -> Job:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return job_of(write_images(str(tmp_path / "in")), OUTPUT)


def mended(unit: Unit) -> dict[str, pa.Table]:
    """What operators find once the image that failed can be read: one object in it."""
    row = image_row(unit, 0) | {"error_code": None, "error": None, "status": "ok", "num_annotations": 1}
    row |= {"image_id": FAILED, "key": unit.keys[FAILED - unit.first_image_id], "width": 32, "height": 24}
    row |= {"uri": f"{unit.shard.uri}/{row['key']}", "orientation": 1, "format": "png"}
    return {
        "images": pa.Table.from_pylist([row], schema=IMAGES),
        "annotations": pa.Table.from_pylist([annotation_row(FAILED, 0)], schema=ANNOTATIONS),
    }


def begin(job: Job) -> tuple[Manifest, Unit]:
    """The job with all its units, and the one with the image that failed."""
    plan(Storage(OUTPUT), job)
    units = pending(Storage(OUTPUT))
    manifest = Manifest(Storage(OUTPUT))
    for unit in units:
        write_unit(manifest, unit.number, tables_of(unit), metadata_of(job), {"rows": 1.0})
    (number,) = manifest.with_failed_images()
    return manifest, units[number]


def rows() -> dict[str, list[dict[str, Any]]]:
    return {name: LabelDataset(OUTPUT).table(name).to_table().to_pylist() for name in ("images", "annotations")}


def test_whenever_the_process_dies_the_rows_are_the_old_or_the_new(job: Job) -> None:
    manifest, unit = begin(job)
    assert failed_images(manifest, unit).image_ids == (FAILED,)
    before, old = rows(), files_of(OUTPUT)
    amend_unit(manifest, unit.number, mended(unit), metadata_of(job), {"rows": 1.0})
    after, new = rows(), parts_of(files_of(OUTPUT))
    assert [row["status"] for row in after["images"]] == ["ok"] * len(before["images"])
    assert [row for row in after["annotations"] if row["image_id"] != FAILED] == before["annotations"]
    assert not any("amended" in name for name in files_of(OUTPUT))
    seen = set()
    for changes in range(9):
        put_back(old)
        with pytest.raises(CrashError):
            amend_unit(Manifest(Crashing(OUTPUT, changes)), unit.number, mended(unit), metadata_of(job), {"rows": 1.0})
        found = validate(OUTPUT)
        assert found.is_proven, (changes, found.lines(9))
        assert rows() in (before, after), changes
        seen.add(rows() == after)
        finish_amending(manifest)
        assert parts_of(files_of(OUTPUT)) == (new if rows() == after else parts_of(old))
        assert not any("amended" in name for name in files_of(OUTPUT))
    assert seen == {False, True}


@pytest.mark.parametrize("changes", range(9))
def test_a_task_that_is_started_again_where_one_died_goes_on(job: Job, changes: int) -> None:
    manifest, unit = begin(job)
    again = (unit.number, mended(unit), metadata_of(job), {"rows": 1.0})
    with pytest.raises(CrashError):
        amend_unit(Manifest(Crashing(OUTPUT, changes)), *again)
    amend_unit(manifest, *again)
    assert validate(OUTPUT).is_proven
    assert [row["status"] for row in rows()["images"]] == ["ok"] * len(rows()["images"])
    assert not any("amended" in name for name in files_of(OUTPUT))


@pytest.mark.parametrize("changes", range(3, 7))
def test_what_waits_and_is_removed_by_another_runner_stops_nobody(job: Job, changes: int) -> None:
    manifest, unit = begin(job)
    before = rows()
    with pytest.raises(CrashError):
        amend_unit(Manifest(Crashing(OUTPUT, changes)), unit.number, mended(unit), metadata_of(job), {"rows": 1.0})
    for name in manifest.storage.names("_manifest/amended"):
        if name.endswith(".parquet"):
            manifest.storage.delete(f"_manifest/amended/{name}")
    finish_amending(manifest)
    assert not manifest.storage.names("_manifest/amended")
    if changes == 4:  # one part was in its place, and what was to be in the other's has gone: its unit is named
        assert not validate(OUTPUT, fix=True).is_proven
        assert unit.number not in manifest.committed()
    else:
        assert validate(OUTPUT).is_proven
        assert (rows() == before) == (changes == 3)


def parts_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".parquet")}


def put_back(files: dict[str, bytes]) -> None:
    MemoryFileSystem.store.clear()
    storage = Storage(OUTPUT)
    for name, data in files.items():
        storage.put(name.removeprefix("/"), data)


def test_a_unit_is_as_if_it_had_been_written_at_once(job: Job) -> None:
    manifest, unit = begin(job)
    amend_unit(manifest, unit.number, mended(unit), metadata_of(job), {"rows": 1.0})
    amended, again = files_of(OUTPUT), mended(unit)
    tables = {}
    for name, table in tables_of(unit).items():
        merged = [row for row in table.to_pylist() if row["image_id"] != FAILED] + again[name].to_pylist()
        merged.sort(key=lambda row: row["image_id"])
        tables[name] = pa.Table.from_pylist(merged, schema=table.schema)
    commit = write_unit(manifest, unit.number, tables, metadata_of(job), {"rows": 1.0})
    assert parts_of(files_of(OUTPUT)) == parts_of(amended)
    told = next(manifest.commits([unit.number]))
    assert told["counts"] == commit["counts"]
    assert json.dumps(told["counts"]["failed"]) == "{}"


def test_damaged_parts_are_not_built_upon(job: Job) -> None:
    manifest, unit = begin(job)
    manifest.storage.put(f"images/part-{unit.number:08d}.parquet", b"")
    with pytest.raises(JobError, match="missing or damaged"):
        failed_images(manifest, unit)
