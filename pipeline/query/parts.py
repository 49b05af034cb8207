"""What DuckDB sees in place of disks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from fnmatch import filter as matching
from io import FileIO
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.storage import patiently, read_file
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.tables import TABLES, empty_table

if TYPE_CHECKING:
    pass

EMPTY_PART = "empty.parquet"


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
