"""What a job has come to, told from its manifest alone."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from prelabel.pipeline.lock import BEAT_SECONDS, BEATS_TO_WAIT, holder
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.storage import Storage, reaching
from prelabel.schemas.job import JobRecord, exceeds

BESIDE = ("read", "decode", "write")
"""Timings of what goes on beside a worker; the others are its own."""
RECENT = timedelta(minutes=10)
"""Before the last commit: what a job's rate is told from."""


@dataclass(frozen=True)
class Summary:
    """What a job has come to.

    Attributes:
        output: its URL
        images: planned
        labeled: with an `ok` row in a committed unit
        failed: error code -> images with a `failed` row
        annotations, segments, proposals: rows
        units, committed: units planned, and those that count
        failures: why units without a commit could not be finished, as `_manifest/failures` has it
        seconds: this run took
        max_failed: failed images that the job tolerates: so many, or a share such as "5%"
        runner: who works on it now
        worked: whether there was anything to do
        kept_units: whose failed images were to be worked again, and could not
        timings: seconds by what they were spent on, summed over all commits: "read", "decode" (on threads that run
            ahead), "wait" (of the models, for images), "predict NAME" of each model, "rows", "write"
        rate: images a second, by the times of the last ten minutes' commits
    """

    output: str
    images: int
    labeled: int
    failed: dict[str, int]
    annotations: int
    units: int
    committed: int
    segments: int = 0
    proposals: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    max_failed: int | str | None = None
    runner: dict[str, Any] | None = None
    worked: bool = True
    kept_units: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    rate: float | None = None

    @property
    def failed_images(self) -> int:
        """Images with a `failed` row."""
        return sum(self.failed.values())

    @property
    def done(self) -> int:
        """Images in committed units."""
        return self.labeled + self.failed_images

    @property
    def seconds_left(self) -> float | None:
        """At that rate, while someone works on it."""
        return (self.images - self.done) / self.rate if self.rate and self.runner and not self.is_complete else None

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.committed == self.units

    @property
    def exit_code(self) -> int:
        """0, or 3 where units failed, first or once more, or more images than `max_failed`."""
        return 0 if self.is_complete and not self.too_many_failed and not self.kept_units else 3

    @property
    def too_many_failed(self) -> bool:
        """Whether more images failed than `max_failed`."""
        return exceeds(self.max_failed, self.failed_images, self.done)


def status(output: str) -> Summary:
    """How far a job is.

    Raises:
        JobError: there is no job at the URL.
    """
    manifest = Manifest(Storage(output))
    return summarize(manifest, manifest.read_job())


def summarize(manifest: Manifest, record: JobRecord, seconds: float = 0.0) -> Summary:
    """The same, for whoever has read the job; `seconds` is how long a run took."""
    return Watch(manifest, record).look(seconds)


def watch(output: str, every: float) -> Iterator[Summary]:
    """How far a job is, again after so many seconds each time, until it is done or nobody works on it.

    Raises:
        JobError: there is no job at the URL.
    """
    manifest = Manifest(Storage(output))
    watched = Watch(manifest, manifest.read_job())
    while True:
        summary = watched.look()
        yield summary
        if summary.is_complete or not summary.runner:
            return
        time.sleep(every)


class Watch:
    """Looks at a job's manifest again and again; a commit that was read is not read again."""

    def __init__(self, manifest: Manifest, record: JobRecord) -> None:
        self.manifest = manifest
        self.record = record
        self._forget()
        self._runner: dict[str, Any] | None = None
        self._beat_seen = 0.0

    def _forget(self) -> None:
        self._seen: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._timings: defaultdict[str, float] = defaultdict(float)
        self._committed: list[tuple[datetime, int, float]] = []

    def look(self, seconds: float = 0.0) -> Summary:
        """What the job has come to by now; `seconds` is how long a run took.

        Raises:
            JobError: the manifest can't be read.
        """
        with reaching(f"read {self.manifest.storage.url}"):
            self._catch_up()
            failures, runner = self.manifest.failures(), self._living_runner()
        return Summary(
            output=self.manifest.storage.url,
            images=self.record.images,
            labeled=self._counts["images"] - self._failed.total(),
            failed=dict(sorted(self._failed.items())),
            annotations=self._counts["annotations"],
            units=self.record.units,
            committed=len(self._seen),
            segments=self._counts["segments"],
            proposals=self._counts["proposals"],
            failures=failures,
            seconds=seconds,
            max_failed=self.record.job.runtime.max_failed,
            runner=runner,
            timings={name: round(took, 3) for name, took in self._timings.items()},
            rate=self._rate(),
        )

    def _catch_up(self) -> None:
        """Reads the commits that are new."""
        committed = self.manifest.committed()
        if self._seen - committed:  # someone has taken commits away
            self._forget()
        for commit in self.manifest.commits(committed - self._seen):
            self._add(commit)
        self._seen = committed

    def _add(self, commit: dict[str, Any]) -> None:
        self._counts.update({name: count for name, count in commit["counts"].items() if name != "failed"})
        self._failed.update(commit["counts"]["failed"])
        for name, took in commit["timings"].items():
            self._timings[name] += took
        if "committed" in commit:
            worked = sum(took for name, took in commit["timings"].items() if name not in BESIDE)
            when = datetime.fromisoformat(commit["committed"])
            self._committed.append((when, commit["counts"]["images"], worked))

    def _rate(self) -> float | None:
        """Images a second between the last commits, as their own clocks have it.

        Workers that began together commit together: the time is no shorter than one of them needed for a unit.
        """
        self._committed.sort()
        self._committed = [one for one in self._committed if self._committed[-1][0] - one[0] <= RECENT]
        if len(self._committed) < 2:
            return None
        times, images, worked = zip(*self._committed, strict=True)
        took = max((times[-1] - times[0]).total_seconds(), *worked)
        return round(sum(images[1:]) / took, 3) if took else None

    def _living_runner(self) -> dict[str, Any] | None:
        """Who holds the lock, unless it is seen to beat no more."""
        now, runner = time.monotonic(), holder(self.manifest.storage)
        if runner != self._runner:
            self._runner, self._beat_seen = runner, now
        return runner if now - self._beat_seen < 2 * BEATS_TO_WAIT * BEAT_SECONDS else None
