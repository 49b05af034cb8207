"""DuckDB over the committed parts, which it can read, and over nothing else."""

from __future__ import annotations

import atexit
import os
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.csv

from prelabel.pipeline.dataset import LabelDataset
from prelabel.schemas.errors import JobError, PrelabelError, UserError, one_line
from prelabel.schemas.tables import TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
from prelabel.pipeline.query.parts import CommittedParts

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
LAST_VERDICTS = """
SELECT * EXCLUDE (place) FROM (
    SELECT *, row_number() OVER (
        PARTITION BY image_id, annotation_id, reviewer ORDER BY reviewed_at DESC, review_id DESC
    ) AS place FROM reviews
) WHERE place = 1 AND (verdict IS NOT NULL OR note IS NOT NULL)
"""
"""Of the reviews, what each reviewer said last of an image or object, unless it was taken back."""
DAMAGE = ("magic bytes found at end of file 'parts://", "TProtocolException")
"""What DuckDB says of Parquet that was cut off or overwritten."""
T = TypeVar("T")


def connect(dataset: LabelDataset, sealed: bool = True) -> DuckDBPyConnection:
    """DuckDB with a view for each table, and `verdicts`; its `cursor()` is for another thread.

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
    statements = [*views, f"CREATE VIEW verdicts AS {LAST_VERDICTS}"] + [
        f"SET {name} = {value}" for name, value in settings.items()
    ]
    wait(connection, lambda: [connection.execute(statement) for statement in statements])
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
    return wait(connection, lambda: connection.sql(f"SELECT * FROM query('{quoted}')"))


def batches_of(connection: DuckDBPyConnection, answer: DuckDBPyRelation) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """An answer's schema, and its rows as DuckDB finds them: memory doesn't grow with their number.

    Raises:
        UserError: DuckDB meets what it can't compute.
    """
    reader = wait(connection, lambda: answer.to_arrow_reader(BATCH_ROWS))
    return reader.schema, iter(lambda: wait(connection, lambda: next(reader, None)), None)


def wait(connection: DuckDBPyConnection, work: Callable[[], T]) -> T:
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
    raised = of_ours or message.startswith("Traceback")  # how DuckDB 1 ends, and 2 begins, what CommittedParts raised
    if raised or any(sign in message for sign in DAMAGE):
        reason = message.splitlines()[-1]
        return JobError(f"a part can't be read ({reason}): put it back, or see what `prelabel validate` says")
    return UserError(f"the query can't be answered: {one_line(message)}")
