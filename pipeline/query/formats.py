"""An answer as CSV, JSON, Parquet, Arrow, or a table to look at."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prelabel.pipeline.query.connection import batches_of, wait
from prelabel.schemas.errors import UserError, one_line, printable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

LONGEST_TEXT = 60
SIGNED = {"tinyint", "smallint", "integer", "bigint", "hugeint"}
NUMBERS = SIGNED | {f"u{kind}" for kind in SIGNED} | {"float", "double", "decimal"}
NESTED = {"struct", "list", "array", "map", "union"}
FORMULA = r"^[=+\-@\t\r]"
"""What makes spreadsheets take a cell for a formula (OWASP, CSV Injection)."""


def write(connection: DuckDBPyConnection, answer: DuckDBPyRelation, form: str, file: BinaryIO) -> None:
    """Writes an answer in one of WRITERS' forms.

    Raises:
        UserError: the form can't hold it, or DuckDB meets what it can't compute.
    """
    schema, batches = batches_of(connection, _for_csv(answer) if form == "csv" else answer)
    try:
        with WRITERS[form](file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except pa.ArrowNotImplementedError as error:
        raise UserError(f"{form} can't hold this answer: {one_line(error)}; cast the column to VARCHAR") from error


def _for_csv(answer: DuckDBPyRelation) -> DuckDBPyRelation:
    """Structures as JSON, and what a spreadsheet would take for a formula behind an apostrophe."""
    columns = []
    for name, kind in zip(answer.columns, answer.types, strict=True):
        column = '"' + name.replace('"', '""') + '"'
        if kind.id not in NUMBERS | {"boolean"}:
            text = f"CAST({f'to_json({column})' if kind.id in NESTED else column} AS VARCHAR)"
            columns.append(f"regexp_replace({text}, '{FORMULA}', '''\\0') AS {column}")
        else:
            columns.append(column)
    return answer.project(", ".join(columns))


class _JsonWriter:
    """One array, a row to a line."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._file = file
        self._before = b"[\n"

    def __enter__(self) -> _JsonWriter:
        return self

    def write_batch(self, batch: pa.RecordBatch) -> None:
        for row in batch.to_pylist():
            self._file.write(self._before + orjson.dumps(row, default=_json_value))
            self._before = b",\n"

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._file.write(b"\n]\n" if self._before == b",\n" else b"[]\n")


def _json_value(value: object) -> object:
    """What JSON has no form for: whole numbers that DuckDB sums up in 128 bits, and others as text."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) and abs(value) < 2**63 else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)


WRITERS: dict[str, Callable[[BinaryIO, pa.Schema], Any]] = {
    "csv": pa.csv.CSVWriter,
    "json": _JsonWriter,
    "parquet": pq.ParquetWriter,
    "arrow": pa.ipc.new_stream,
}


def show(connection: DuckDBPyConnection, answer: DuckDBPyRelation, rows: int) -> None:
    """Prints the first rows of an answer, and how many there are."""
    found = wait(connection, lambda: answer.limit(rows + 1).fetchall())
    names = [printable(name) for name in answer.columns]
    numeric = [kind.id in NUMBERS for kind in answer.types]
    console = Console()
    console.print(_table(names, numeric, [[_cell(value) for value in row] for row in found[:rows]], console.width))
    said = f"{len(found):,} {'row' if len(found) == 1 else 'rows'}"
    if len(found) > rows:
        (total,) = wait(connection, lambda: answer.count("*").fetchall())[0]
        said = f"the first {rows:,} of {total:,} rows: --rows N shows more, --to FILE.csv writes all"
    console.print(said, highlight=False)


def _table(names: list[str], numeric: list[bool], cells: list[list[str]], width: int) -> Table:
    """A row to a line; where far from all columns would fit, a column to a line."""
    wanted = sum(max(map(len, column)) + 3 for column in zip(names, *cells, strict=True))
    if wanted > 2 * width:
        table = Table(show_header=False)
        table.add_column(min_width=max(map(len, names)))
        table.add_column(overflow="fold")
        for row in cells:
            for name, cell in zip(names, row, strict=True):
                table.add_row(Text(name), Text(cell))
            table.add_section()
        return table
    table = Table()
    for name, right in zip(names, numeric, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _cell(value: object) -> str:
    text = printable(_text(value))
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[-half:]}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(name)}: {_text(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
