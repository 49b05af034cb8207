"""What `_manifest` holds: job.json, the plan, the commits, and what lies about beside them and the parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from pydantic import ValidationError

from prelabel.pipeline.lock import LOCK, holder
from prelabel.pipeline.manifest import (
    AMENDED,
    COMMITS,
    FAILURES,
    FOLDER,
    JOB,
    UNITS,
    UNITS_PER_PLAN_FILE,
    Manifest,
    plan_bytes,
    plan_name,
    to_json,
    unit_name,
    unit_number,
)
from prelabel.pipeline.plan import PLAN_SCHEMA
from prelabel.pipeline.storage import TEMPORARY, Storage
from prelabel.pipeline.validate.parts import DamagedParquetError, read_parquet
from prelabel.pipeline.validate.violations import Validation, Violations
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import JobError, PrelabelError, one_line
from prelabel.schemas.job import JobRecord, fingerprint
from prelabel.schemas.tables import ADDED, TABLES, part_name

NAMES_IN_MANIFEST = {path.rpartition("/")[2] for path in (JOB, UNITS, COMMITS, FAILURES, AMENDED, LOCK, TEMPORARY)}
COMMIT_KEYS = {"unit", "parts", "counts", "timings"}
PART_TYPES = {"path": str, "rows": int, "bytes": int, "sha256": str}
SKIP_TYPES = {"image_id": int, "code": str, "unread": bool}
FAILURE_TYPES = {"unit": int, "attempts": int, "error": str, "message": str, "final": bool}


class PlannedUnit(NamedTuple):
    """What the plan says of a unit: its number, the id of its first image, its shard's URI, its images' keys."""

    number: int
    first_image_id: int
    shard: str
    keys: pa.Array

    @property
    def image_ids(self) -> np.ndarray:
        """int64, of its images."""
        return np.arange(self.first_image_id, self.first_image_id + len(self.keys))


def check_job(manifest: Manifest, violations: Violations) -> JobRecord | None:
    """What job.json says; None where that can't be read.

    Raises:
        JobError: there is no job.
    """
    try:
        record = manifest.read_job()
        categories = CategorySet(map(Category.from_coco, record.categories))
    except PrelabelError as error:
        if isinstance(error, JobError) and not isinstance(error.__cause__, ValidationError):
            raise
        violations.add("job", f"can't be read: {one_line(error)}", file=JOB)
        return None
    data = manifest.storage.read(JOB)
    if to_json(orjson.loads(data)) != data:
        violations.add("job", "is not as it was written", file=JOB)
    expected = fingerprint(record.job.labels, [one.get("digest", "") for one in record.models], categories.digest)
    if expected != record.fingerprint:
        violations.add("job", "its fingerprint is not that of its labels, models and categories", file=JOB)
    if [one.get("name") for one in record.models] != [model.name for model in record.job.labels.models]:
        violations.add("job", "the models are not those of its labels", file=JOB)
    for name in set(record.tables) - set(TABLES) | {"images"} - set(record.tables):
        violations.add("job", f"there is a table {name!r} too many, or too few", file=JOB)
    return record


# The plan


def check_plan(manifest: Manifest, record: JobRecord, found: Validation) -> Iterator[list[PlannedUnit]]:
    """The units of one file of the plan after another, without those of files that are damaged."""
    violations = found.violations
    count = -(-record.units // UNITS_PER_PLAN_FILE)
    for name in sorted({*manifest.storage.names(UNITS)} - {plan_name(number) for number in range(count)}):
        violations.add("plan", "is no file of this plan, and resume would read it: remove it", file=f"{UNITS}/{name}")
    next_id: int | None = 0
    for number in range(count):
        name, first = f"{UNITS}/{plan_name(number)}", number * UNITS_PER_PLAN_FILE
        rows = _plan_rows(manifest.storage, name, found)
        expected = range(first, min(first + UNITS_PER_PLAN_FILE, record.units))
        if rows is None or not _is_consistent(rows, expected, next_id, name, violations):
            next_id = None
            continue
        units = list(_units_of(rows))
        next_id = units[-1].first_image_id + len(units[-1].keys)
        yield units
    if next_id is not None and next_id != record.images:
        violations.add("plan", f"holds {next_id:,} images, job.json says {record.images:,}", file=UNITS)


def _plan_rows(storage: Storage, name: str, found: Validation) -> pa.Table | None:
    violations = found.violations
    try:
        data = storage.read(name)
        rows = read_parquet(data).rows
    except FileNotFoundError:
        violations.add("plan", "is missing", file=name)
        return None
    except DamagedParquetError as error:
        violations.add("plan", str(error), file=name)
        return None
    if not rows.schema.equals(PLAN_SCHEMA):
        violations.add("plan", "has other columns than a plan", file=name)
        return None
    check_rewritten(data, plan_bytes(rows.cast(PLAN_SCHEMA)), "plan", name, found)
    return rows


def check_rewritten(data: bytes, again: bytes, kind: str, name: str, found: Validation) -> None:
    """A file without a checksum must be what its rows are written as: page checksums don't cover all of its bytes.

    Another version of Arrow may write the same rows in another way; then it is only told that this was not compared.
    """
    if data == again:
        return
    writer, here = read_parquet(data).writer, read_parquet(again).writer
    if writer != here:
        found.leftovers.add("writer", f"is from {writer!r:.60}: its bytes can't be compared", file=name)
    else:
        found.violations.add(kind, "is not as it was written, though it can be read", file=name)


def _is_consistent(rows: pa.Table, expected: range, next_id: int | None, name: str, violations: Violations) -> bool:
    before = sum(violations.counts.values())
    if rows["unit"].to_pylist() != list(expected):
        violations.add("plan", f"its units are not {expected.start} to {expected.stop - 1}", file=name)
        return False
    lists = [rows[column].combine_chunks() for column in ("keys", "offsets", "sizes")]
    lengths = np.array([one.value_lengths().to_numpy() for one in lists])
    for row in np.flatnonzero((lengths != lengths[0]).any(0) | (lengths[0] < 1)).tolist():
        said = "{} keys, {} offsets, {} sizes".format(*lengths[:, row].tolist())
        violations.add("plan", f"{said}: there should be as many of each, and some", file=name, row=row)
    ids = rows["first_image_id"].to_numpy()
    follow = np.append(ids[0] if next_id is None else next_id, ids[:-1] + lengths[0][:-1])
    for row in np.flatnonzero(ids != follow).tolist():
        violations.add("plan", f"first_image_id {ids[row]} where {follow[row]} comes next", file=name, row=row)
    if lists[0].flatten().null_count:
        violations.add("plan", "an image has no key", file=name)
    return sum(violations.counts.values()) == before


def _units_of(rows: pa.Table) -> Iterator[PlannedUnit]:
    keys = rows["keys"].combine_chunks()
    columns = (rows[name].to_pylist() for name in ("unit", "first_image_id", "shard"))
    for row, (unit, first, shard) in enumerate(zip(*columns, strict=True)):
        yield PlannedUnit(unit, first, shard, keys[row].values)


# Commits


def check_commit(
    storage: Storage, unit: int, record: JobRecord, violations: Violations, folder: str = COMMITS
) -> dict[str, Any] | None:
    """A unit's commit, or the new one that waits in another folder; None where it can't be relied on."""
    name = f"{folder}/{unit_name(unit)}"
    data = storage.read(name)
    try:
        commit = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        violations.add("commit", f"can't be read: {error}", unit=unit, file=name)
        return None
    wrong = list(_wrong_in_commit(commit, unit, record)) or ["is not as it was written"] * (to_json(commit) != data)
    for message in wrong:
        violations.add("commit", message, unit=unit, file=name)
    return None if wrong else commit


def _wrong_in_commit(commit: Any, unit: int, record: JobRecord) -> Iterator[str]:
    if not isinstance(commit, dict) or commit.keys() - {"committed"} != COMMIT_KEYS:
        yield f"should hold {', '.join(sorted(COMMIT_KEYS))}"
        return
    parts, timings = commit["parts"], commit["timings"]
    if commit["unit"] != unit:
        yield f"is of unit {commit['unit']!r:.40}"
    if not isinstance(parts, dict) or parts.keys() != set(record.tables):
        yield f"names parts of {', '.join(map(str, parts))}, the job's tables are {', '.join(record.tables)}"
        return
    for name, part in parts.items():
        if not _has_types(part, PART_TYPES) or part.keys() != PART_TYPES.keys():
            yield f"its part of {name} should hold {', '.join(PART_TYPES)}"
        elif part["path"] != f"{name}/{part_name(unit)}":
            yield f"its part of {name} is {part['path']!r:.80}, not {name}/{part_name(unit)}"
    if not isinstance(timings, dict) or not all(
        isinstance(took, int | float) and took >= 0 for took in timings.values()
    ):
        yield "its timings are no seconds"
    if not _is_time(commit.get("committed", "2000-01-01")):
        yield f"was committed at {commit['committed']!r:.40}, which is no time"


def _has_types(value: Any, types: dict[str, type]) -> bool:
    return isinstance(value, dict) and all(type(value.get(key)) is kind for key, kind in types.items())


def _is_time(text: Any) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return False


# What lies about


def check_failures(storage: Storage, record: JobRecord, committed: set[int], violations: Violations) -> None:
    """What is said of units without a commit must be readable: status and resume read it."""
    for name in storage.names(FAILURES):
        unit = unit_number(name)
        if unit is None or unit in committed:
            continue
        if read_failure(storage, unit) is None or unit >= record.units:
            message = f"should hold {', '.join(FAILURE_TYPES)} of a planned unit"
            violations.add("failure", message, unit=unit, file=f"{FAILURES}/{name}")


def read_failure(storage: Storage, unit: int) -> dict[str, Any] | None:
    """What is said of a unit's failure; None where nothing is, or nothing of use."""
    try:
        failure = orjson.loads(storage.read(f"{FAILURES}/{unit_name(unit)}"))
    except (orjson.JSONDecodeError, FileNotFoundError):
        return None
    if not _has_types(failure, FAILURE_TYPES) or failure["unit"] != unit:
        return None
    skipped = failure.get("skip", [])
    return failure if isinstance(skipped, list) and all(_has_types(one, SKIP_TYPES) for one in skipped) else None


def look_around(
    storage: Storage, record: JobRecord, committed: set[int], violations: Violations, leftovers: Violations
) -> None:
    """Tells what lies in the job's folder and is none of its own; in a table's folder Arrow tools would read it."""
    for name in storage.names(""):
        if name != FOLDER and name not in TABLES:
            leftovers.add("stray", "is none of the job's", file=name)
    for name in storage.names(FOLDER):
        if name not in NAMES_IN_MANIFEST:
            leftovers.add("stray", "is none of the manifest's", file=f"{FOLDER}/{name}")
    for folder in (COMMITS, FAILURES):
        for name in storage.names(folder):
            unit = unit_number(name)
            if unit is None:
                leftovers.add("stray", "has no unit's name", file=f"{folder}/{name}")
            elif folder == FAILURES and unit in committed and not (read_failure(storage, unit) or {}).get("skip"):
                leftovers.add("failure", "is of a unit that has been committed since", file=f"{folder}/{name}")
    amended = storage.names(AMENDED)
    for name in amended:
        if unit_number(name) is None and f"{name[-16:-8]}.json" not in amended:
            leftovers.add("part", "was to replace another, and never counted", file=f"{AMENDED}/{name}")
    for name in storage.names(TEMPORARY):
        leftovers.add("temporary", "is what a write left that was cut short", file=f"{TEMPORARY}/{name}")
    _look_at_tables(storage, record, committed, violations, leftovers)
    runner = holder(storage)
    if runner is not None and runner.get("pid") != os.getpid():
        message = f"process {runner.get('pid')} on {runner.get('host')} is at work: what it writes now is not looked at"
        leftovers.add("lock", message, file=LOCK)
    elif runner is None and storage.exists(LOCK):
        leftovers.add("lock", "is of a runner that is gone", file=LOCK)


def _look_at_tables(
    storage: Storage, record: JobRecord, committed: set[int], violations: Violations, leftovers: Violations
) -> None:
    for table in TABLES:
        planned = record.units if table in record.tables else 0
        for name in storage.names(table):
            digits = name.removeprefix("part-").removesuffix(".parquet")
            unit = int(digits) if digits.isdecimal() else -1
            is_planned = 0 <= unit < planned and name == part_name(unit)
            if (is_planned and unit in committed) or (table in ADDED and name.endswith(".parquet")):
                continue
            if is_planned:
                leftovers.add("part", "has no commit, so it does not count", file=f"{table}/{name}")
            elif name.startswith("_"):
                leftovers.add("stray", "is none of the job's", file=f"{table}/{name}")
            else:
                message = "is no part of the job, and Arrow tools would read it: remove it"
                violations.add("stray", message, file=f"{table}/{name}")
