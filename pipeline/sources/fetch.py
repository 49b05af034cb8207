"""Reading many small objects at once, and telling what is gone for good from what may work later."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar, cast

import fsspec
import pyarrow as pa

from prelabel.pipeline.sources.base import READ_SCHEMA, Unit
from prelabel.pipeline.sources.names import escape
from prelabel.pipeline.storage import FINAL_ERRORS, is_local, patiently
from prelabel.schemas.errors import SourceError

THREADS = 16
_PASSING_STATUS = (408, 425, 429)  # a web server's "not now" among its refusals

T = TypeVar("T")


class Fetched(NamedTuple):
    """An object's bytes, or why there are none: `error_code` as in READ_SCHEMA."""

    data: bytes | memoryview | None
    error_code: str | None = None
    error: str | None = None


class _RefusedError(Exception):
    """What will not change by asking again."""


def fetch(fs: fsspec.AbstractFileSystem, path: str) -> Fetched:
    """The bytes of one object, asked for again on a transient failure.

    Raises:
        SourceError: a bucket denies access to it, as it would to its neighbours.
        OSError: the storage failed five times.
    """
    try:
        return Fetched(_read_local(path) if is_local(fs) else _read_remote(fs, path))
    except (FileNotFoundError, NotADirectoryError):
        return Fetched(None, "missing", f"{escape(path)} is not there")
    except PermissionError as error:
        if not is_local(fs):
            raise SourceError(f"{escape(path)}: access denied ({error}); ask for access to it, then resume") from error
        return Fetched(None, "read_error", f"{escape(path)} may not be read")
    except (_RefusedError, IsADirectoryError, ValueError) as error:
        return Fetched(None, "read_error", f"{escape(path)}: {escape(str(error))}")


def fetch_all(read: Callable[[T], Fetched], places: Iterable[T]) -> list[Fetched]:
    """What `read` gives for each place, in order, a few at a time; the first exception ends it."""
    threads = ThreadPoolExecutor(THREADS)
    try:
        return list(threads.map(read, places))
    finally:
        threads.shutdown(cancel_futures=True)


def read_table(unit: Unit, uris: Sequence[str], fetched: Sequence[Fetched]) -> pa.Table:
    """What was fetched for a unit, as READ_SCHEMA."""
    data, codes, errors = zip(*fetched, strict=True) if fetched else ((), (), ())
    return pa.table([pa.array(unit.image_ids), unit.keys, uris, data, codes, errors], schema=READ_SCHEMA)


@patiently
def _read_local(path: str) -> bytes:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise FileNotFoundError(path) from error  # a loop of links, a name that is too long
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise IsADirectoryError("not a file")
    with open(path, "rb") as file:
        return file.read()


@patiently
def _read_remote(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """As `fs.cat_file`, with each library's own exceptions sorted into final ones and plain OSError."""
    try:
        try:
            return cast(bytes, fs.cat_file(path))
        except FileNotFoundError:  # believed when it is said twice, and not from a listing kept in memory
            fs.invalidate_cache(path)
            return cast(bytes, fs.cat_file(path))
    except (*FINAL_ERRORS, ValueError):
        raise
    except Exception as error:
        status = getattr(error, "status", None)
        if status == 410:
            raise FileNotFoundError(path) from error
        if isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS:
            raise _RefusedError(f"the server answers {status}") from error
        raise OSError(f"{path}: {error}") from error
