"""A job's life: check, plan, lock, label wave by wave, count."""

from __future__ import annotations

import _thread
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from pydantic import ValidationError

from prelabel.operators.models import ModelSpec
from prelabel.operators.options import Options
from prelabel.pipeline.amend import finish_amending
from prelabel.pipeline.calibrate import Calibration, Spread, calibrate
from prelabel.pipeline.labeling import Labeling, Todo
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units, source_options
from prelabel.pipeline.pool import Pool, pool_of
from prelabel.pipeline.progress import Pace, Progress, Reporter
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.sources.shards import check_planned
from prelabel.pipeline.storage import Storage, read_input
from prelabel.pipeline.summary import Summary, summarize
from prelabel.schemas.categories import CategorySet, load_categories
from prelabel.schemas.errors import JobError, UserError
from prelabel.schemas.job import Job, JobRecord, Labels, ModelChoice, Runtime, fingerprint, in_one_line
from prelabel.schemas.tables import file_metadata

logger = logging.getLogger("prelabel")


@dataclass(frozen=True)
class DryRun:
    """What a job would do; `calibration` says how fast, where that was asked for."""

    images: int
    units: int
    shards: int
    num_bytes: int
    tasks: tuple[str, ...]
    categories: CategorySet
    pool: Pool
    calibration: Calibration | None = None


def run(job: Job, progress: Reporter = id) -> Summary:
    """Plans the job and labels all of its images.

    Raises:
        PrelabelError: the job can't be run as it is; nothing has been written then.
    """
    began = time.monotonic()
    job, manifest = _ready(job)
    from prelabel.pipeline import graph  # seconds of imports, and of no use to what is refused

    progress(Progress("start"))
    with graph.cluster(job.runtime.address):
        prepared = _prepare(job)
        pool = _pool(prepared)
        units = _begun(_planned(job, progress))
        manifest.storage.check_writable()
        with Lock(manifest.storage, on_lost=_interrupt) as lock:
            manifest.check_free()
            unit_count, image_count = manifest.write_plan(units)
            record = prepared.to_record(image_count, unit_count)
            lock.check()
            manifest.write_job(record)
            todo = Todo(frozenset(range(unit_count)), images=image_count)
            Labeling(manifest, record, prepared.work, pool, lock, progress).label(todo)
    return summarize(manifest, record, time.monotonic() - began)


def resume(
    output: str,
    *,
    take_over: bool = False,
    retry_failed: bool = False,
    progress: Reporter = id,
    **runtime: Any,
) -> Summary:
    """Labels what an earlier run did not come to; does nothing where nothing is left.

    Args:
        output: URL of the job's output
        take_over: whether to take the job from a runner that seems alive
        retry_failed: whether to work units again that were given up, and in the others the images that failed
        progress: is told how far it is
        runtime: fields of `Runtime` that differ from the first run's

    Raises:
        JobError: there is no job, it is being worked on, or its weights or categories have changed.
        SourceError: a source is not what was planned.
    """
    began = time.monotonic()
    manifest = Manifest(Storage(output))
    record = _with_runtime(manifest.read_job(), manifest.storage.url, runtime)
    if not _todo(manifest, record, retry_failed).all and not manifest.amended():
        return replace(summarize(manifest, record), worked=False)
    manifest.storage.check_writable()
    with Lock(manifest.storage, take_over, _interrupt) as lock:
        finish_amending(manifest)
        if not _todo(manifest, record, retry_failed).all:
            return summarize(manifest, record, time.monotonic() - began)
        from prelabel.pipeline import graph

        progress(Progress("start"))
        with graph.cluster(record.job.runtime.address):
            prepared = _prepare(record.job)
            _check_unchanged(record, prepared)
            todo = _check_sources(manifest, record, _todo(manifest, record, retry_failed))
            pool = _pool(prepared)
            kept = Labeling(manifest, record, prepared.work, pool, lock, progress).label(todo)
    return replace(summarize(manifest, record, time.monotonic() - began), kept_units=kept)


def _todo(manifest: Manifest, record: JobRecord, retry_failed: bool) -> Todo:
    committed, given_up = manifest.committed(), set() if retry_failed else manifest.given_up()
    amended = frozenset(manifest.with_failed_images()) if retry_failed else frozenset[int]()
    return Todo(frozenset(range(record.units)) - committed - given_up, amended, forgetting=retry_failed)


def dry_run(job: Job, progress: Reporter = id, trial_images: int = 0) -> DryRun:
    """Checks all that `run` would check, and plans; writes nothing.

    With `trial_images`, so many images, spread evenly over the plan, are labeled to say how long the job will take.
    """
    job, _ = _ready(job)
    from prelabel.pipeline import graph

    progress(Progress("start"))
    with graph.cluster(job.runtime.address):
        prepared = _prepare(job)
        pool = _pool(prepared)
        images = units = size = 0
        shards: set[str] = set()
        spread = Spread(trial_images)
        for unit in _planned(job, progress):
            images, units, size = images + len(unit), units + 1, size + int(unit.sizes.sum())
            shards.add(unit.shard.uri)
            if trial_images:
                spread.add(unit)
        calibration = calibrate(prepared.work, pool, spread.images(), images, progress) if trial_images else None
    return DryRun(images, units, len(shards), size, prepared.tasks, prepared.categories, pool, calibration)


def _pool(prepared: _Prepared) -> Pool:
    from prelabel.pipeline import graph

    job = prepared.job
    pool = pool_of(job.runtime, len(job.labels.models), *graph.resources())
    if job.labels.precision == "bf16" and not (pool.gpus or prepared.description.has_bf16):
        logger.warning("this processor has no bfloat16 arithmetic: --precision float32 is many times faster here")
    return pool


def _planned(job: Job, progress: Reporter) -> Iterator[Unit]:
    pace = Pace()

    def tell(images: int) -> None:
        (rate,) = pace(images) or (None,)
        progress(Progress("plan", images, rate=rate))

    return plan_units(job.labels, tell)


@dataclass(frozen=True)
class _Prepared:
    """A job whose models have been looked at."""

    job: Job
    categories: CategorySet
    fingerprint: str
    description: Any
    work: Any

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.description.tasks)

    @property
    def models(self) -> list[dict[str, str]]:
        names = [model.name for model in self.job.labels.models]
        return [{"name": name, "digest": d} for name, d in zip(names, self.description.digests, strict=True)]

    def to_record(self, images: int, units: int) -> JobRecord:
        return JobRecord(
            job=self.job,
            fingerprint=self.fingerprint,
            models=self.models,
            tasks=self.tasks,
            tables=self.description.tables,
            categories=self.categories.to_coco(),
            images=images,
            units=units,
            versions=self.description.versions,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )


def _prepare(job: Job) -> _Prepared:
    from prelabel.pipeline import graph

    labels = job.labels
    specs = tuple(_spec(labels, model) for model in labels.models)
    own = tuple(model.tasks for model in labels.models)
    description = graph.describe(graph.Question(specs, own, labels.tasks, labels.keep_proposals is not None))
    categories = CategorySet.from_json(description.categories_json)
    job_print = fingerprint(labels, description.digests, categories.digest)
    work = graph.Work(
        job.output,
        source_options(labels),
        specs,
        description,
        labels.max_image_pixels,
        file_metadata(job_print, description.categories_json),
        job.runtime.image_timeout,
    )
    return _Prepared(job, categories, job_print, description, work)


def _spec(labels: Labels, model: ModelChoice) -> ModelSpec:
    categories = None
    if model.categories is not None:
        categories = load_categories(read_input(model.categories, "--categories"), model.categories)
    given = labels.model_dump(include={field.name for field in fields(Options)}, exclude_none=True)
    return ModelSpec(
        model.name,
        weights=model.weights,
        weights_sha256=model.weights_sha256,
        categories=categories,
        score_threshold=model.score_threshold,
        path=labels.python_path,
        options=Options(**given),
    )


def _ready(job: Job) -> tuple[Job, Manifest]:
    """The job with absolute paths, and its manifest. Raises JobError if no job may begin at its output."""
    job = _absolute(job)
    manifest = Manifest(Storage(job.output))
    manifest.check_free()
    manifest.storage.check_shared()
    return job, manifest


def _absolute(job: Job) -> Job:
    """The job with paths that mean the same from any folder and process."""
    labels = job.labels
    models = tuple(
        model.model_copy(
            update={
                "weights": _if_there(model.weights),
                "categories": _absolute_path(model.categories) if model.categories else None,
            }
        )
        for model in labels.models
    )
    finds_files = any("python:" in model.name or _is_folder(model.name.partition(":")[2]) for model in models)
    changes = {
        "sources": tuple(map(_absolute_path, labels.sources)),
        "models": models,
        "python_path": os.path.abspath(labels.python_path or ".") if finds_files else None,
    }
    return job.model_copy(update={"output": _absolute_path(job.output), "labels": labels.model_copy(update=changes)})


def _is_folder(name: str) -> bool:
    return os.path.isdir(os.path.expanduser(name))


def _if_there(weights: str | None) -> str | None:
    """A file's absolute path; a name stays what it is."""
    return _absolute_path(weights) if weights and os.path.exists(os.path.expanduser(weights)) else weights


def _absolute_path(url: str) -> str:
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def _begun(units: Iterator[Unit]) -> Iterator[Unit]:
    """The same units; a source without images has said so before anything is written."""
    return chain([next(units)], units)


def _interrupt() -> None:
    """Stops the work as Ctrl-C would; it is the main thread that waits for Ray."""
    _thread.interrupt_main()


def _with_runtime(record: JobRecord, output: str, changes: dict[str, Any]) -> JobRecord:
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        runtime = Runtime.model_validate(record.job.runtime.model_dump() | given)
    except ValidationError as error:
        raise UserError(in_one_line(error)) from error
    # The folder may have been moved since.
    return record.model_copy(update={"job": record.job.model_copy(update={"output": output, "runtime": runtime})})


def _check_unchanged(record: JobRecord, prepared: _Prepared) -> None:
    """Raises JobError if resuming would mix labels of two different jobs."""
    if prepared.fingerprint == record.fingerprint:
        _warn_of_versions(record.versions, prepared.description.versions)
        return
    changed = [now["name"] for now, then in zip(prepared.models, record.models, strict=True) if now != then]
    differs = {
        f"the model {' and '.join(changed)} (its weights, or the module of python:)": bool(changed),
        "the category set": prepared.categories.to_coco() != record.categories,
    }
    what = " and ".join(name for name, does in differs.items() if does) or "the configuration in job.json"
    raise JobError(
        f"{record.job.output}: {what} changed since the job was planned; put the old state back, or start a new "
        "job in another --output"
    )


def _warn_of_versions(then: dict[str, str], now: dict[str, str]) -> None:
    changed = [f"{name} {then[name]} -> {now.get(name)}" for name in then if now.get(name) != then[name]]
    if changed:
        logger.warning("other versions than when the job began may give other results: %s", ", ".join(changed))


def _check_sources(manifest: Manifest, record: JobRecord, todo: Todo) -> Todo:
    """With the images that are left. Raises SourceError if a shard with some is not the one of the plan."""
    failed = {commit["unit"]: sum(commit["counts"]["failed"].values()) for commit in manifest.commits(todo.amended)}
    images = 0
    for wave in manifest.waves(set(range(record.units)) - todo.all):
        images += sum(failed.get(unit.number, len(unit)) for unit in wave)
        check_planned(wave)
    return replace(todo, images=images)
