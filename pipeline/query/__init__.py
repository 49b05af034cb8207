"""Questions in SQL."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import PurePath

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query.connection import ask, batches_of, connect
from prelabel.pipeline.query.formats import WRITERS, show, write
from prelabel.pipeline.query.parts import CommittedParts
from prelabel.pipeline.storage import writing
from prelabel.schemas.errors import UserError

__all__ = ["CommittedParts", "ask", "batches_of", "connect", "query"]

SHOWN_ROWS = 40


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
            show(connection, answer, rows)
        elif to:
            with writing(to) as file:
                write(connection, answer, form, file)
        else:
            write(connection, answer, form, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _usual_format(to: str | None) -> str:
    if not to:
        return "table" if sys.stdout.isatty() else "csv"
    suffix = PurePath(to).suffix.removeprefix(".")
    if suffix not in WRITERS:
        raise UserError(f"can't tell the format of {to}: give --format {'|'.join(WRITERS)}")
    return suffix
