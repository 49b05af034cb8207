"""Reading many small objects at once, and telling what is gone for good from what may work later."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar, cast

import fsspec
import pyarrow as pa

from prelabel.pipeline.sources.base import MAX_IMAGE_BYTES, READ_SCHEMA, Unit
from prelabel.pipeline.sources.names import escape
from prelabel.pipeline.storage import FINAL_ERRORS, is_local, patiently
from prelabel.schemas.errors import SourceError, one_line, redacted

THREADS = 16
_NO_NAMES = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)  # a loop of links, a name no disk can have
_PASSING_STATUS = (408, 425, 429)  # a web server's "not now" among its refusals

T = TypeVar("T")


class Fetched(NamedTuple):
    """An object's bytes, or why there are none: `error_code` as in READ_SCHEMA."""

    data: bytes | memoryview | None
    error_code: str | None = None
    error: str | None = None


class RefusedError(Exception):
    """What will not change by asking again."""


class TooLargeError(Exception):
    """More bytes than an image may have."""


def fetch(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int = MAX_IMAGE_BYTES, alone: bool = False) -> Fetched:
    """The bytes of one object, asked for again on a transient failure.

    Args:
        fs: where it is
        path: its name there
        max_bytes: of a local file; what is remote is limited by `fs`, or by who knows the object's size
        alone: whether a refusal concerns this object and not its neighbours as well

    Raises:
        SourceError: a bucket denies access to it, as it would to its neighbours.
        OSError: the storage failed five times.
    """
    try:
        return Fetched(_read_local(path, max_bytes) if is_local(fs) else _read_remote(fs, path))
    except (FileNotFoundError, NotADirectoryError):
        return Fetched(None, "missing", f"{_shown(path)} is not there")
    except PermissionError as error:
        if not is_local(fs) and not alone:
            raise SourceError(f"{_shown(path)}: access denied ({error}); ask for access to it, then resume") from None
        return Fetched(None, "read_error", f"{_shown(path)} may not be read")
    except TooLargeError as error:
        return Fetched(None, "too_large", f"{_shown(path)}: {error}")
    except (RefusedError, IsADirectoryError, ValueError) as error:
        return Fetched(None, "read_error", f"{_shown(path)}: {escape(one_line(error))}")


def _shown(path: str) -> str:
    return escape(redacted(path))


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
def _read_local(path: str, max_bytes: int) -> bytes:
    try:
        info = os.stat(path)
    except OSError as error:
        if error.errno in _NO_NAMES:
            raise FileNotFoundError(path) from error
        raise
    if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
        raise IsADirectoryError("not a file")
    if info.st_size > max_bytes:
        raise TooLargeError(f"{info.st_size} bytes, at most {max_bytes} are allowed")
    with open(path, "rb") as file:
        data = file.read(info.st_size + 1)  # for `max_bytes` room would be made each time
        if len(data) > info.st_size:  # by now
            data += file.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise TooLargeError(f"more than {max_bytes} bytes")
    return data


@patiently
def _read_remote(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """As `fs.cat_file`, with each library's own exceptions sorted into final ones and plain OSError."""
    try:
        try:
            return cast(bytes, fs.cat_file(path))
        except FileNotFoundError:  # believed when it is said twice, and not from a listing kept in memory
            fs.invalidate_cache(path)
            return cast(bytes, fs.cat_file(path))
    except (*FINAL_ERRORS, ValueError, RefusedError, TooLargeError):
        raise
    except Exception as error:
        if type(error).__name__ == "ParamValidationError":  # botocore's, of a name that no bucket can have
            raise RefusedError(one_line(error)) from error
        status = getattr(error, "status", None)
        if status == 410:
            raise FileNotFoundError(path) from error
        if isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS:
            raise RefusedError(f"the server answers {status}") from error
        if isinstance(error, OSError):
            raise
        raise OSError(f"{path}: {error}") from error
