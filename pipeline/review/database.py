"""DuckDB for many threads: the job's tables, and what the page adds in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query.connection import connect, wait
from prelabel.schemas.errors import JobError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LONGEST_QUESTION = 300.0
"""Seconds."""


class Database:
    """The views of `prelabel.pipeline.query`, sealed; several threads may ask."""

    def __init__(self, dataset: LabelDataset) -> None:
        self._connection = connect(dataset)
        self._asking: set[DuckDBPyConnection] = set()
        self._stopped = False

    @contextmanager
    def cursor(self) -> Iterator[DuckDBPyConnection]:
        """To ask one question with; it is interrupted when it takes too long, or everything stops.

        Raises:
            JobError: everything has stopped.
        """
        if self._stopped:
            raise JobError("the server has been stopped")
        with self._connection.cursor() as cursor:
            alarm = threading.Timer(LONGEST_QUESTION, cursor.interrupt)
            alarm.daemon = True
            alarm.start()
            self._asking.add(cursor)
            try:
                yield cursor
            finally:
                self._asking.remove(cursor)
                alarm.cancel()

    def execute(self, statement: str, **tables: pa.Table) -> None:
        """A statement of this package's own, which may name these tables.

        Raises:
            JobError: a part is missing or damaged.
        """
        with self.cursor() as cursor:
            for name, table in tables.items():
                cursor.register(name, table)
            wait(cursor, lambda: cursor.execute(statement))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The answer to a question of this package's own."""
        with self.cursor() as cursor:
            found = wait(cursor, lambda: cursor.execute(sql).fetchall())
            names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]

    def columns(self, sql: str, values: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The answer by columns.

        Raises:
            UserError: there is none.
        """
        with self.cursor() as cursor:
            found = wait(cursor, lambda: cursor.execute(sql, values).fetchnumpy())
        return {name: np.asarray(column) for name, column in found.items()}

    def stop(self) -> None:
        """Ends all that is being asked, and answers no more."""
        self._stopped = True
        threading.Thread(target=self._interrupt, daemon=True).start()

    def _interrupt(self) -> None:
        """Until nothing is left: a question that was about to begin does not hear the first time."""
        import duckdb

        while asking := tuple(self._asking):
            for cursor in asking:
                with suppress(duckdb.Error):  # it was closed just now
                    cursor.interrupt()
            time.sleep(0.05)
