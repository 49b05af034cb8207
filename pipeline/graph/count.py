"""What workers tell while they work: an actor that adds it up, and counters that Ray exports to Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

import ray
from ray.exceptions import RayError
from ray.util.metrics import Counter as RayCounter
from ray.util.metrics import Histogram

from prelabel.pipeline.progress import Tally
from prelabel.schemas.job import LEAST_JUDGED, exceeds

POLL_SECONDS = 0.5
PREDICT_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Bounds of the histogram's buckets, per batch."""


MOST_LOADS = 3
"""Times that a worker may die while it loads its models before that is taken for the models' fault."""
READ = -1
"""The place of the reading task, before those of the groups of models."""


@dataclass(frozen=True)
class Limits:
    """When no more blocks are begun.

    Attributes:
        tries: for each block, how many workers may die of it at one place before it is left alone
        deaths: blocks that were left alone are looked into when they are so many; None: that is what is being done
        failed_units: more than this end the run
        max_failed: failed images that the job tolerates, as `Runtime` has it
        images, failed: in the units that were committed before
    """

    tries: tuple[int, ...]
    deaths: int | None = None
    failed_units: int | None = None
    max_failed: int | str | None = None
    images: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Fates:
    """What has become of the blocks of a wave, by their positions in it.

    Attributes:
        committed: their parts and commits are written
        died: their workers died each time; whether already while they were read
        stuck: the ids of images that took too long
        begun: somebody has worked on them
        stopped: why no more were begun: "failed", "failed_units", "deaths"; empty where all were
        cannot_load: whether workers die while they load their models
        failures: what went wrong with units, as `_manifest/failures` has it
    """

    committed: frozenset[int] = frozenset()
    died: Mapping[int, bool] = field(default_factory=dict)
    stuck: frozenset[int] = frozenset()
    begun: frozenset[int] = frozenset()
    stopped: str = ""
    cannot_load: bool = False
    failures: tuple[dict[str, Any], ...] = ()


class Count:
    """An actor that adds up what has been done: Ray Data's own progress counts blocks, minutes of work each.

    Workers ask it before they begin, so it also says when a block is left alone, and when the run ends early.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.now = Tally()
        self.workers: set[str] = set()
        self.loads: Counter[str] = Counter()
        self.tries: Counter[tuple[int, int]] = Counter()
        self.looked: dict[int, tuple[int, int]] = {}
        self.begun: set[int] = set()
        self.dead: set[int] = set()
        self.stuck_ids: set[int] = set()
        self.committed: set[int] = set()
        self.stopped = ""
        self.cannot_load = False

    def load(self, worker: str) -> bool:
        """Whether a worker may load its models; not when it, or another, died of that again and again."""
        self.loads[worker] += 1
        self.cannot_load = self.cannot_load or self.loads[worker] > MOST_LOADS
        return not self.cannot_load

    def hello(self, worker: str) -> None:
        """A worker holds its models; one that was here before has died and come back."""
        self.loads[worker] = 0
        restarts = self.now.restarts + (worker in self.workers)
        self.workers.add(worker)
        self.now = replace(self.now, workers=len(self.workers), restarts=restarts)

    def begin(self, block: int, place: int) -> bool:
        """Whether to work on a block at this place: reading, or a group of models."""
        if self.stopped and place <= 0:
            return False
        if self.tries[block, place] >= self.limits.tries[block]:
            self.dead.add(block)
            if self.limits.deaths is not None and len(self.dead) >= self.limits.deaths:
                self.stopped = self.stopped or "deaths"
            return False
        self.tries[block, place] += 1
        if place >= 0:
            self.begun.add(block)
        images, failed = self.looked.pop(block, (0, 0))  # by who died of it: they count once
        self.now = replace(self.now, images=self.now.images - images, failed=self.now.failed - failed)
        return True

    def end(self, block: int, place: int) -> None:
        """Nobody has died of it."""
        del self.tries[block, place]

    def stuck(self, block: int, place: int, image_ids: list[int]) -> None:
        """A worker is about to end itself, for these images take too long; nobody waits for them again but alone."""
        self.stuck_ids.update(image_ids)
        if self.limits.deaths is not None:
            self.tries[block, place] = self.limits.tries[block]

    def add(self, block: int, images: int, failed: int, busy: float) -> None:
        """A batch is done."""
        before, now = self.looked.get(block, (0, 0)), self.now
        self.looked[block] = before[0] + images, before[1] + failed
        self.now = replace(now, images=now.images + images, failed=now.failed + failed, busy=now.busy + busy)
        if failed and self._too_many_failed():
            self.stopped = self.stopped or "failed"

    def _too_many_failed(self) -> bool:
        limits = self.limits
        failed, images = limits.failed + self.now.failed, limits.images + self.now.images
        is_share = isinstance(limits.max_failed, str)
        return exceeds(limits.max_failed, failed, images) and not (is_share and images < LEAST_JUDGED)

    def commit(self, block: int) -> None:
        """A unit is committed."""
        self.committed.add(block)
        self.now = replace(self.now, units=len(self.committed))

    def fail(self, failure: dict[str, Any]) -> None:
        """A unit could not be finished."""
        self.now = replace(self.now, failures=(*self.now.failures, failure))
        if self.limits.failed_units is not None and len(self.now.failures) > self.limits.failed_units:
            self.stopped = self.stopped or "failed_units"

    def tally(self) -> Tally:
        """All of it."""
        return self.now

    def fates(self) -> Fates:
        """What has become of the blocks."""
        exhausted = {key for key, tries in self.tries.items() if tries >= self.limits.tries[key[0]]}
        died = {block: (block, READ) in exhausted for block, _ in exhausted if block not in self.committed}
        return Fates(
            frozenset(self.committed),
            died,
            frozenset(self.stuck_ids),
            frozenset(self.begun),
            self.stopped,
            self.cannot_load,
            self.now.failures,
        )


@contextmanager
def counted(limits: Limits, progress: Callable[[Tally], object]) -> Iterator[Any]:
    """A `Count` on Ray, of which `progress` is told twice a second and at the end."""
    counter = ray.remote(num_cpus=0)(Count).remote(limits)
    done = threading.Event()

    def poll() -> None:
        is_last = False
        while not is_last:
            is_last = done.wait(POLL_SECONDS)
            try:
                tally = ray.get(counter.tally.remote(), timeout=5)
            except RayError:
                continue
            progress(tally)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        done.set()
        thread.join()


def fates_of(counter: Any) -> Fates:
    """What a `Count` says; nothing where it has died."""
    with suppress(RayError):
        return cast(Fates, ray.get(counter.fates.remote(), timeout=60))
    return Fates()


class Metrics:
    """What Prometheus can be told; where Ray exports no metrics, a number that nobody reads."""

    def __init__(self) -> None:
        self.images = RayCounter("prelabel_images", "Images that were looked at.", ("status",))
        self.predict = Histogram("prelabel_predict_seconds", "Of a batch.", PREDICT_SECONDS, ("model",))
        self.units = RayCounter("prelabel_units_committed", "Units that were committed.")
        self.rows = RayCounter("prelabel_rows", "Rows that were committed.", ("table",))

    def looked(self, images: int, failed: int, seconds: dict[str, float]) -> None:
        """A batch is done."""
        for status, count in (("ok", images - failed), ("failed", failed)):
            if count:
                self.images.inc(count, {"status": status})
        for model, took in seconds.items():
            self.predict.observe(took, {"model": model})

    def committed(self, rows: dict[str, int]) -> None:
        """A unit is committed, with so many rows in each table."""
        self.units.inc()
        for table, count in rows.items():
            if count:
                self.rows.inc(count, {"table": table})


@cache
def metrics() -> Metrics:
    """This process's."""
    return Metrics()
