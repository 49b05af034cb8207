"""A job's life: check, plan, lock, label wave by wave, count."""

from __future__ import annotations

import _thread
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from pydantic import ValidationError

from prelabel.operators.models import ModelSpec
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units, source_options
from prelabel.pipeline.sources.base import Shard, Unit
from prelabel.pipeline.sources.shards import check_unchanged
from prelabel.pipeline.storage import FINAL_ERRORS, Storage, open_url, read_file
from prelabel.pipeline.summary import Summary, summarize
from prelabel.schemas.categories import CategorySet, load_categories
from prelabel.schemas.errors import JobError, UserError
from prelabel.schemas.job import Job, JobRecord, Labels, Runtime, fingerprint
from prelabel.schemas.tables import file_metadata

logger = logging.getLogger("prelabel")


@dataclass(frozen=True)
class Progress:
    """How far a job is: `phase` is "start", "plan" or "label"; counts are images, `total` None while unknown."""

    phase: str
    done: int = 0
    total: int | None = None


Reporter = Callable[[Progress], object]


@dataclass(frozen=True)
class DryRun:
    """What a job would do."""

    images: int
    units: int
    shards: int
    num_bytes: int
    tasks: tuple[str, ...]
    categories: CategorySet


def run(job: Job, progress: Reporter = id) -> Summary:
    """Plans the job and labels all of its images.

    Raises:
        PrelabelError: the job can't be run as it is; nothing has been written then.
    """
    began = time.monotonic()
    job = _absolute(job)
    manifest = Manifest(Storage(job.output))
    manifest.check_free()
    manifest.storage.check_shared()
    from prelabel.pipeline import graph  # seconds of imports, and of no use to what is refused

    progress(Progress("start"))
    with graph.cluster(job.runtime.address):
        prepared = _prepare(job)
        pool = graph.pool_of(job.runtime)
        units = _begun(plan_units(job.labels, lambda images: progress(Progress("plan", images))))
        manifest.storage.check_writable()
        with Lock(manifest.storage, on_lost=_interrupt) as lock:
            manifest.check_free()
            unit_count, image_count = manifest.write_plan(units)
            record = prepared.to_record(image_count, unit_count)
            manifest.write_job(record)
            _label(manifest, record, prepared.work, pool, lock, 0, progress)
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
        retry_failed: whether to work units again that were given up
        progress: is told how far it is
        runtime: fields of `Runtime` that differ from the first run's

    Raises:
        JobError: there is no job, it is being worked on, or its weights or categories have changed.
        SourceError: a source is not what was planned.
    """
    began = time.monotonic()
    manifest = Manifest(Storage(output))
    record = _with_runtime(manifest.read_job(), manifest.storage.url, runtime)
    done = manifest.committed() | (set() if retry_failed else manifest.failed())
    if len(done) == record.units:
        return replace(summarize(manifest, record), worked=False)
    from prelabel.pipeline import graph

    progress(Progress("start"))
    with graph.cluster(record.job.runtime.address), Lock(manifest.storage, take_over, _interrupt) as lock:
        prepared = _prepare(record.job)
        _check_unchanged(record, prepared)
        labeled = record.images - _check_sources(manifest, done)
        if retry_failed:
            manifest.forget_failures()
        _label(manifest, record, prepared.work, graph.pool_of(record.job.runtime), lock, labeled, progress)
    return summarize(manifest, record, time.monotonic() - began)


def dry_run(job: Job, progress: Reporter = id) -> DryRun:
    """Checks all that `run` would check, and plans; writes nothing."""
    from prelabel.pipeline import graph

    job = _absolute(job)
    Manifest(Storage(job.output)).check_free()
    progress(Progress("start"))
    with graph.cluster(job.runtime.address):
        prepared = _prepare(job)
        graph.pool_of(job.runtime)
    images = units = size = 0
    shards: set[str] = set()
    for unit in plan_units(job.labels, lambda count: progress(Progress("plan", count))):
        images, units, size = images + len(unit), units + 1, size + int(unit.sizes.sum())
        shards.add(unit.shard.uri)
    return DryRun(images, units, len(shards), size, prepared.tasks, prepared.categories)


@dataclass(frozen=True)
class _Prepared:
    """A job whose model has been looked at."""

    job: Job
    categories: CategorySet
    description: Any
    work: Any

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.description.tasks)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.job.labels, self.description.digest, self.categories.digest)

    def to_record(self, images: int, units: int) -> JobRecord:
        return JobRecord(
            job=self.job,
            fingerprint=self.fingerprint,
            model={"name": self.job.labels.model, "digest": self.description.digest},
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
    spec = _spec(labels)
    description = graph.describe(spec, labels.tasks)
    categories = CategorySet.from_json(description.categories_json)
    metadata = file_metadata(fingerprint(labels, description.digest, categories.digest), description.categories_json)
    work = graph.Work(job.output, source_options(labels), spec, description.tasks, labels.max_image_pixels, metadata)
    return _Prepared(job, categories, description, work)


def _spec(labels: Labels) -> ModelSpec:
    categories = None
    if labels.categories is not None:
        fs, path = open_url(labels.categories)
        try:
            categories = load_categories(read_file(fs, path), labels.categories)
        except FINAL_ERRORS as error:
            raise UserError(f"--categories {labels.categories} can't be read: {error}") from error
    return ModelSpec(
        labels.model,
        weights=labels.weights,
        categories=categories,
        score_threshold=labels.score_threshold,
        path=labels.python_path,
    )


def _absolute(job: Job) -> Job:
    """The job with paths that mean the same from any folder and process."""
    labels = job.labels
    weights = labels.weights
    changes = {
        "sources": tuple(map(_absolute_path, labels.sources)),
        "weights": _absolute_path(weights) if weights and os.path.exists(weights) else weights,
        "categories": _absolute_path(labels.categories) if labels.categories else None,
        "python_path": os.path.abspath(labels.python_path or ".") if labels.model.startswith("python:") else None,
    }
    return job.model_copy(update={"output": _absolute_path(job.output), "labels": labels.model_copy(update=changes)})


def _absolute_path(url: str) -> str:
    return url if "://" in url else os.path.abspath(url)


def _begun(units: Iterator[Unit]) -> Iterator[Unit]:
    """The same units; a source without images has said so before anything is written."""
    return chain([next(units)], units)


def _label(
    manifest: Manifest, record: JobRecord, work: Any, pool: Any, lock: Lock, images: int, progress: Reporter
) -> None:
    """Works the open units, wave by wave; `images` are done already."""
    from prelabel.pipeline import graph

    done = manifest.committed() | manifest.failed()
    for wave in manifest.waves(done):
        planned = sum(map(len, wave))

        def labeled(count: int, before: int = images, most: int = planned) -> None:
            progress(Progress("label", before + min(count, most), record.images))

        labeled(0)
        with _failures_looked_at(manifest, wave, lock):
            errors = graph.label_wave(work, wave, pool, record.job.runtime.max_failed_units, labeled)
            for error in errors:
                logger.info("%s", error)
        images += planned
    progress(Progress("label", images, record.images))
    manifest.storage.delete_temporary()


def _interrupt() -> None:
    """Stops the work as Ctrl-C would; it is the main thread that waits for Ray."""
    _thread.interrupt_main()


@contextmanager
def _failures_looked_at(manifest: Manifest, wave: list[Unit], lock: Lock) -> Iterator[None]:
    """Ends the run where another has taken over; lets an error through unless the manifest tells of its units."""
    try:
        yield
    except KeyboardInterrupt:
        lock.check()
        raise
    except Exception:
        lock.check()
        failed = manifest.failed() & {unit.number for unit in wave}
        if not failed:
            raise
        logger.debug("a wave ended early", exc_info=True)


def _with_runtime(record: JobRecord, output: str, changes: dict[str, Any]) -> JobRecord:
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        runtime = Runtime.model_validate(record.job.runtime.model_dump() | given)
    except ValidationError as error:
        raise UserError(str(error.errors()[0]["msg"])) from error
    # The folder may have been moved since.
    return record.model_copy(update={"job": record.job.model_copy(update={"output": output, "runtime": runtime})})


def _check_unchanged(record: JobRecord, prepared: _Prepared) -> None:
    """Raises JobError if resuming would mix labels of two different jobs."""
    if prepared.fingerprint == record.fingerprint:
        _warn_of_versions(record.versions, prepared.description.versions)
        return
    differs = {
        "the weights": prepared.description.digest != record.model["digest"],
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


def _check_sources(manifest: Manifest, done: set[int]) -> int:
    """How many images are still to label.

    Raises:
        SourceError: a shard that is still needed has another size than the plan recorded.
    """
    checked: set[Shard] = set()
    images = 0
    for wave in manifest.waves(done):
        images += sum(map(len, wave))
        for shard in {unit.shard for unit in wave} - checked:
            check_unchanged(shard)
            checked.add(shard)
    return images
