"""Works the units of a job wave by wave; looks for the images that workers die of, and goes on without them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prelabel.operators.threads import map_ahead
from prelabel.pipeline.amend import failed_images
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.logs import event
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.poison import Suspect, search
from prelabel.pipeline.portions import Portion
from prelabel.pipeline.progress import Meter, Progress, Reporter, numbered
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import reaching
from prelabel.schemas.job import JobRecord

MOST_ATTEMPTS = 3
"""A unit is worked again so often in one run when its workers die; each attempt may cost two of them."""
WORKER_DEATHS = 2
"""Of one unit in one attempt; then its images are tried apart."""
SUSPECTS = 8
"""When so many units have lost their workers, they are looked into before others are begun."""
READ_THREADS = 16

logger = logging.getLogger("prelabel")


@dataclass(frozen=True)
class Todo:
    """What is left of a job.

    Attributes:
        units: without a commit
        amended: units with a commit, whose failed images are worked again
        images: in all of these
        forgetting: whether images that were left out before, for workers died of them, are tried again
    """

    units: frozenset[int]
    amended: frozenset[int] = frozenset()
    images: int = 0
    forgetting: bool = False

    @property
    def all(self) -> frozenset[int]:
        """Units of which something is left."""
        return self.units | self.amended


@dataclass
class Labeling:
    """The part of a run that holds the lock and a cluster.

    Attributes:
        manifest, record: of the job
        work: what workers are told, as `graph.Work`
        pool: of workers
        lock: that is held
        progress: is told how far it is
    """

    manifest: Manifest
    record: JobRecord
    work: Any
    pool: Any
    lock: Lock
    progress: Reporter
    failed_units: int = 0
    failed_before: int = 0
    amended: frozenset[int] = frozenset()
    attempts: Counter[int] = field(default_factory=Counter)
    kept: set[int] = field(default_factory=set)

    def label(self, todo: Todo) -> int:
        """Works what is left, until too much has failed; returns how many units kept rows that were to be mended."""
        self.amended = todo.amended
        begun = Progress(
            "label",
            self.record.images - todo.images,
            self.record.images,
            committed=len(self.manifest.committed()),
            units=self.record.units,
            workers=0,
            wanted=self.pool.most * len(self.pool.groups),
        )
        self.meter = Meter(self.progress, begun)
        if self.record.job.runtime.max_failed is not None:
            commits = self.manifest.commits(self.manifest.committed() - todo.amended)
            self.failed_before = sum(sum(commit["counts"]["failed"].values()) for commit in commits)
        for wave in self.manifest.waves(set(range(self.record.units)) - todo.all):
            if not self._label_wave(self._portions(wave, todo)):
                break
        self.manifest.storage.delete_temporary()
        return len(self.kept)

    def _portions(self, wave: Sequence[Unit], todo: Todo) -> list[Portion]:
        skipped = self.manifest.skipped(unit.number for unit in wave)
        if todo.forgetting:
            for unit in skipped:
                self.manifest.forget_failure(unit)
            skipped = {}
        again = [unit for unit in wave if unit.number in todo.amended]
        whole = [Portion.whole(unit, skipped.get(unit.number)) for unit in wave if unit.number in todo.units]
        return [*whole, *map_ahead(partial(failed_images, self.manifest), again, READ_THREADS, READ_THREADS)]

    def _label_wave(self, portions: list[Portion]) -> bool:
        """Works portions until each is committed or given up; returns whether to go on."""
        from prelabel.pipeline import graph

        while portions:
            self.meter.begin(sum(map(len, portions)))
            try:
                fates, errors = graph.label_wave(
                    self.work, portions, self.amended, self.pool, self._limits(len(portions)), self.meter
                )
            except KeyboardInterrupt:
                self.lock.check()
                raise
            self.lock.check()
            if errors:
                logger.debug("%s", "\n".join(errors))
            portions = self._after(portions, fates, _reason(errors))
            if fates.cannot_load or fates.stopped in ("failed", "failed_units") or self._too_many_units():
                self._tell_stopped(fates)
                return False
        return True

    def _limits(self, blocks: int) -> Any:
        from prelabel.pipeline import graph

        runtime, begun = self.record.job.runtime, self.meter.begun
        return graph.Limits(
            tries=(WORKER_DEATHS,) * blocks,
            deaths=SUSPECTS,
            failed_units=runtime.max_failed_units - self.failed_units,
            max_failed=runtime.max_failed,
            images=begun.done,
            failed=self.failed_before + begun.failed,
        )

    def _after(self, portions: list[Portion], fates: Any, reason: str) -> list[Portion]:
        """What is left of portions that were worked."""
        from prelabel.pipeline import graph

        committed, failed = self.manifest.committed(), {failure["unit"] for failure in fates.failures}
        done = {
            number
            for number, portion in enumerate(portions)
            if number in fates.committed or portion.unit.number in committed - self.amended
        }
        left = {number: one for number, one in enumerate(portions) if number not in done}
        told = {number for number, one in left.items() if one.unit.number in failed}
        self.failed_units += len(told)
        for number in sorted(told):
            self._tell_kept(left[number].unit.number)
        over = sum(len(portions[number]) for number in done | told)
        self.meter.end(len(committed), len(told), over)
        left = {number: one for number, one in left.items() if number not in told}
        if fates.cannot_load:
            for number in fates.begun & left.keys():
                self._give_up(left[number], graph.CANNOT_LOAD)
            return []
        if fates.stopped in ("failed", "failed_units"):
            return []
        suspects = {number: left.pop(number) for number in sorted(fates.died) if number in left}
        # Who was begun, and neither died nor failed, waited for a worker that did, or could not be written.
        again = [one for number, one in left.items() if not fates.stopped or number in fates.begun]
        untouched = [one for number, one in left.items() if fates.stopped and number not in fates.begun]
        return [*self._search(list(suspects.values()), fates.stuck), *self._try_again(again, reason), *untouched]

    def _search(self, portions: list[Portion], stuck: frozenset[int]) -> list[Portion]:
        """The same without the images that workers die of, unless there are none, or it was tried too often."""
        from prelabel.pipeline import graph

        portions = self._try_again(portions, "its workers die, and no image of it is to blame alone", final=True)
        if not portions:
            return []
        units = ", ".join(str(portion.unit.number) for portion in portions)
        told = f"workers died of {numbered(len(portions), 'unit')} ({units}): looking for the images"
        logger.warning("%s", told)
        suspects = [Suspect.of(portion, stuck.intersection(portion.image_ids)) for portion in portions]
        search(suspects, partial(graph.probe, self.work, pool=self.pool))
        self.lock.check()
        return [one.portion.without(one.found) for one in suspects if self._has_told(one)]

    def _has_told(self, suspect: Suspect) -> bool:
        """Writes down what was found; False where that is the end of the unit for now."""
        portion = suspect.portion
        if suspect.why_not:
            self._give_up(portion, f"its workers die: {suspect.why_not}", final=True)
            return False
        if suspect.found:
            skip = {**portion.skip, **suspect.found}
            message = f"workers die of {numbered(len(suspect.found), 'image')} of it: left out"
            with reaching(f"write to {self.manifest.storage.url}"):
                self.manifest.record_failure(portion.unit.number, "WorkerDied", message, final=False, skip=skip)
            logger.warning("unit %d: %s", portion.unit.number, message)
        return True

    def _try_again(self, portions: Sequence[Portion], reason: str, final: bool = False) -> list[Portion]:
        self.attempts.update(portion.unit.number for portion in portions)
        for portion in portions:
            if self.attempts[portion.unit.number] >= MOST_ATTEMPTS:
                self._give_up(portion, reason, final)
        return [portion for portion in portions if self.attempts[portion.unit.number] < MOST_ATTEMPTS]

    def _give_up(self, portion: Portion, reason: str, final: bool = False) -> None:
        self.failed_units += 1
        unit = portion.unit.number
        event("unit_failed", f"unit {unit} failed: {reason}", logging.WARNING, unit=unit, reason=reason)
        self._tell_kept(unit)
        with suppress(OSError):
            self.manifest.record_failure(unit, "WorkerDied" if final else "Unfinished", reason, final)

    def _tell_kept(self, unit: int) -> None:
        if unit in self.amended:
            self.kept.add(unit)
            logger.warning("the failed images of unit %d could not be worked again: its rows stay as they were", unit)

    def _too_many_units(self) -> bool:
        return self.failed_units > self.record.job.runtime.max_failed_units

    def _tell_stopped(self, fates: Any) -> None:
        from prelabel.pipeline import graph

        runtime = self.record.job.runtime
        if fates.cannot_load:
            why = graph.CANNOT_LOAD
        elif fates.stopped == "failed":
            why = f"more than {runtime.max_failed} of the images failed (--max-failed)"
        else:
            why = f"more than {runtime.max_failed_units} units failed (--max-failed-units)"
        logger.warning("%s: stopped", why)


def _reason(errors: list[str]) -> str:
    """The one line that says most in what Ray logs of a failed block: the last that names an error."""
    lines = [line.strip() for error in errors for line in error.splitlines()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Invalid|Died)\b.*:", line)]
    return (named or lines or ["its worker died, or the run was stopped"])[-1]
