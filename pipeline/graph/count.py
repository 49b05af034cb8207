"""What workers tell while they work: an actor that adds it up, and counters that Ray exports to Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.metrics import Counter, Histogram

from prelabel.pipeline.progress import Tally

POLL_SECONDS = 0.5
PREDICT_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
"""Bounds of the histogram's buckets, per batch."""


class Count:
    """An actor that adds up what has been done: Ray Data's own progress counts blocks, minutes of work each."""

    def __init__(self) -> None:
        self.now = Tally()
        self.workers: set[str] = set()

    def hello(self, worker: str) -> None:
        """A worker holds its models; one that was here before has died and come back."""
        restarts = self.now.restarts + (worker in self.workers)
        self.workers.add(worker)
        self.now = replace(self.now, workers=len(self.workers), restarts=restarts)

    def add(self, images: int, failed: int, busy: float) -> None:
        """A batch is done."""
        now = self.now
        self.now = replace(now, images=now.images + images, failed=now.failed + failed, busy=now.busy + busy)

    def commit(self) -> None:
        """A unit is committed."""
        self.now = replace(self.now, units=self.now.units + 1)

    def fail(self, failure: dict[str, Any]) -> None:
        """A unit could not be finished."""
        self.now = replace(self.now, failures=(*self.now.failures, failure))

    def tally(self) -> Tally:
        """All of it."""
        return self.now


@contextmanager
def counted(progress: Callable[[Tally], object]) -> Iterator[Any]:
    """A `Count` on Ray, of which `progress` is told twice a second and at the end."""
    counter = ray.remote(num_cpus=0)(Count).remote()
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


class Metrics:
    """What Prometheus can be told; where Ray exports no metrics, a number that nobody reads."""

    def __init__(self) -> None:
        self.images = Counter("prelabel_images", "Images that were looked at.", ("status",))
        self.predict = Histogram("prelabel_predict_seconds", "Of a batch.", PREDICT_SECONDS, ("model",))
        self.units = Counter("prelabel_units_committed", "Units that were committed.")
        self.rows = Counter("prelabel_rows", "Rows that were committed.", ("table",))

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
