"""Whatever a crash leaves behind, going on ends with the very files of a run that was never interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import files_of, job_of, pending, plan, record_of, work, write_images

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import JOB, UNITS_PER_PLAN_FILE, Manifest
from prelabel.pipeline.sources.base import Shard, Unit
from prelabel.pipeline.storage import TEMPORARY, Storage, read_file
from prelabel.schemas.errors import JobError
from prelabel.schemas.job import Job

OUTPUT = "memory://labels"
Write = Callable[[Storage], None]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job_of(write_images(str(tmp_path_factory.mktemp("images"))), OUTPUT)


@pytest.fixture(autouse=True)
def _no_memory() -> None:
    clear()


def clear() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


class CrashError(BaseException):
    pass


class RecordingStorage(Storage):
    """Keeps every change of a file, to be made again; crashes instead of making more than it may."""

    def __init__(self, url: str, changes: int | None = None) -> None:
        super().__init__(url)
        self.changes = changes
        self.writes: list[Write] = []

    def _record(self, write: Write) -> None:
        if self.changes is not None and len(self.writes) == self.changes:
            raise CrashError
        self.writes.append(write)

    def put(self, name: str, data: bytes) -> None:
        self._record(lambda storage: storage.put(name, data))
        super().put(name, data)

    def delete(self, name: str) -> None:
        self._record(lambda storage: storage.delete(name))
        super().delete(name)


def go_on(storage: Storage, job: Job) -> None:
    """As `run` and `resume` do."""
    try:
        Manifest(storage).read_job()
    except JobError:
        plan(storage, job)
    work(storage, job, pending(storage))
    storage.delete_temporary()


def writes_of(job: Job) -> tuple[list[Write], list[list[Write]]]:
    """The writes of an uninterrupted job: those of the plan, and those of each unit."""
    planning = RecordingStorage(OUTPUT)
    plan(planning, job)
    units = []
    for unit in pending(planning):
        working = RecordingStorage(OUTPUT)
        work(working, job, [unit])
        units.append(working.writes)
    return planning.writes, units


def less_clocks(files: dict[str, bytes]) -> dict[str, Any]:
    """The same, but for what a clock has said in commits: the tables' bytes are what is promised."""
    clocks = {"timings": None, "committed": None}
    return {name: json.loads(data) | clocks if "/commits/" in name else data for name, data in files.items()}


def assert_whole(job: Job, expected: dict[str, bytes]) -> None:
    assert less_clocks(files_of(OUTPUT)) == less_clocks(expected)
    dataset = LabelDataset(OUTPUT)
    assert dataset.is_complete
    assert dataset.table("images").to_table()["image_id"].to_pylist() == list(range(7))


@pytest.fixture(scope="module")
def history(job: Job) -> tuple[list[Write], list[list[Write]], dict[str, bytes]]:
    clear()
    planning, units = writes_of(job)
    assert (len(planning), [len(writes) for writes in units]) == (2, [3, 3, 3])
    return planning, units, files_of(OUTPUT)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_crash_then_going_on_gives_the_same_bytes(job: Job, history: tuple, data: st.DataObject) -> None:
    planning, units, expected = history
    turns = data.draw(st.permutations([number for number, writes in enumerate(units) for _ in writes]), "turns")
    remaining: list[Iterator[Write]] = [iter(writes) for writes in units]
    writes = [*planning, *(next(remaining[number]) for number in turns)]
    clear()
    for write in writes[: data.draw(st.integers(0, len(writes)), "made before the crash")]:
        write(Storage(OUTPUT))
    if data.draw(st.booleans(), "one was cut short"):
        Storage(OUTPUT).put(f"{TEMPORARY}/0f", b"half a part")
    again = data.draw(st.none() | st.integers(0, len(writes)), "made before the next crash")
    try:
        go_on(RecordingStorage(OUTPUT, again), job)
    except CrashError:
        go_on(Storage(OUTPUT), job)
    assert_whole(job, expected)


def test_crash_at_each_point_leaves_whole_units_to_readers(job: Job, history: tuple) -> None:
    planning, units, expected = history
    writes = [*planning, *(write for unit in units for write in unit)]
    for made in range(len(planning), len(writes) + 1):
        clear()
        for write in writes[:made]:
            write(Storage(OUTPUT))
        dataset = LabelDataset(OUTPUT)
        assert dataset.units == list(range((made - len(planning)) // 3))
        assert dataset.table("images").count_rows() == min(7, 3 * len(dataset.units))
        go_on(Storage(OUTPUT), job)
        assert_whole(job, expected)


def test_working_twice_changes_nothing(job: Job, history: tuple) -> None:
    plan(Storage(OUTPUT), job)
    units = pending(Storage(OUTPUT))
    work(Storage(OUTPUT), job, units)
    work(Storage(OUTPUT), job, reversed(units))
    assert_whole(job, history[-1])
    assert pending(Storage(OUTPUT)) == []


def test_interrupted_planning_may_begin_again(job: Job) -> None:
    manifest = Manifest(Storage(OUTPUT))
    manifest.write_plan(many_units(2 * UNITS_PER_PLAN_FILE))
    with pytest.raises(JobError, match=r"planning was interrupted.*prelabel run"):
        manifest.read_job()
    plan(Storage(OUTPUT), job)
    assert [unit.number for unit in pending(Storage(OUTPUT))] == [0, 1, 2]


def test_long_plan_comes_in_waves_without_what_is_done() -> None:
    manifest = Manifest(Storage(OUTPUT))
    count = 2 * UNITS_PER_PLAN_FILE + 5
    assert manifest.write_plan(many_units(count)) == (count, count)
    done = set(range(UNITS_PER_PLAN_FILE)) | {2 * UNITS_PER_PLAN_FILE}
    waves = [[unit.number for unit in wave] for wave in manifest.waves(done)]
    assert waves == [
        list(range(UNITS_PER_PLAN_FILE, 2 * UNITS_PER_PLAN_FILE)),
        [count - 4, count - 3, count - 2, count - 1],
    ]


def many_units(count: int) -> Iterator[Unit]:
    for number in range(count):
        yield Unit(number, Shard("folder", "/images", None), number, [f"{number}.png"], *np.zeros((2, 1), np.int64))


def test_new_job_needs_a_free_place(job: Job, tmp_path: Path) -> None:
    plan(Storage(OUTPUT), job)
    with pytest.raises(JobError, match=r"holds a job already.*prelabel resume"):
        plan(Storage(OUTPUT), job)
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(JobError, match=r"not empty.*thesis.doc"):
        plan(Storage(str(tmp_path)), job)
    with pytest.raises(JobError, match="choose another --output"):
        plan(Storage(str(tmp_path / "thesis.doc")), job)


def test_job_is_read_as_it_was_written(job: Job) -> None:
    record = plan(Storage(OUTPUT), job)
    assert Manifest(Storage(OUTPUT)).read_job() == record == record_of(job, 7, 3)


def test_place_without_a_job_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("", "absent", "file"):
        with pytest.raises(JobError, match="no job: check the path"):
            Manifest(Storage(str(tmp_path / name))).read_job()


class AccessDeniedError(Exception):
    """As a storage library's own: not an OSError."""


@pytest.mark.parametrize("error", [PermissionError("403"), AccessDeniedError("no\ncredentials")])
def test_place_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    storage = Storage(OUTPUT)
    for call in ("cat_file", "ls", "pipe_file"):
        monkeypatch.setattr(MemoryFileSystem, call, refuse)
    for call in (read_file, Storage.names, Storage.put):
        monkeypatch.setattr(call.retry, "sleep", lambda seconds: None)
    for door in (Manifest(storage).read_job, Manifest(storage).check_free, storage.check_writable):
        with pytest.raises(JobError, match=r"can't (read|write to) memory://") as caught:
            door()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"fingerprint": 1}'])
def test_damaged_job_is_one_line_that_names_the_file(content: bytes) -> None:
    Storage(OUTPUT).put(JOB, content)
    with pytest.raises(JobError, match=r"job.json is damaged or of another version") as caught:
        Manifest(Storage(OUTPUT)).read_job()
    assert "\n" not in str(caught.value)


def test_damaged_commit_is_one_line_that_says_how_to_mend_it(job: Job) -> None:
    storage = Storage(OUTPUT)
    plan(storage, job)
    work(storage, job, pending(storage))
    storage.put("_manifest/commits/00000001.json", b'{"unit": 1, ')
    with pytest.raises(JobError, match=r"00000001.json is damaged .*prelabel validate .* --fix") as caught:
        list(Manifest(storage).commits())
    assert "\n" not in str(caught.value)


def test_failures_are_counted_until_the_unit_is_committed(job: Job) -> None:
    plan(Storage(OUTPUT), job)
    manifest = Manifest(Storage(OUTPUT))
    for unit, final in ((0, True), (1, False), (2, False), (2, True)):
        manifest.record_failure(unit, "ValueError", "no such\nthing", final)
    work(Storage(OUTPUT), job, pending(Storage(OUTPUT))[:1])
    assert [(failure["unit"], failure["attempts"], failure["final"]) for failure in manifest.failures()] == [
        (1, 1, False),
        (2, 2, True),
    ]
    assert manifest.given_up() == {2}
    assert manifest.committed() == {0}


def test_commit_describes_its_parts(job: Job) -> None:
    plan(Storage(OUTPUT), job)
    work(Storage(OUTPUT), job, pending(Storage(OUTPUT)))
    _, commit, _ = Manifest(Storage(OUTPUT)).commits()
    parts = {name: files_of(OUTPUT)[f"/{name}/part-00000001.parquet"] for name in ("annotations", "images")}
    assert commit["counts"] == {"images": 3, "failed": {"truncated": 1}, "annotations": 2}
    assert {name: part["bytes"] for name, part in commit["parts"].items()} == {n: len(d) for n, d in parts.items()}
    assert {name: part["sha256"] for name, part in commit["parts"].items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in parts.items()
    }
