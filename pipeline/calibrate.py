"""How fast a job will be: some of its images are labeled on trial, and nothing is written."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from prelabel.pipeline.pool import Pool
from prelabel.pipeline.progress import Meter, Progress, Reporter, Tally
from prelabel.pipeline.sources.base import Unit

MOST_IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class Calibration:
    """What a trial has shown.

    Attributes:
        images, failed: labeled on trial, and those of them that can't be
        workers: that the job will have
        images_per_second: of all workers, once they have started and compiled
        hours: for the whole job
        timings: seconds of the trial, summed over workers, as in commits
    """

    images: int
    failed: int
    workers: int
    images_per_second: float
    hours: float
    timings: dict[str, float]

    @property
    def images_per_second_per_worker(self) -> float:
        """Of one worker of them."""
        return self.images_per_second / self.workers


class Spread:
    """Takes a plan's units in turn and keeps some images, evenly spread; the plan is not held.

    It keeps every k-th, and doubles k when it has twice as many as are wanted.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.every = 1
        self.kept: list[Unit] = []

    def add(self, unit: Unit) -> None:
        """The next unit of the plan."""
        first = -unit.first_image_id % self.every
        self.kept += [_one(unit, position) for position in range(first, len(unit), self.every)]
        while len(self.kept) >= 2 * self.wanted:
            self.kept, self.every = self.kept[::2], 2 * self.every

    def images(self) -> list[Unit]:
        """As many as are wanted, or all there are, each as a unit of its own."""
        count = min(self.wanted, len(self.kept))
        return [self.kept[number * len(self.kept) // count] for number in range(count)]


def _one(unit: Unit, position: int) -> Unit:
    only = slice(position, position + 1)
    image_id = unit.first_image_id + position
    return Unit(unit.number, unit.shard, image_id, unit.keys[only], unit.offsets[only], unit.sizes[only])


def calibrate(work: Any, pool: Pool, trial: list[Unit], images: int, progress: Reporter) -> Calibration:
    """Labels the images of the trial on the job's pool, twice: the first time a worker starts up and compiles.

    Raises:
        ModelError: they can't be labeled.
    """
    from prelabel.pipeline import graph

    parts = min(len(trial), max(pool.fewest, math.ceil(len(trial) / MOST_IMAGES_AT_ONCE)))
    workers = pool.fewest * len(pool.groups)
    meter = Meter(progress, Progress("calibrate", total=2 * len(trial), workers=0, wanted=workers, of="looks"))
    meter.begin(2 * len(trial))

    def tell(tally: Tally) -> None:
        meter(replace(tally, failed=tally.failed // 2))

    found = graph.calibrate(work, [trial[part::parts] for part in range(parts)], pool, tell)
    timings: defaultdict[str, float] = defaultdict(float)
    for one in found:
        for name, took in one["timings"].items():
            timings[name] += took
    # The slowest group of the models sets the pace.
    seconds = max(timings.pop(f"workers {group}") for group in range(len(pool.groups)))
    rate = len(trial) * pool.fewest / seconds
    failed = sum(one["failed"] for one in found)
    rounded = {name: round(took, 3) for name, took in timings.items()}
    return Calibration(len(trial), failed, workers, rate, images / rate / 3600, rounded)
