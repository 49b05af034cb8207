"""A unit's tables become its parts, then its commit."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prelabel.pipeline.manifest import Manifest, checksum
from prelabel.schemas.tables import part_name

ROWS_PER_GROUP = 1_024
"""Small, so that a filter on score or category has something to skip."""


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
    began, parts = perf_counter(), {}
    for name in sorted(tables):
        data = to_parquet(tables[name], metadata)
        path = f"{name}/{part_name(unit)}"
        manifest.storage.put(path, data)
        parts[name] = {"path": path, "rows": len(tables[name]), "bytes": len(data), "sha256": checksum(data)}
    commit = {
        "unit": unit,
        "parts": parts,
        "counts": counts_of(tables),
        "timings": timings | {"write": round(perf_counter() - began, 3)},
        "committed": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }
    manifest.commit(unit, commit)
    return commit


def to_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """The same bytes for the same rows, each time."""
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table.unify_dictionaries().combine_chunks().replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
        store_schema=True,
    )
    return buffer.getvalue().to_pybytes()


def counts_of(tables: dict[str, pa.Table]) -> dict[str, Any]:
    """What a commit says under "counts" of a unit's tables."""
    images = tables["images"]
    codes = Counter(code for code in images["error_code"].to_pylist() if code is not None)
    counts: dict[str, Any] = {"images": len(images), "failed": dict(sorted(codes.items()))}
    return counts | {name: len(table) for name, table in tables.items() if name != "images"}
