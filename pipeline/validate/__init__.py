"""Proves a job's promises by reading all of it; see docs/validate.md for what is proven, and how."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pyarrow as pa

from prelabel.operators.threads import map_ahead
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.manifest import AMENDED, COMMITS, FAILURES, UNITS, Manifest, to_json, unit_name, waiting
from prelabel.pipeline.storage import Storage, reaching
from prelabel.pipeline.validate.manifest import (
    PlannedUnit,
    check_commit,
    check_failures,
    check_job,
    check_plan,
    look_around,
    read_failure,
)
from prelabel.pipeline.validate.parts import check_size, read_part
from prelabel.pipeline.validate.reviews import Reviewed
from prelabel.pipeline.validate.rows import (
    CHECKS,
    Images,
    Vocabulary,
    check_counts,
    check_image_ids,
    check_images,
    check_instances,
)
from prelabel.pipeline.validate.violations import PROMISES, Validation, Violation, Violations, Wrong
from prelabel.pipeline.writer import counts_of
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.job import JobRecord
from prelabel.schemas.tables import file_metadata

__all__ = ["PROMISES", "Validation", "Violation", "validate"]

THREADS = min(8, os.cpu_count() or 1)
Progress = Callable[[int, int], object]


def validate(
    url: str,
    *,
    units: range | None = None,
    quick: bool = False,
    fix: bool = False,
    limit: int = 1_000,
    progress: Progress = max,
) -> Validation:
    """Reads a job unit by unit, and names what breaks its promises.

    Args:
        url: of the job's output
        units: only these are looked at; None: all
        quick: whether to leave the parts unread, but for their sizes
        fix: whether damaged units lose their commits, so that `resume` works them again
        limit: of the violations of each kind, so many are named; all are counted
        progress: is told how many committed units have been looked at, and of how many

    Raises:
        JobError: there is no job, it can't be reached, or it is to be fixed while somebody works on it.
    """
    began = time.monotonic()
    manifest = Manifest(Storage(url))
    found = Validation(manifest.storage.url, Violations(limit), Violations(limit), quick=quick)
    with reaching(f"read {found.url}"):
        record = check_job(manifest, found.violations)
    if record is not None:
        with reaching(f"read or write {found.url}"), Lock(manifest.storage) if fix else nullcontext():
            _Reading(manifest, record, found, progress).read(units)
            if fix:
                found.fixed = send_back(manifest, found.violations.units)
    found.seconds = time.monotonic() - began
    return found


def send_back(manifest: Manifest, units: set[int]) -> list[int]:
    """Takes back the commits of some units, and the mark that they are given up; returns their numbers, sorted."""
    for unit in sorted(units):
        manifest.storage.delete(f"{AMENDED}/{unit_name(unit)}")
        manifest.storage.delete(f"{COMMITS}/{unit_name(unit)}")
        name, failure = f"{FAILURES}/{unit_name(unit)}", read_failure(manifest.storage, unit)
        if failure is None:
            manifest.storage.delete(name)
        elif failure["final"]:
            manifest.storage.put(name, to_json(failure | {"final": False}))
    return sorted(units)


@dataclass
class _Unit:
    """What a unit has come to."""

    violations: Violations
    rows: Counter[str] = field(default_factory=Counter)
    masks: int = 0


@dataclass
class _Reading:
    manifest: Manifest
    record: JobRecord
    found: Validation
    progress: Progress

    def __post_init__(self) -> None:
        categories = CategorySet(map(Category.from_coco, self.record.categories))
        self.storage = self.manifest.storage
        self.vocabulary = Vocabulary(categories, tuple(one.get("name", "") for one in self.record.models))
        self.metadata = file_metadata(self.record.fingerprint, categories.to_json())

    def read(self, chosen: range | None) -> None:
        """Everything, in the plan's order."""
        violations, record = self.found.violations, self.record
        committed, self.amended = self.manifest.committed(), self.manifest.amended()
        look_around(self.storage, record, committed, violations, self.found.leftovers)
        check_failures(self.storage, record, committed, violations)
        for unit in sorted(one for one in committed if one >= record.units):
            violations.add("commit", "is of no planned unit", unit=unit, file=f"{COMMITS}/{unit_name(unit)}")
        self.reviewed = Reviewed(self.storage, record.images, self.metadata, self.found)
        wanted = {one for one in committed if one < record.units and (chosen is None or one in chosen)}
        self.found.units, self.found.images = record.units, record.images
        self.found.committed, self.found.wanted = len(committed), len(wanted)
        self.progress(0, len(wanted))
        for planned in check_plan(self.manifest, record, self.found):
            self._read_units([unit for unit in planned if unit.number in wanted])
        if unread := len(wanted) - self.found.checked:
            violations.add("plan", f"{unread} committed units can't be looked at, for the plan is damaged", file=UNITS)

    def _read_units(self, planned: list[PlannedUnit]) -> None:
        for unit in map_ahead(self._unit, planned, THREADS, ahead=THREADS):
            self.found.violations.merge(unit.violations)
            self.found.rows += unit.rows
            self.found.masks += unit.masks
            self.found.checked += 1
            self.progress(self.found.checked, self.found.wanted)

    def _unit(self, planned: PlannedUnit) -> _Unit:
        unit = _Unit(Violations(self.found.violations.limit))
        is_amended = planned.number in self.amended
        folder = AMENDED if is_amended else COMMITS
        commit = check_commit(self.storage, planned.number, self.record, unit.violations, folder)
        if commit is None:
            return unit
        parts = commit["parts"]
        if is_amended:  # the new parts count already, and are not yet in their places
            parts = {name: part | {"path": waiting(part["path"])} for name, part in parts.items()}
        if self.found.quick:
            for part in parts.values():
                check_size(self.storage, planned.number, part, unit.violations)
            counts = {name: part["rows"] for name, part in parts.items()}
            self._check_counts(commit, counts | {"images": len(planned.keys)}, unit)
            return unit
        tables = {
            name: read_part(self.storage, planned.number, name, part, self.metadata, unit.violations)
            for name, part in parts.items()
        }
        whole = {name: rows for name, rows in tables.items() if rows is not None}
        unit.rows.update({name: len(rows) for name, rows in whole.items()})
        masks = (rows["segmentation"] for rows in whole.values() if "segmentation" in rows.column_names)
        unit.masks = sum(len(column) - column.null_count for column in masks)
        if len(whole) == len(tables):
            self._check_counts(commit, counts_of(whole), unit)
        if "images" in whole:
            self._check_rows(planned, parts, whole, unit)
        return unit

    def _check_counts(self, commit: dict[str, object], counts: dict[str, object], unit: _Unit) -> None:
        said = commit["counts"]
        if isinstance(said, dict) and self.found.quick:
            counts = counts | {"failed": said.get("failed")}
        if said != counts:
            number = int(str(commit["unit"]))
            message = f"counts {said!s:.200}, and there are {counts}"
            unit.violations.add("commit", message, unit=number, file=f"{COMMITS}/{unit_name(number)}")

    def _check_rows(
        self, planned: PlannedUnit, parts: dict[str, dict[str, str]], tables: dict[str, pa.Table], unit: _Unit
    ) -> None:
        def tell(name: str, *checks: Wrong) -> None:
            for wrong in checks:
                unit.violations.add_rows(wrong, planned.number, parts[name]["path"])

        tell("images", *check_image_ids(planned, tables["images"]))
        if unit.violations.counts["image"]:
            return
        images, annotations = Images(planned, tables["images"]), tables.get("annotations")
        tell("images", *check_images(planned, tables["images"], self.vocabulary))
        if annotations is not None or "annotations" not in parts:
            tell("images", *check_counts(annotations, images))
            self.reviewed.check(planned.image_ids, annotations, unit.violations)
            if "segments" in tables:
                tell("segments", *check_instances(tables["segments"], annotations))
        for name, check in CHECKS.items():
            if name in tables:
                tell(name, *check(tables[name], images, self.vocabulary))
