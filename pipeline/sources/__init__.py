"""Sources: where images come from. One kind, one file, one line in the registry."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from importlib import import_module
from typing import cast

from prelabel.pipeline.sources.base import Shard, Source, SourceOptions
from prelabel.pipeline.sources.names import COMPRESSED_TARS, IMAGE_SUFFIXES
from prelabel.pipeline.sources.shards import Found, find, listing, open_uri
from prelabel.pipeline.storage import is_local
from prelabel.schemas.errors import SourceError

SOURCES: dict[str, str] = {
    "folder": "prelabel.pipeline.sources.folder:FolderSource",
    "webdataset": "prelabel.pipeline.sources.webdataset:WebDatasetSource",
    "parquet": "prelabel.pipeline.sources.parquet:ParquetSource",
    "uris": "prelabel.pipeline.sources.uris:UriSource",
}
"""Kind -> module:Class, imported on use."""


def open_source(url: str, options: SourceOptions | None = None) -> Source:
    """The source behind a URL; its kind is told from what is there.

    A folder is a folder of images, unless right in it lie tar or Parquet files but no image and no folder. Files are
    told by suffix (.tar, .parquet, .txt, .csv, an image's), a Parquet file also by its columns. Braces and globs stand
    for files, which must be of one kind.

    Raises:
        SourceError: nothing is there, it can't be listed, or its kind is not clear.
    """
    options = options or SourceOptions()
    found = find(url)
    folder = len(found) == 1 and found[0].size is None
    kinds = {_kind_of_folder(found[0].uri)} if folder else {_kind_of_file(file.uri) for file in found}
    kind = kinds.pop()
    if kinds or kind is None:
        raise SourceError(
            f"{url}: can't tell what kind of source this is; name a folder, or files of one kind: "
            ".tar, .parquet, .txt, .csv or an image"
        )
    if kind == "parquet" and not _holds_images(url, found[0], options):
        kind = "uris"
    return source_of_kind(kind, url, options)


def source_of_kind(kind: str, url: str, options: SourceOptions | None = None) -> Source:
    """The source of a kind that is known, as a worker opens it; nothing is looked at."""
    if kind not in SOURCES:
        raise SourceError(f"there is no source of kind {kind!r}; the kinds are {', '.join(SOURCES)}")
    module, name = SOURCES[kind].split(":")
    return cast(Source, getattr(import_module(module), name)(url, options or SourceOptions()))


def _kind_of_file(uri: str) -> str | None:
    name = uri.partition("?")[0] if uri.startswith("http") else uri
    suffix = posixpath.splitext(name)[1].lower()
    if name.lower().endswith((".tar", *COMPRESSED_TARS)):
        return "webdataset"
    if suffix in IMAGE_SUFFIXES:
        return "folder"
    return {".parquet": "parquet", ".txt": "uris", ".csv": "uris"}.get(suffix)


def _kind_of_folder(uri: str) -> str:
    """Side files do not count; where tars lie beside Parquet files, as img2dataset writes them, the tars are meant."""
    kinds = set()
    for name, is_folder in _entries(uri):
        kind = "folder" if is_folder else _kind_of_file(name)
        if kind == "folder":
            return kind
        kinds.add(kind)
    return next((kind for kind in ("webdataset", "parquet") if kind in kinds), "folder")


def _entries(uri: str) -> Iterator[tuple[str, bool]]:
    """Names right in a folder and whether they are folders, hidden ones left out."""
    fs, path = open_uri(uri)
    with listing(uri):
        if is_local(fs):
            with os.scandir(path) as entries:
                yield from ((e.name, os.path.isdir(e.path)) for e in entries if not e.name.startswith("."))
            return
        for info in fs.ls(path, detail=True):
            name = posixpath.basename(info["name"].rstrip("/"))
            if not name.startswith("."):
                yield name, info["type"] == "directory"


def _holds_images(url: str, first: Found, options: SourceOptions) -> bool:
    """Whether Parquet files hold bytes, told by the first of them."""
    from prelabel.pipeline.sources.parquet import holds_images

    source = source_of_kind("parquet", url, options)
    shard = Shard("parquet", *first) if first.size is not None else next(source.shards())
    return holds_images(shard, options.image_column)
