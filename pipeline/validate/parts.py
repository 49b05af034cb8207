"""The parts of a unit, as files: what its commit says of their bytes, and what each must carry."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from prelabel.pipeline.manifest import checksum
from prelabel.pipeline.storage import Storage, patiently
from prelabel.pipeline.validate.violations import Violations
from prelabel.schemas.errors import one_line
from prelabel.schemas.tables import TABLES


class DamagedParquetError(Exception):
    """Says in one line why a file can't be read."""


class Parquet(NamedTuple):
    """A file's rows, the key-value metadata that it carries, and who wrote it."""

    rows: pa.Table
    metadata: dict[bytes, bytes]
    writer: str


def read_parquet(data: bytes) -> Parquet:
    """A whole file, page checksums verified.

    Raises:
        DamagedParquetError: in whatever way Arrow puts that.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            return Parquet(parquet.read(), parquet.metadata.metadata or {}, parquet.metadata.created_by)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: of a name that is no UTF-8
        raise DamagedParquetError(f"can't be read: {one_line(error)}") from error


def check_size(storage: Storage, unit: int, part: dict[str, Any], violations: Violations) -> None:
    """Without reading it."""
    try:
        size = patiently(storage.fs.info)(storage.path(part["path"]))["size"]
    except FileNotFoundError:
        violations.add("part", "is missing", unit=unit, file=part["path"])
        return
    if size != part["bytes"]:
        violations.add("part", f"has {size} bytes, its commit says {part['bytes']}", unit=unit, file=part["path"])


def read_part(
    storage: Storage, unit: int, table: str, part: dict[str, Any], metadata: dict[str, str], violations: Violations
) -> pa.Table | None:
    """The rows of a part, once its bytes are known to be those that were written; None where they are not."""
    try:
        data = storage.read(part["path"])
    except FileNotFoundError:
        violations.add("part", "is missing", unit=unit, file=part["path"])
        return None
    wrong = _wrong_bytes(data, part)
    if wrong is None:
        rows, wrong = read_rows(data, table, metadata, unit, part["path"], violations)
        if rows is not None and len(rows) != part["rows"]:
            wrong = f"has {len(rows)} rows, its commit says {part['rows']}"
    if wrong is not None:
        violations.add("part", wrong, unit=unit, file=part["path"])
        return None
    return rows


def _wrong_bytes(data: bytes, part: dict[str, Any]) -> str | None:
    if len(data) != part["bytes"]:
        return f"has {len(data)} bytes, its commit says {part['bytes']}"
    if checksum(data) != part["sha256"]:
        return "its SHA-256 is not the one that its commit says: one of the two is damaged"
    return None


def read_rows(
    data: bytes, table: str, metadata: dict[str, str], unit: int | None, file: str, violations: Violations
) -> tuple[pa.Table | None, str | None]:
    """The rows of a Parquet file, page checksums verified; or None, and why they can't be read or are of no use."""
    try:
        read = read_parquet(data)
    except DamagedParquetError as error:
        return None, str(error)
    for key, value in metadata.items():
        if read.metadata.get(key.encode()) != value.encode():
            violations.add("schema", f"its {key} is not the job's", unit=unit, file=file)
    if not read.rows.schema.equals(TABLES[table]):
        violations.add("schema", f"has other columns than {table}", unit=unit, file=file)
        return None, None
    return read.rows, None
