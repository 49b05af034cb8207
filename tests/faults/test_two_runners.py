"""Two runners on one output, in every order of their storage calls, with a crash anywhere: the files come out right.

A runner here is a small one: the real lock, manifest and storage, in the order in which `runner` uses them, over a plan
of two units whose parts are a few bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from interleavings import Body, Explorer, Simulated
from jobs import job_of, record_of, write_images
from simulated import Bucket, CrashError, bury

from prelabel.pipeline import lock as lock_module
from prelabel.pipeline.lock import CLAIM, LOCK, Lock
from prelabel.pipeline.manifest import JOB, UNITS, Manifest
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.schemas.errors import JobError
from prelabel.schemas.job import JobRecord

OUTPUT = "bucket://labels"
STALE = {f"labels/{LOCK}": b'{"owner": "dead", "machine": "here", "pid": 9, "started": 0.0}'}


class Planned:
    """A job of two units, and what it looks like when it is done."""

    def __init__(self, source: str, unit_images: int) -> None:
        job = job_of(source, OUTPUT, unit_images=unit_images)
        self.units = list(plan_units(job.labels))
        self.record: JobRecord = record_of(job, sum(map(len, self.units)), len(self.units))
        Bucket.reset()
        self.run()
        self.files = dict(Bucket.files)
        Bucket.reset()

    def run(self) -> None:
        manifest = Manifest(Storage(OUTPUT))
        manifest.check_free()
        with Lock(manifest.storage) as lock:
            manifest.check_free()
            manifest.write_plan(iter(self.units))
            lock.check()
            manifest.write_job(self.record)
            label(manifest, lock)

    def only(self, *parts: str) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if any(part in name for part in parts)}


def resume(take_over: bool = False) -> None:
    manifest = Manifest(Storage(OUTPUT))
    manifest.read_job()
    with Lock(manifest.storage, take_over) as lock:
        label(manifest, lock)


def label(manifest: Manifest, lock: Lock) -> None:
    for wave in manifest.waves(manifest.committed()):
        for unit in wave:
            write(manifest, unit)
        lock.check()


def write(manifest: Manifest, unit: Unit) -> None:
    manifest.storage.put(f"images/part-{unit.number}", "\n".join(unit.keys).encode())
    manifest.commit(unit.number, {"unit": unit.number, "images": len(unit)})


@pytest.fixture(autouse=True)
def _hasty(hasty: None) -> Iterator[None]:
    yield
    Bucket.reset()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(str(tmp_path_factory.mktemp("images")), 4)


def go_on(job: Planned) -> None:
    try:
        Manifest(Storage(OUTPUT)).read_job()
    except JobError:
        job.run()
    resume()


def ends_right(runners: list[Simulated], *outcomes: Planned) -> None:
    """Whatever has become of the runners, one more ends with the files of a job that was left alone."""
    bury(Bucket.files)
    go_on(outcomes[0])
    files = {name: data for name, data in Bucket.files.items() if CLAIM not in name}
    assert files in [one.files for one in outcomes], f"{[one.result for one in runners]} {sorted(files)}"


def explore(files: dict[str, bytes], bodies: list[Body], *outcomes: Planned, crashes: int = 1) -> None:
    def check(runners: list[Simulated]) -> None:
        refused = [one for one in runners if isinstance(one.result, JobError)]
        crashed = [one for one in runners if one.crashed]
        assert crashed or len(refused) < 2, [one.result for one in runners]
        ends_right(runners, *outcomes)

    explorer = Explorer(files, bodies, crashes, check)
    explorer.explore()
    assert explorer.ends > 20, "too few orders to be all of them"


def test_two_resume_at_once(source: str) -> None:
    job = Planned(source, 2)
    explore(job.only(JOB, UNITS), [resume, resume], job)


def test_one_takes_over_while_the_other_works_on(source: str) -> None:
    job = Planned(source, 2)
    explore(job.only(JOB, UNITS), [resume, partial(resume, take_over=True)], job)


def test_two_begin_at_once(source: str) -> None:
    job = Planned(source, 2)
    explore({}, [job.run, job.run], job)


def test_two_begin_different_jobs_at_once(source: str) -> None:
    one, other = Planned(source, 2), Planned(source, 3)
    explore({}, [one.run, other.run], one, other)


def test_two_find_the_lock_of_a_dead_one(source: str) -> None:
    job = Planned(source, 2)
    explore(job.only(JOB, UNITS) | STALE, [resume, resume], job)


def test_two_begin_different_jobs_where_one_died_over_the_lock_of_another(source: str) -> None:
    one, other = Planned(source, 2), Planned(source, 3)

    def die_once_claimed(call: str, path: str, effect: Callable[[], Any]) -> Any:
        if call in ("put", "rm"):
            raise CrashError
        return effect()

    Bucket.reset(dict(STALE), die_once_claimed)
    process = {"machine": "here", "pid": 8, "started": 0.0}
    with patch.multiple(lock_module, _is_alive=lambda held: False, _this_process=lambda: process):
        dead = Lock(Storage(OUTPUT))
        with pytest.raises(CrashError):
            dead.__enter__()
    assert [CLAIM in name for name in sorted(Bucket.files)] == [True, False]
    explore(dict(Bucket.files), [one.run, other.run], one, other, crashes=0)


def test_two_begin_different_jobs_where_one_died(source: str) -> None:
    one, other = Planned(source, 2), Planned(source, 3)
    explore(one.only(UNITS) | STALE, [one.run, other.run], one, other)
