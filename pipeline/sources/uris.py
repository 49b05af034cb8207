"""A list of image URIs: a text file, a CSV file, or a Parquet file with a text column."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING

import fsspec
import pyarrow as pa

from prelabel.pipeline.sources.base import ImageRef, Shard, Source, SourceOptions, Unit
from prelabel.pipeline.sources.fetch import Fetched, fetch, fetch_all, read_table
from prelabel.pipeline.sources.names import escape, unescape
from prelabel.pipeline.sources.shards import check_rows, find_shards, naming, open_parquet, open_uri
from prelabel.pipeline.storage import is_local, open_url
from prelabel.schemas.errors import HIDDEN, SourceError, redacted

if TYPE_CHECKING:
    from prelabel.pipeline.sources.web import WebReader

URI_NAMES = ("url", "uri", "path", "image", "file_name", "filename", "image_url")
LOCAL_SCHEMES = frozenset(["file", "local"])
REMOTE_SCHEMES = frozenset(["http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"])
_SCHEME = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]{0,30})://")  # without a bound, a long line takes hours
WEB_SCHEMES = frozenset(["http", "https"])
_ROWS = 65_536
_LONGEST_LINE = 1 << 20  # characters


class UriSource(Source):
    """The images that lists name, in the lists' order, one as often as it is there.

    A text file has one URI a line; blank lines and lines that begin with # do not count. A CSV file has a header; its
    column, and a Parquet file's, is `options.image_column`, or the first of URI_NAMES there (in any case), or the only
    one. A key is the URI as written, its secrets hidden; a relative path is relative to the list's folder.

    A list on a local disk may name local files and REMOTE_SCHEMES; any other list only what its own scheme reaches.
    `options.allow_scheme` adds to that. Web servers have public addresses, unless `options.allow_private_addresses`.
    What a list may not name becomes a failed row and is not opened.

    The plan holds no secret, so a signed URL is read from the list again when its image is; it may be signed anew
    meanwhile, if nothing else changes.
    """

    def shards(self) -> Iterator[Shard]:
        """The lists, sorted."""
        yield from find_shards("uris", self.url, (".txt", ".csv", ".parquet"))

    def index(self, shard: Shard) -> Iterator[ImageRef]:
        """One image per URI; nothing is asked of the places that they name."""
        for row, uri in enumerate(self._uris(shard)):
            yield ImageRef(_key(uri, shard), row, 0)

    def read(self, unit: Unit) -> pa.Table:
        """The bytes behind the URIs, read a few at a time."""
        uris = [_resolve(key, unit.shard.uri) for key in self._keys_with_secrets(unit)]
        reader = _Reader(unit.shard, uris, self.options)
        images = fetch_all(reader.fetch, uris)
        reader.check()
        _check_disk(uris, images)
        return read_table(unit, [redacted(uri) for uri in uris], images)

    def _keys_with_secrets(self, unit: Unit) -> list[str]:
        """The keys as they were before something in them was hidden."""
        if not any(HIDDEN in key for key in unit.keys):
            return unit.keys
        rows = islice(self._uris(unit.shard), int(unit.offsets[0]), int(unit.offsets[-1]) + 1)
        keys = [escape(uri) for uri in rows]
        if [_key(unescape(key), unit.shard) for key in keys] != unit.keys:
            raise SourceError(
                f"{unit.shard.uri} has changed since the plan was made: give its signed URLs new signatures in their "
                "old places, or start a new job"
            )
        return keys

    def _uris(self, shard: Shard) -> Iterator[str]:
        name = shard.uri.lower()
        if name.endswith(".parquet"):
            yield from _parquet_column(shard, self.options.image_column)
            return
        with naming(shard), _text(shard) as text:
            lines = _lines(text)
            if name.endswith(".csv"):
                yield from _csv_column(shard, lines, self.options.image_column)
            else:
                stripped = (line.strip() for line in lines)
                yield from (line for line in stripped if line and not line.startswith("#"))


def find_column(shard: Shard, names: list[str], wanted: str | None) -> str:
    """The column that holds the URIs.

    Raises:
        SourceError: there is none, or it is not clear which.
    """
    if wanted in names:
        return wanted
    if wanted is None:
        lowered = {name.lower(): name for name in reversed(names)}
        for name in URI_NAMES:
            if name in lowered:
                return lowered[name]
        if len(names) == 1:
            return names[0]
    problem = f"there is no text column {wanted!r}" if wanted else "it is not clear which column holds the URIs"
    raise SourceError(f"{shard.uri}: {problem}; name one with --image-column: {', '.join(names) or 'there is none'}")


def _key(uri: str, shard: Shard) -> str:
    """Its secrets hidden, also where it is relative to a list on a server; a disk's names are as they are."""
    return redacted(escape(uri)) if "://" in uri + shard.uri else escape(uri)


@contextmanager
def _text(shard: Shard) -> Iterator[IO[str]]:
    fs, path = open_uri(shard.uri)
    # Of a web server's lists all is read: not every server gives parts of a file.
    with io.BytesIO(fs.cat_file(path)) if "http" in fs.protocol else fs.open(path, "rb") as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _lines(text: IO[str]) -> Iterator[str]:
    """The lines; csv.Error for one that is none, before it fills the memory."""
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line of {_LONGEST_LINE} characters or more: this is no list")
        yield line


def _csv_column(shard: Shard, lines: Iterator[str], wanted: str | None) -> Iterator[str]:
    rows = csv.reader(lines)
    header = next(rows, [])
    column = header.index(find_column(shard, header, wanted))
    yield from (row[column].strip() if column < len(row) else "" for row in rows if row)


def _parquet_column(shard: Shard, wanted: str | None) -> Iterator[str]:
    texts = (pa.string(), pa.large_string(), pa.string_view())
    with open_parquet(shard) as parquet:
        names = [field.name for field in parquet.schema_arrow if field.type in texts]
        column = find_column(shard, names, wanted)
        rows = 0
        for batch in parquet.iter_batches(_ROWS, columns=[column]):
            rows += len(batch)
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                yield (value or b"").decode("utf-8", "surrogateescape")
        check_rows(parquet, rows)


def _resolve(key: str, list_uri: str) -> str:
    """The absolute URI of a list's entry, escaped as keys are."""
    if not key or key.startswith("/") or _SCHEME.match(key):
        return key
    return f"{list_uri.rpartition('/')[0]}/{key}"


def _scheme(uri: str) -> str:
    match = _SCHEME.match(uri)
    return match[1] if match else "file"


def _check_disk(uris: list[str], images: list[Fetched]) -> None:
    """Raises OSError if all local files are missing with their folder: a disk that is not mounted makes no rows."""
    local = [(uri, image) for uri, image in zip(uris, images, strict=True) if uri and _scheme(uri) in LOCAL_SCHEMES]
    if len(local) < 2 or any(image.error_code != "missing" for _, image in local):
        return
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(_local_path(uri))) for uri, _ in local])
    try:
        there = bool(os.listdir(folder))
    except FileNotFoundError:
        there = False
    except (OSError, ValueError):  # a name that no disk can have
        return
    if not there:
        raise OSError(f"{escape(folder)}, where all {len(local)} images should be, is gone or empty: is it mounted?")


def _local_path(uri: str) -> str:
    return unescape(_SCHEME.sub("", uri))


def _protocols(fs: fsspec.AbstractFileSystem) -> frozenset[str]:
    return frozenset([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


class _Reader:
    """Reads what a list may name."""

    def __init__(self, shard: Shard, uris: list[str], options: SourceOptions) -> None:
        list_fs, _ = open_uri(shard.uri)
        own = LOCAL_SCHEMES | REMOTE_SCHEMES if is_local(list_fs) else _protocols(list_fs)
        self._allowed = own | set(options.allow_scheme)
        self._max_bytes = options.max_image_bytes
        web = next((uri for uri in uris if _scheme(uri) in WEB_SCHEMES), None)
        self._web = _web_reader(web, options) if web else None

    def fetch(self, uri: str) -> Fetched:
        """The bytes behind a URI.

        fsspec takes `a::b` for one file system inside another, so a bucket's name with `::` could lead anywhere.
        """
        if not uri:
            return Fetched(None, "missing", "the list names nothing in this row")
        scheme = _scheme(uri)
        web = self._web if scheme in WEB_SCHEMES else None
        if scheme not in self._allowed or ("::" in uri and not web and scheme not in LOCAL_SCHEMES):
            only = f"only {', '.join(sorted(self._allowed))} are (--allow-scheme)"
            return Fetched(None, "read_error", f"{redacted(uri)}: not allowed in this list; {only}")
        if web:
            return web.fetch(unescape(uri))
        if scheme in LOCAL_SCHEMES:
            return fetch(fsspec.filesystem("file"), _local_path(uri), self._max_bytes)
        return fetch(*open_url(unescape(uri)))

    def check(self) -> None:
        """Raises OSError if what could not be read might be read later."""
        if self._web:
            self._web.check()


def _web_reader(uri: str, options: SourceOptions) -> WebReader:
    open_url(uri)  # says which package is missing
    from prelabel.pipeline.sources.web import WebReader

    return WebReader(not options.allow_private_addresses, options.max_image_bytes)
