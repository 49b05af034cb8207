"""What `resume` needs: the plan, what has been committed, what has failed."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from prelabel.pipeline.plan import from_table, to_table
from prelabel.pipeline.portions import Skip
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage, reaching
from prelabel.schemas.errors import JobError, redacted
from prelabel.schemas.job import JobRecord

FOLDER = "_manifest"
JOB = f"{FOLDER}/job.json"
UNITS = f"{FOLDER}/units"
COMMITS = f"{FOLDER}/commits"
FAILURES = f"{FOLDER}/failures"
AMENDED = f"{FOLDER}/amended"
"""New parts of units that are committed, and the commits that make them count: see `prelabel.pipeline.amend`."""
UNITS_PER_PLAN_FILE = 1_000
"""One file of the plan is one wave of work, so the driver never holds more units than this."""
PLAN_ROWS = 64
"""Units of a row group of the plan."""
READ_THREADS = 16


def unit_name(unit: int) -> str:
    """The file name of a unit's commit or failure."""
    return f"{unit:08d}.json"


def unit_number(name: str) -> int | None:
    """The unit of a file name that `unit_name` gives; None for any other name."""
    digits = name.removesuffix(".json")
    return int(digits) if digits.isascii() and digits.isdigit() and name == unit_name(int(digits)) else None


def waiting(path: str) -> str:
    """Where the new part waits that is to be at a path: `_manifest/amended/images-part-00000042.parquet`."""
    return f"{AMENDED}/{path.replace('/', '-')}"


def plan_name(number: int) -> str:
    """The name of a file of the plan."""
    return f"part-{number:05d}.parquet"


def plan_bytes(rows: pa.Table) -> bytes:
    """A file of the plan: the same bytes for the same rows, each time."""
    buffer = pa.BufferOutputStream()
    pq.write_table(
        rows.combine_chunks(), buffer, compression="zstd", row_group_size=PLAN_ROWS, write_page_checksum=True
    )
    return cast(bytes, buffer.getvalue().to_pybytes())


def to_json(value: Any) -> bytes:
    """Indented, for people who look."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


class Manifest:
    """The `_manifest` folder of a job's output."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    # The plan

    def check_free(self) -> None:
        """Raises JobError unless a new job may begin here: nothing is there, or a plan that was never finished."""
        with reaching(f"read {self.storage.url}"):
            # Listed, not asked for by name: some file systems say of a file that it is absent when they can't tell.
            ours, names = self.storage.names(FOLDER), self.storage.names("")
        if posixpath.basename(JOB) in ours:
            raise JobError(
                f"{self.storage.url} holds a job already: continue it with `prelabel resume {self.storage.url}`, "
                "or choose another --output"
            )
        others = [name for name in names if name != FOLDER]
        if others:
            raise JobError(f"{self.storage.url} is not empty (it holds {others[0]!r}): choose another --output")

    def write_plan(self, units: Iterable[Unit]) -> tuple[int, int]:
        """Writes the plan in place of an unfinished one; returns the numbers of units and of images."""
        with reaching(f"write to {self.storage.url}"):
            for name in self.storage.names(UNITS):
                self.storage.delete(f"{UNITS}/{name}")
        remaining = iter(units)
        count = images = 0
        while some := list(islice(remaining, UNITS_PER_PLAN_FILE)):
            self._put(f"{UNITS}/{plan_name(count // UNITS_PER_PLAN_FILE)}", plan_bytes(to_table(some)))
            count += len(some)
            images += sum(map(len, some))
        return count, images

    def waves(self, without: set[int]) -> Iterator[list[Unit]]:
        """The units of each file of the plan, less those named; a wave of none is left out."""
        for name in self._names(UNITS):
            table = pq.read_table(pa.BufferReader(self._read(f"{UNITS}/{name}")))
            pending = [number not in without for number in table["unit"].to_pylist()]
            units = list(from_table(table.filter(pa.array(pending))))
            if units:
                yield units

    def unit(self, number: int) -> Unit:
        """A unit of the plan, found by reading the rows around it."""
        file, row = divmod(number, UNITS_PER_PLAN_FILE)
        group, row = divmod(row, PLAN_ROWS)
        data = self._read(f"{UNITS}/{plan_name(file)}")
        return next(from_table(pq.ParquetFile(pa.BufferReader(data)).read_row_group(group).slice(row, 1)))

    def write_job(self, job: JobRecord) -> None:
        """Writes job.json, which makes the plan count."""
        self._put(JOB, to_json(job.model_dump(mode="json")))

    def _put(self, name: str, data: bytes) -> None:
        with reaching(f"write to {self.storage.url}"):
            self.storage.put(name, data)

    def _read(self, name: str) -> bytes:
        with reaching(f"read {self.storage.url}"):
            return self.storage.read(name)

    def _names(self, folder: str) -> list[str]:
        with reaching(f"read {self.storage.url}"):
            return self.storage.names(folder)

    def read_job(self) -> JobRecord:
        """The job's description.

        Raises:
            JobError: there is no job, its planning never ended, or its description is damaged.
        """
        with reaching(f"read {self.storage.url}"):
            try:
                data = self.storage.read(JOB)
            except (FileNotFoundError, NotADirectoryError):
                raise JobError(f"{self.storage.url} holds {self._instead_of_job()}") from None
        try:
            return JobRecord.model_validate_json(data)
        except ValidationError as error:
            raise JobError(f"{self.storage.path(JOB)} is damaged or of another version: {error.errors()[0]}") from error

    def _instead_of_job(self) -> str:
        if self.storage.exists(FOLDER):
            return "a job whose planning was interrupted: give its `prelabel run` command again"
        return "no job: check the path"

    # What became of the units

    def committed(self) -> set[int]:
        """The numbers of the units that count."""
        return self._numbers(COMMITS)

    def failures(self) -> list[dict[str, Any]]:
        """Why units without a commit could not be finished, by unit number."""
        numbers = self._numbers(FAILURES)
        return list(self._contents(FAILURES, sorted(numbers - self.committed()))) if numbers else []

    def given_up(self) -> set[int]:
        """The numbers of the units that failed for a reason that trying again does not mend."""
        return {failure["unit"] for failure in self.failures() if failure["final"]}

    def _numbers(self, folder: str) -> set[int]:
        return {number for name in self._names(folder) if (number := unit_number(name)) is not None}

    def commit(self, unit: int, commit: dict[str, Any]) -> None:
        """Makes a unit's parts count: the last of its writes."""
        self.storage.put(f"{COMMITS}/{unit_name(unit)}", to_json(commit))

    def commits(self, units: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """The commits of some units, or of all, by unit number."""
        return self._contents(COMMITS, sorted(self.committed() if units is None else units))

    def record_failure(
        self, unit: int, reason: str, message: str, final: bool, skip: Mapping[int, Skip] | None = None
    ) -> None:
        """Says why a unit could not be finished, and how often it was tried.

        Args:
            unit: its number
            reason: the kind of error
            message: the error itself
            final: whether only `--retry-failed` works it again; a storage that fails for now is not final
            skip: images that it is to be worked without from now on; None: what was said before stays
        """
        name = f"{FAILURES}/{unit_name(unit)}"
        before = self._failure(name)
        what = {"unit": unit, "attempts": before.get("attempts", 0) + 1, "error": reason}
        what |= {"message": redacted(message), "final": final}
        listed = before.get("skip") if skip is None else [_listed(*one) for one in sorted(skip.items())]
        self.storage.put(name, to_json(what | ({"skip": listed} if listed else {})))

    def _failure(self, name: str) -> dict[str, Any]:
        try:
            return cast("dict[str, Any]", orjson.loads(self.storage.read(name)))
        except FileNotFoundError:
            return {}

    def skipped(self, units: Iterable[int]) -> dict[int, dict[int, Skip]]:
        """For each of some units, the images that it is worked without, by their ids."""
        told = self._contents(FAILURES, sorted(self._numbers(FAILURES).intersection(units)))
        return {
            failure["unit"]: {one["image_id"]: Skip(one["code"], one["unread"]) for one in failure.get("skip", ())}
            for failure in told
        }

    def forget_failure(self, unit: int) -> None:
        """Nothing is said against a unit and its images any more."""
        with reaching(f"write to {self.storage.url}"):
            self.storage.delete(f"{FAILURES}/{unit_name(unit)}")

    # Committed units of which some images are worked again

    def with_failed_images(self) -> set[int]:
        """The numbers of the committed units in which an image has failed."""
        return {commit["unit"] for commit in self.commits() if commit["counts"]["failed"]}

    def amended(self) -> set[int]:
        """The numbers of the units whose new parts count, and are not yet in their places."""
        return self._numbers(AMENDED)

    def amendment(self, unit: int) -> dict[str, Any]:
        """The new commit of such a unit."""
        return next(self._contents(AMENDED, [unit]))

    def _contents(self, folder: str, numbers: list[int]) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for start in range(0, len(numbers), 1_000):
                names = [f"{folder}/{unit_name(number)}" for number in numbers[start : start + 1_000]]
                for name, data in zip(names, pool.map(self._read, names), strict=True):
                    yield self._parsed(name, data)

    def _parsed(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            url = self.storage.url
            raise JobError(
                f"{self.storage.path(name)} is damaged ({error}): `prelabel validate {url} --fix`"
            ) from error


def _listed(image_id: int, skip: Skip) -> dict[str, Any]:
    return {"image_id": image_id, **skip._asdict()}


def checksum(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
