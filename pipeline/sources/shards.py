"""Finding the files behind a URL, and opening them with errors that name them."""

from __future__ import annotations

import csv
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from prelabel.pipeline.sources.base import Shard, Unit
from prelabel.pipeline.sources.fetch import RefusedError
from prelabel.pipeline.sources.names import escape, is_hidden, unescape
from prelabel.pipeline.storage import is_local, open_url
from prelabel.schemas.errors import HIDDEN, PrelabelError, SourceError, one_line

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_GLOB = re.compile(r"[*?[]")


class Found(NamedTuple):
    """What is behind a URL: its absolute URI, with names escaped as in a key, and as `Shard` its size and version."""

    uri: str
    size: int | None
    version: str | None = None


def open_uri(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and path of a URI as `find` gives it; a local path is taken as it is, whatever its letters."""
    name = unescape(uri)
    return (fsspec.filesystem("file"), name) if name.startswith("/") else _open(name)


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = open_url(url)
    if url.startswith(("http://", "https://")):
        from prelabel.pipeline.sources.web import WebFileSystem

        fs = WebFileSystem()
    return fs, path


def find(url: str) -> list[Found]:
    """The file or folder of a URL, or the files that its braces (`{000..012}`, `{a,b}`) and globs stand for, sorted.

    A name that exists as it is written is never taken for a glob.

    Raises:
        SourceError: nothing is there (also behind a single one of the names that braces give), or it can't be listed.
    """
    fs, path = _open(url)
    with listing(url):
        fs.invalidate_cache()
        if not (_BRACES.search(path) or _GLOB.search(path)) or fs.exists(path):
            return [_found(fs, fs.info(path))]
        with ThreadPoolExecutor(16) as threads:
            infos = [info for matches in threads.map(lambda p: _match(fs, p), expand_braces(path)) for info in matches]
    return sorted({_found(fs, info) for info in infos})


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as in WebDataset and bash.

    >>> expand_braces("{08..10}.{tar,txt}")[:3]
    ['08.tar', '08.txt', '09.tar']
    """
    if not (match := _BRACES.search(pattern)):
        return [pattern]
    first, last, choices = match.groups()
    inner = choices.split(",") if choices else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in inner for name in expand_braces(before + choice + after)]


def find_shards(kind: str, url: str, suffixes: tuple[str, ...]) -> Iterator[Shard]:
    """The files behind a URL as shards, sorted by URI; of a folder those right in it that have one of the suffixes.

    Raises:
        SourceError: there are none.
    """
    found = find(url)
    if len(found) == 1 and found[0].size is None:
        fs, folder = open_uri(found[0].uri)
        with listing(url):
            infos = [info for info in fs.ls(folder, detail=True) if info["name"].endswith(suffixes)]
        found = sorted(_found(fs, info) for info in infos if not is_hidden(posixpath.basename(info["name"])))
    shards = [Shard(kind, *file) for file in found if file.size is not None]
    if not shards:
        raise SourceError(f"no {' or '.join(suffixes)} file at {url}: check the path")
    yield from shards


@contextmanager
def listing(url: str) -> Iterator[None]:
    """Makes one SourceError of whatever a file system answers when it is asked what is there."""
    try:
        yield
    except PrelabelError:
        raise
    except FileNotFoundError as error:
        what = escape(str(error.filename or next(iter(error.args), "")))
        raise SourceError(f"nothing is at {escape(url)}: check the path{f' ({what})' if what else ''}") from error
    except Exception as error:  # each file system has its own: no credentials, no such host, no such bucket
        raise SourceError(f"can't list {escape(url)}: {escape(' '.join(str(error).split()))}") from error


@contextmanager
def naming(shard: Shard) -> Iterator[None]:
    """Turns what is final about a shard's file into a SourceError that names it.

    Raises:
        SourceError: the file is gone, refused or damaged.
        OSError: the storage failed, for now; also in place of a storage library's own exceptions.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{shard.uri} is gone: put it back, or start a new job") from error
    except PermissionError as error:
        raise SourceError(f"{shard.uri} may not be read ({error}): ask for access to it, then resume") from error
    except RefusedError as error:
        raise SourceError(f"{shard.uri} can't be read: {error}") from error
    except (pa.ArrowException, tarfile.TarError, csv.Error, UnicodeDecodeError) as error:
        raise _damaged(shard, error) from error
    except Exception as error:
        if isinstance(error, (OSError, PrelabelError)) or type(error).__module__ == "builtins":
            raise
        raise OSError(f"{shard.uri}: {error}") from error


def check_unchanged(shard: Shard) -> None:
    """Raises SourceError if a shard's file is gone, or is another than the plan recorded; a folder is not looked at."""
    if shard.size is None:
        return
    fs, path = open_uri(shard.uri)
    with naming(shard):
        fs.invalidate_cache(path)
        _, size, version = _found(fs, fs.info(path))
    if size == shard.size and shard.version in (None, version):
        return
    what = f"{size} bytes, planned {shard.size}" if size != shard.size else f"{version}, planned {shard.version}"
    raise SourceError(
        f"{shard.uri} has changed since the plan was made: {what}; put the old file back, or start a new job"
    )


def check_planned(units: Iterable[Unit]) -> None:
    """As `check_unchanged`, of the units' shards.

    A list of signed URLs may have been signed anew: where a key hides a secret, `read` compares row by row instead.
    """
    secret = {unit.shard for unit in units if any(HIDDEN in key for key in unit.keys)}
    for shard in {unit.shard for unit in units} - secret:
        check_unchanged(shard)


@contextmanager
def open_parquet(shard: Shard) -> Iterator[pq.ParquetFile]:
    """A shard's Parquet file, with the checksums of its pages (where it has them) verified on reading."""
    fs, path = open_uri(shard.uri)
    with naming(shard), fs.open(path, "rb") as file:
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                yield parquet
        except OSError as error:
            # Arrow's word for bytes that make no sense is a bare OSError; a disk's or a network's has a number or type.
            if type(error) is OSError and error.errno is None:
                raise pa.ArrowInvalid(str(error)) from error
            raise


def check_rows(parquet: pq.ParquetFile, count: int) -> None:
    """Raises ArrowInvalid if the rows that were read are not all those that the file's footer counts."""
    if count != parquet.metadata.num_rows:
        raise pa.ArrowInvalid(f"{count} rows were found of {parquet.metadata.num_rows}")


def _damaged(shard: Shard, error: Exception) -> SourceError:
    reason = escape(one_line(error))
    return SourceError(f"{shard.uri} is damaged or cut off ({reason}): replace it or take it out of the source")


def _match(fs: fsspec.AbstractFileSystem, pattern: str) -> list[dict[str, Any]]:
    """What a glob stands for. Only its last part is matched where that is enough: folders' names may hold brackets."""
    web = "http" in fs.protocol
    if web or not _GLOB.search(pattern):
        return [fs.info(pattern)]
    folder, _, name = pattern.rpartition("/")
    if "**" in name or (_GLOB.search(folder) and not fs.exists(folder)):
        infos = list(fs.glob(pattern, detail=True).values())
    else:
        infos = [info for info in fs.ls(folder, detail=True) if fnmatchcase(posixpath.basename(info["name"]), name)]
    shown = [i for i in infos if i["type"] != "directory" and not is_hidden(posixpath.basename(i["name"]))]
    if not shown:
        raise FileNotFoundError(pattern)
    return shown


def _found(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> Found:
    uri = info["name"] if is_local(fs) else fs.unstrip_protocol(info["name"])
    if info["type"] == "directory":
        return Found(escape(uri), None)
    if info["size"] is None:
        raise SourceError(f"{uri}: the server does not tell the file's size; copy it to a disk or a bucket first")
    return Found(escape(uri), info["size"], _version(info))


def _version(info: dict[str, Any]) -> str | None:
    """A bucket's or server's checksum of the file. The time on a disk is none: a copy of the same bytes has another."""
    for name in ("md5Hash", "ETag", "etag"):
        value = info.get(name)
        if value and not str(value).startswith("W/"):  # a weak one differs between equal servers
            checksum = str(value).strip('"')
            return f"{name} {checksum}"
    return None
