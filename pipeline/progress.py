"""How far a job is: what workers count, what is told of it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from prelabel.pipeline.logs import event

RECENT_SECONDS = 30.0
"""Rates are those of so long a time, not since the beginning."""
SECONDS_BETWEEN_LOOKS = 0.5
PHASES = {
    "start": "looking at the model",
    "plan": "planning",
    "label": "labeling",
    "calibrate": "calibrating",
    "export": "exporting",
    "import": "importing",
    "validate": "validating",
}


def duration(seconds: float) -> str:
    """As people say it: `12 s`, `3 min`, `1 h 05 min`, `2 d 3 h`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def numbered(count: int, noun: str) -> str:
    """`1 unit`, `2 units`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Tally:
    """What workers have come to.

    Attributes:
        images, failed: looked at, and those of them that have no labels
        units: committed
        busy: seconds in which models computed, summed over workers
        workers: that hold their models
        restarts: of workers that died
        failures: of units, as `_manifest/failures` has them
    """

    images: int = 0
    failed: int = 0
    units: int = 0
    busy: float = 0.0
    workers: int = 0
    restarts: int = 0
    failures: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a job is; None is what is not known.

    Attributes:
        phase: one of `PHASES`
        done, total: images, or what `of` says
        failed: images of this run
        committed, units: of the whole job
        failed_units: of this run
        workers, wanted: that hold their models, and that there are to be
        restarts: of workers that died
        rate: images a second, of the last half minute
        busy: share of that time in which models computed, averaged over the workers
        of: what is counted
    """

    phase: str
    done: int = 0
    total: int | None = None
    failed: int = 0
    committed: int | None = None
    units: int | None = None
    failed_units: int = 0
    workers: int | None = None
    wanted: int | None = None
    restarts: int = 0
    rate: float | None = None
    busy: float | None = None
    of: str = "images"

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return self.done == self.total and self.committed == self.units

    def line(self) -> str:
        """All of it, for people."""
        if self.total is None and not self.done:  # it has just begun
            return PHASES[self.phase]
        total = f" of {self.total:,}" if self.total is not None else ""
        said = [f"{PHASES[self.phase]}: {self.done:,}{total} {self.of}", *self.speed(), *self.rest()]
        return ", ".join(said)

    def speed(self) -> Iterator[str]:
        """How fast it goes and how long that will take."""
        if self.rate is not None:
            yield f"{self.rate:,.1f} {self.of}/s"
        if self.seconds_left:
            yield f"{duration(self.seconds_left)} left"

    def rest(self) -> Iterator[str]:
        """Who works on it, and with what success."""
        if self.workers is not None:
            restarts = f" ({self.restarts} restarted)" if self.restarts else ""
            yield f"{self.workers} of {self.wanted} workers{restarts}"
        if self.busy is not None:
            yield f"models busy {self.busy:.0%}"
        if self.units is not None:
            yield f"{self.committed:,} of {self.units:,} units committed"
        if self.failed_units:
            yield f"{numbered(self.failed_units, 'unit')} failed"
        if self.failed:
            yield f"{numbered(self.failed, 'image')} failed"

    @property
    def seconds_left(self) -> float | None:
        """At the present rate."""
        return (self.total - self.done) / self.rate if self.rate and self.total is not None else None

    def facts(self) -> dict[str, Any]:
        """What is known, for programs."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        left = self.seconds_left
        rounded = {name: round(known[name], 3) for name in ("rate", "busy") if name in known}
        return known | rounded | ({} if left is None else {"seconds_left": round(left, 1)})


Reporter = Callable[[Progress], object]


class Pace:
    """How fast totals grow, lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, tuple[float, ...]]] = deque()

    def __call__(self, *totals: float) -> tuple[float, ...] | None:
        """Takes the totals of now; returns what is added to each a second, or None in the first second."""
        now = time.monotonic()
        if not self._seen or now - self._seen[-1][0] >= SECONDS_BETWEEN_LOOKS:
            self._seen.append((now, totals))
        while len(self._seen) > 2 and now - self._seen[1][0] > RECENT_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        if now - then < 1:
            return None
        return tuple((total - old) / (now - then) for total, old in zip(totals, before, strict=True))


class Meter:
    """Tells a reporter what the tallies of one wave of work after another come to.

    Args:
        reporter: is told
        begun: what there is before the first wave
    """

    def __init__(self, reporter: Reporter, begun: Progress) -> None:
        self.reporter = reporter
        self.begun = begun
        self.wave_images = self.told = 0
        self.pace = Pace()

    def begin(self, images: int) -> None:
        """A wave of so many images begins."""
        self.wave_images, self.told = images, 0
        self.latest = self.begun
        self(Tally())

    def __call__(self, tally: Tally) -> None:
        """The wave has come to this so far; images that were worked twice count once."""
        begun, images = self.begun, min(tally.images, self.wave_images)
        workers = min(tally.workers, begun.wanted or tally.workers)  # one may have come in another's place
        if not images:
            self.pace = Pace()  # whatever the models need to get ready is no rate
        self._tell_failures(tally.failures)
        rate, busy = self.pace(images, tally.busy) or (None, None)
        self.latest = replace(
            begun,
            done=begun.done + images,
            failed=begun.failed + tally.failed,
            committed=None if begun.committed is None else begun.committed + tally.units,
            failed_units=begun.failed_units + len(tally.failures),
            workers=workers,
            restarts=begun.restarts + tally.restarts,
            rate=rate,
            busy=None if busy is None or not workers else min(1.0, busy / workers),
        )
        self.reporter(self.latest)

    def _tell_failures(self, failures: tuple[dict[str, Any], ...]) -> None:
        for failure in failures[self.told :]:
            facts = {"unit": failure["unit"], "error": failure["error"], "reason": failure["message"]}
            event("unit_failed", "unit {unit} failed with {error}: {reason}".format(**facts), logging.WARNING, **facts)
        self.told = len(failures)

    def end(self, committed: int, failed_units: int, images: int | None = None) -> None:
        """The wave is over with all its images, or so many; the next one goes on from there."""
        self.begun = replace(
            self.latest,
            done=self.begun.done + (self.wave_images if images is None else images),
            committed=committed,
            failed_units=self.begun.failed_units + failed_units,
        )
        self.reporter(self.begun)
