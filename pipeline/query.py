"""Questions in SQL: DuckDB over the committed parts, which it can read, and over nothing else."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timezone
from decimal import Decimal
from fnmatch import filter as matching
from io import FileIO
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.storage import patiently, read_file, writing
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.errors import JobError, PrelabelError, UserError, one_line
from prelabel.schemas.tables import TABLES, empty_table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

SEALED = {
    "allowed_directories": "['parts://']",
    "allow_persistent_secrets": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",  # the last one: none can be set after it
}
"""DuckDB's settings that leave it the parts alone: no other files, no network, extensions or Python variables."""
BUCKET_THREADS = 16
"""A thread of DuckDB waits for what it reads."""
BATCH_ROWS = 10_000
SHOWN_ROWS = 40
LONGEST_TEXT = 60
EMPTY_PART = "empty.parquet"
SIGNED = {"tinyint", "smallint", "integer", "bigint", "hugeint"}
NUMBERS = SIGNED | {f"u{kind}" for kind in SIGNED} | {"float", "double", "decimal"}
NESTED = {"struct", "list", "array", "map", "union"}
FORMULA = r"^[=+\-@\t\r]"
"""What makes spreadsheets take a cell for a formula (OWASP, CSV Injection)."""
T = TypeVar("T")


class CommittedParts(AbstractFileSystem):
    """What DuckDB has in place of disks: the committed parts of a job, to read, as `parts://images/part-….parquet`.

    A table without parts is one part without rows.
    """

    protocol = "parts"
    cachable = False

    def __init__(self, dataset: LabelDataset) -> None:
        super().__init__()
        self._dataset = dataset
        self._storage = dataset.storage
        self._measure = patiently(dataset.storage.fs.size)
        self._parts: dict[str, dict[str, None]] = {}  # table -> its parts, a set in order
        self._sizes: dict[str, int] = {}
        self._listed: set[str] = set()
        self._listing = threading.Lock()

    def glob(self, path: str, **_: Any) -> list[str]:
        """The parts of a table whose names match."""
        pattern = path.removeprefix("parts://")
        parts = self._parts_of(_table_of(pattern))
        return list(parts) if pattern.endswith("/*") else matching(parts, pattern)

    def _parts_of(self, table: str) -> dict[str, None]:
        if table in TABLES and table not in self._parts:
            self._parts[table] = dict.fromkeys(self._dataset.parts(table) or [f"{table}/{EMPTY_PART}"])
        return self._parts.get(table, {})

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """A part's name and size in bytes."""
        name = path.removeprefix("parts://")
        if name not in self._sizes:
            self._sizes[name] = self._size_of(name)
        return {"name": path, "type": "file", "size": self._sizes[name]}

    def _size_of(self, name: str) -> int:
        if name.endswith(EMPTY_PART):
            return len(_empty_part(name))
        table = _table_of(name)
        if not self._storage.is_local and name != next(iter(self._parts[table])):
            self._list(table)  # the first part tells the columns; who opens another one will open most
        return self._measure(self._storage.path(name))

    def _list(self, table: str) -> None:
        """Once, since a bucket's file system remembers the sizes that it lists: one request for 1,000 parts."""
        with self._listing:
            if table not in self._listed:
                self._storage.names(table)
                self._listed.add(table)

    def modified(self, path: str) -> datetime:
        """Never: a committed part stays as it is."""
        return datetime(1970, 1, 1, tzinfo=timezone.utc)

    def open(self, path: str, mode: str = "rb", **_: Any) -> _OpenPart:
        """A part to read.

        Raises:
            PermissionError: it is no committed part, or is to be written.
        """
        name = path.removeprefix("parts://")
        if mode != "rb" or name not in self._parts_of(_table_of(name)):
            raise PermissionError(f"{path} is to be written, or is no committed part")
        return _OpenPart(self._reader(name))

    def _reader(self, name: str) -> Callable[[int, int], bytes]:
        """What reads the bytes [start, end) of a part."""
        path, size = self._storage.path(name), self.info(name)["size"]
        if name.endswith(EMPTY_PART):
            return lambda start, end: _empty_part(name)[start:end]
        if self._storage.is_local:
            file = FileIO(path)  # closed with its last reference: DuckDB drops what it has read
            return lambda start, end: os.pread(file.fileno(), end - start, start)
        return lambda start, end: read_file(self._storage.fs, path, start, min(end, size))


def _table_of(name: str) -> str:
    return name.partition("/")[0]


def _empty_part(name: str) -> bytes:
    return to_parquet(empty_table(_table_of(name)), {})


class _OpenPart:
    """An open part. Threads share it, and each seeks before it reads: so each has a position of its own."""

    def __init__(self, fetch: Callable[[int, int], bytes]) -> None:
        self._fetch = fetch
        self._thread = threading.local()

    def seek(self, offset: int) -> None:
        self._thread.position = offset

    def read(self, size: int) -> bytes:
        start = getattr(self._thread, "position", 0)
        data = self._fetch(start, start + size)
        self._thread.position = start + len(data)
        return data

    def close(self) -> None:
        """Other threads may be reading."""


def connect(dataset: LabelDataset, sealed: bool = True) -> DuckDBPyConnection:
    """DuckDB with the views images, annotations, segments and proposals; its `cursor()` is for another thread.

    Args:
        dataset: whose committed parts the views read
        sealed: it reaches those parts and nothing else, and no setting can be changed; SQL of somebody else's should
            still go through `ask`, which takes a single SELECT

    Raises:
        JobError: a part is missing or damaged.
    """
    import duckdb

    connection = duckdb.connect()
    _close_at_exit(connection)
    connection.register_filesystem(CommittedParts(dataset))
    spill = os.path.join(tempfile.gettempdir(), f"prelabel-{uuid.uuid4().hex}").replace("'", "''")
    settings = {"temp_directory": f"'{spill}'", "parquet_metadata_cache": "true", "enable_progress_bar": "false"}
    settings |= {} if dataset.storage.is_local else {"threads": str(BUCKET_THREADS)}
    settings |= SEALED if sealed else {}
    views = [f"CREATE VIEW {name} AS FROM read_parquet('parts://{name}/*')" for name in TABLES]
    statements = views + [f"SET {name} = {value}" for name, value in settings.items()]
    _wait(connection, lambda: [connection.execute(statement) for statement in statements])
    return connection


def _close_at_exit(connection: DuckDBPyConnection) -> None:
    """An open connection with a file system of Python's makes DuckDB 2.0 complain of leaks at the interpreter's end."""
    alive = weakref.ref(connection)

    @atexit.register
    def close() -> None:
        if one := alive():
            one.close()


def ask(connection: DuckDBPyConnection, sql: str) -> DuckDBPyRelation:
    """The answer to a single SELECT, not yet worked out.

    DuckDB's `query` refuses all other statements, also those within a WITH, which it would execute elsewhere.

    Raises:
        UserError: it is no SELECT, or doesn't fit the tables.
    """
    quoted = sql.replace("'", "''")
    return _wait(connection, lambda: connection.sql(f"SELECT * FROM query('{quoted}')"))


def batches_of(connection: DuckDBPyConnection, answer: DuckDBPyRelation) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """An answer's schema, and its rows as DuckDB finds them: memory doesn't grow with their number.

    Raises:
        UserError: DuckDB meets what it can't compute.
    """
    reader = _wait(connection, lambda: answer.to_arrow_reader(BATCH_ROWS))
    return reader.schema, iter(lambda: _wait(connection, lambda: next(reader, None)), None)


def _wait(connection: DuckDBPyConnection, work: Callable[[], T]) -> T:
    """Has `work` done by another thread, since DuckDB's Arrow readers are deaf to Ctrl-C in this one."""
    import duckdb

    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work)
        try:
            return doing.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise
        except (duckdb.Error, OSError, pa.ArrowException) as error:  # OSError: what Arrow makes of DuckDB's
            raise _refusal(error) from error


def _refusal(error: Exception) -> PrelabelError:
    message, of_ours, _ = str(error).partition("\n\nLINE ")[0].partition("\n\nAt:\n")
    if of_ours or message.startswith("Traceback"):  # how DuckDB 1 ends, and 2 begins, what CommittedParts raised
        return JobError(f"a part can't be read ({message.splitlines()[-1]}): put it back, or label anew")
    return UserError(f"the query can't be answered: {one_line(message)}")


def query(
    dataset: LabelDataset, sql: str, format_name: str | None = None, to: str | None = None, rows: int = SHOWN_ROWS
) -> None:
    """Writes the answer to a single SELECT to stdout or a file.

    Args:
        dataset: of which it is asked
        sql: over the views images, annotations, segments and proposals
        format_name: table, csv, json, parquet or arrow (an IPC stream); by default what the suffix of `to` says, else a
            table on a terminal and csv elsewhere
        to: path or URL of a file to write
        rows: that a table shows

    Raises:
        UserError: DuckDB can't answer it, or the format doesn't suit the place or the answer.
    """
    form = format_name or _usual_format(to)
    if to and form == "table":
        raise UserError(f"a table is for the terminal: choose one of {', '.join(WRITERS)} as --format of {to}")
    if not to and form in ("parquet", "arrow") and sys.stdout.isatty():
        raise UserError(f"{form} is not for a terminal to show: give --to FILE, or send it on with a pipe")
    with closing(connect(dataset)) as connection:
        answer = ask(connection, sql)
        if form == "table":
            _show(connection, answer, rows)
        elif to:
            with writing(to) as file:
                _write(connection, answer, form, file)
        else:
            _write(connection, answer, form, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _usual_format(to: str | None) -> str:
    if not to:
        return "table" if sys.stdout.isatty() else "csv"
    suffix = PurePath(to).suffix.removeprefix(".")
    if suffix not in WRITERS:
        raise UserError(f"can't tell the format of {to}: give --format {'|'.join(WRITERS)}")
    return suffix


def _write(connection: DuckDBPyConnection, answer: DuckDBPyRelation, form: str, file: BinaryIO) -> None:
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


def _show(connection: DuckDBPyConnection, answer: DuckDBPyRelation, rows: int) -> None:
    found = _wait(connection, lambda: answer.limit(rows + 1).fetchall())
    names = [_printable(name) for name in answer.columns]
    numeric = [kind.id in NUMBERS for kind in answer.types]
    console = Console()
    console.print(_table(names, numeric, [[_cell(value) for value in row] for row in found[:rows]], console.width))
    said = f"{len(found):,} {'row' if len(found) == 1 else 'rows'}"
    if len(found) > rows:
        (total,) = _wait(connection, lambda: answer.count("*").fetchall())[0]
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
    text = _printable(_text(value))
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[-half:]}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(name)}: {_text(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    """Without what would steer the terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
