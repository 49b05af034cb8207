"""A unit's tables become its parts, then its commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prelabel.pipeline.manifest import Manifest, checksum
from prelabel.pipeline.storage import Storage
from prelabel.schemas.tables import part_name

ROWS_PER_GROUP = 4_096
"""A filter on score or category has something to skip; groups of a quarter take twice the time to read."""


def write_unit(
    manifest: Manifest, unit: int, tables: dict[str, pa.Table], metadata: dict[str, str], timings: dict[str, float]
) -> dict[str, Any]:
    """Writes the parts of one unit and then its commit, which is returned.

    Args:
        manifest: of the job
        unit: its number
        tables: table name -> all rows of the unit, images included
        metadata: what each file carries
        timings: seconds, for people; "write" is added
    """
    began = perf_counter()
    parts = write_parts(manifest.storage, unit, tables, metadata)
    commit = commit_of(unit, parts, tables, timings | {"write": round(perf_counter() - began, 3)})
    manifest.commit(unit, commit)
    return commit


def write_parts(
    storage: Storage,
    unit: int,
    tables: dict[str, pa.Table],
    metadata: dict[str, str],
    where: Callable[[str], str] = str,
) -> dict[str, dict[str, Any]]:
    """Writes a part for each table; returns what the commit says of each.

    `where` is told the path of a part, and says where it is written for now.
    """
    parts = {}
    for name in sorted(tables):
        data = to_parquet(tables[name], metadata)
        path = f"{name}/{part_name(unit)}"
        storage.put(where(path), data)
        parts[name] = {"path": path, "rows": len(tables[name]), "bytes": len(data), "sha256": checksum(data)}
    return parts


def commit_of(
    unit: int, parts: dict[str, dict[str, Any]], tables: dict[str, pa.Table], timings: dict[str, float]
) -> dict[str, Any]:
    """What the commit of a unit says."""
    return {
        "unit": unit,
        "parts": parts,
        "counts": counts_of(tables),
        "timings": timings,
        "committed": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }


def to_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """The same bytes for the same rows, each time: also where they come from a part and not from a model."""
    buffer = pa.BufferOutputStream()
    pq.write_table(
        _encoded_anew(table).combine_chunks().replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
        store_schema=True,
    )
    return buffer.getvalue().to_pybytes()


def _encoded_anew(table: pa.Table) -> pa.Table:
    """Dictionaries hold what is in their columns, in the order of its first use, and nothing else."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = table.column(place).cast(field.type.value_type)
            table = table.set_column(place, field, values.combine_chunks().dictionary_encode())
    return table


def counts_of(tables: dict[str, pa.Table]) -> dict[str, Any]:
    """What a commit says under "counts" of a unit's tables."""
    images = tables["images"]
    codes = Counter(code for code in images["error_code"].to_pylist() if code is not None)
    counts: dict[str, Any] = {"images": len(images), "failed": dict(sorted(codes.items()))}
    return counts | {name: len(table) for name, table in tables.items() if name != "images"}
