"""A folder of images, at any depth, on a disk or in a bucket; or one image file."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from operator import itemgetter

import fsspec
import pyarrow as pa

from prelabel.pipeline.sources.base import ImageRef, Shard, Source, Unit
from prelabel.pipeline.sources.fetch import Fetched, fetch, fetch_all, read_table
from prelabel.pipeline.sources.names import escape, is_image, unescape
from prelabel.pipeline.sources.shards import find, naming, open_uri
from prelabel.pipeline.storage import is_local
from prelabel.schemas.errors import SourceError

_Identity = tuple[int, int]  # of a folder: device and inode
_Entry = tuple[str, int, "frozenset[_Identity] | None"]  # key, bytes, of a folder itself and those above it


class FolderSource(Source):
    """The files of a folder whose names say image, hidden ones left out; links are followed, loops of them are not.

    A key is the path relative to the folder, sorted by code points; the URI is the shard's with the key behind it. The
    folder is one shard. A single file is a shard too, whose size is known, with its base name as key.
    """

    def shards(self) -> Iterator[Shard]:
        """The folder; SourceError if it is absent."""
        found = find(self.url)
        if len(found) > 1:
            raise SourceError(f"{self.url} stands for several files: name their folder, and --include for the pattern")
        yield Shard("folder", *found[0])

    def index(self, shard: Shard) -> Iterator[ImageRef]:
        """The images, sorted by key; SourceError if a folder in it can't be listed."""
        fs, root = open_uri(shard.uri)
        if shard.size is not None:
            yield ImageRef(posixpath.basename(shard.uri), 0, shard.size)
        elif is_local(fs):
            yield from _walk(shard, root, self.options.include)
        else:
            yield from _list(fs, root, self.options.include)

    def read(self, unit: Unit) -> pa.Table:
        """The files' bytes; a file that is gone is a row, a folder that is gone is a SourceError."""
        fs, root = open_uri(unit.shard.uri)
        if unit.shard.size is not None:
            root = posixpath.dirname(root)
        paths = [f"{root.rstrip('/')}/{unescape(key)}" for key in unit.keys]
        places = zip(paths, unit.sizes.tolist(), strict=True)
        images = fetch_all(lambda place: _read_planned(fs, *place, self.options.max_image_bytes), places)
        _check_folder(fs, root, unit.shard, images)
        folder = unit.shard.uri if unit.shard.size is None else posixpath.dirname(unit.shard.uri)
        return read_table(unit, [f"{folder.rstrip('/')}/{key}" for key in unit.keys], images)


def _read_planned(fs: fsspec.AbstractFileSystem, path: str, size: int, max_bytes: int) -> Fetched:
    """An image's bytes, if they are as many as planned (-1: any): a short answer is asked for again."""
    if size > max_bytes:
        return Fetched(None, "too_large", f"{size} bytes, at most {max_bytes} are allowed")
    fetched = fetch(fs, path, max_bytes)
    if fetched.data is not None and size not in (-1, len(fetched.data)):
        fetched = fetch(fs, path, max_bytes)
    if fetched.data is None or size in (-1, len(fetched.data)):
        return fetched
    what = f"{len(fetched.data)} bytes, planned {size}"
    return Fetched(None, "read_error", f"{escape(path)} has changed since the plan was made: {what}")


def _check_folder(fs: fsspec.AbstractFileSystem, root: str, shard: Shard, images: list[Fetched]) -> None:
    """A disk that is not mounted must not make a failed row of each image."""
    if not any(image.error_code == "missing" for image in images):
        return
    gone = not fs.exists(root)
    if gone or (is_local(fs) and _is_empty(root)):
        raise SourceError(f"{shard.uri} is {'gone' if gone else 'empty'} since the plan was made: is its disk mounted?")


def _is_empty(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def _walk(shard: Shard, root: str, include: tuple[str, ...]) -> Iterator[ImageRef]:
    """A local folder's images in the order of their keys, with one folder's names in memory at a time.

    A folder sorts as its name with the slash, so the order is that of all keys sorted together.
    """
    with naming(shard):
        todo: list[_Entry] = [("", 0, frozenset([_identity(os.stat(root))]))]
        while todo:
            key, size, inside = todo.pop()
            if inside is None:
                yield ImageRef(key, 0, size)
            else:
                found = _scan(os.path.join(root, unescape(key)), key, inside, include)
                todo.extend(sorted(found, key=itemgetter(0), reverse=True))


def _scan(path: str, prefix: str, above: frozenset[_Identity], include: tuple[str, ...]) -> Iterator[_Entry]:
    """The images and the folders (with a slash) right in a folder. A link to nothing is an image that is missing."""
    with os.scandir(path) as entries:
        for entry in entries:
            key = prefix + escape(entry.name)
            try:
                info = entry.stat()
            except OSError:
                info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                if not entry.name.startswith(".") and _identity(info) not in above:
                    yield f"{key}/", 0, above | {_identity(info)}
            elif (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)) and is_image(key, include):
                yield key, info.st_size, None


def _identity(info: os.stat_result) -> _Identity:
    return info.st_dev, info.st_ino


def _list(fs: fsspec.AbstractFileSystem, root: str, include: tuple[str, ...]) -> Iterator[ImageRef]:
    """A bucket's images; the whole listing is in memory for sorting."""
    fs.invalidate_cache()
    prefix = root.rstrip("/") + "/"
    found = (
        ImageRef(escape(path[len(prefix) :]), 0, info["size"])
        for path, info in fs.find(root, detail=True).items()
        if path.startswith(prefix) and info["type"] == "file"
    )
    yield from sorted(image for image in found if is_image(image.key, include))
