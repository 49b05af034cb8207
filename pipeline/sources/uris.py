"""A list of image URIs: a text file, a CSV file, or a Parquet file with a text column."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import IO

import fsspec
import pyarrow as pa

from prelabel.pipeline.sources.base import ImageRef, Shard, Source, Unit
from prelabel.pipeline.sources.fetch import Fetched, fetch, fetch_all, read_table
from prelabel.pipeline.sources.names import escape, unescape
from prelabel.pipeline.sources.shards import check_rows, find_shards, naming, open_parquet, open_uri
from prelabel.pipeline.storage import is_local, open_url
from prelabel.schemas.errors import SourceError

URI_NAMES = ("url", "uri", "path", "image", "file_name", "filename", "image_url")
LOCAL_SCHEMES = frozenset(["file", "local"])
REMOTE_SCHEMES = frozenset(["http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"])
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ROWS = 65_536


class UriSource(Source):
    """The images that lists name, in the lists' order, one as often as it is there.

    A text file has one URI a line; blank lines and lines that begin with # do not count. A CSV file has a header; its
    column, and a Parquet file's, is `options.image_column`, or the first of URI_NAMES there (in any case), or the only
    one. A key is the URI as written; a relative path is relative to the list's folder.

    A list on a local disk may name local files and REMOTE_SCHEMES; any other list only what its own scheme reaches.
    What it may not name becomes a failed row and is not opened.
    """

    def shards(self) -> Iterator[Shard]:
        """The lists, sorted."""
        yield from find_shards("uris", self.url, (".txt", ".csv", ".parquet"))

    def index(self, shard: Shard) -> Iterator[ImageRef]:
        """One image per URI; nothing is asked of the places that they name."""
        for row, uri in enumerate(self._uris(shard)):
            yield ImageRef(escape(uri), row, 0)

    def read(self, unit: Unit) -> pa.Table:
        """The bytes behind the URIs, read a few at a time."""
        list_fs, _ = open_uri(unit.shard.uri)
        uris = [_resolve(key, unit.shard.uri) for key in unit.keys]
        allowed = LOCAL_SCHEMES | REMOTE_SCHEMES if is_local(list_fs) else _protocols(list_fs)
        return read_table(unit, uris, fetch_all(lambda uri: _fetch(uri, allowed), uris))

    def _uris(self, shard: Shard) -> Iterator[str]:
        if shard.uri.lower().endswith(".parquet"):
            yield from _parquet_column(shard, self.options.image_column)
            return
        fs, path = open_uri(shard.uri)
        with naming(shard), fs.open(path, "rb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            if shard.uri.lower().endswith(".csv"):
                yield from _csv_column(shard, text, self.options.image_column)
            else:
                lines = (line.strip() for line in text)
                yield from (line for line in lines if line and not line.startswith("#"))


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


def _csv_column(shard: Shard, text: IO[str], wanted: str | None) -> Iterator[str]:
    rows = csv.reader(text)
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


def _protocols(fs: fsspec.AbstractFileSystem) -> frozenset[str]:
    return frozenset([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _fetch(uri: str, allowed: frozenset[str]) -> Fetched:
    """The bytes behind a URI of a list.

    fsspec takes `a::b` for one file system inside another, so a remote name with `::` could lead anywhere.
    """
    if not uri:
        return Fetched(None, "missing", "the list names nothing in this row")
    scheme = _scheme(uri)
    if scheme not in allowed or (scheme not in LOCAL_SCHEMES and "::" in uri):
        return Fetched(None, "read_error", f"{uri}: not allowed in this list; only {', '.join(sorted(allowed))} are")
    if scheme in LOCAL_SCHEMES:
        return fetch(fsspec.filesystem("file"), unescape(_SCHEME.sub("", uri)))
    fs, path = open_url(unescape(uri))
    return fetch(fs, path)
