"""WebDataset: images in tar files. A member's name is only ever a name; nothing is extracted."""

from __future__ import annotations

import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO

import fsspec
import numpy as np
import pyarrow as pa

from prelabel.pipeline.sources.base import ImageRef, Shard, Source, Unit
from prelabel.pipeline.sources.fetch import Fetched, read_table
from prelabel.pipeline.sources.names import COMPRESSED_TARS, escape, is_image
from prelabel.pipeline.sources.shards import check_unchanged, find_shards, naming, open_uri
from prelabel.pipeline.storage import read_file
from prelabel.schemas.errors import SourceError

_GAP = 1 << 20  # bytes between two images that are cheaper to read along than to ask for a second range
_AHEAD = 1 << 20  # bytes that are read behind a header of a remote tar: small images lie there, with theirs
_LONGEST_HEADER = 1 << 20  # bytes; PAX and GNU names are as long as they like
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gz bz2 xz zst lz4
_TOO_LARGE = Fetched(None, "too_large", "the member has more bytes than are allowed")

logger = logging.getLogger(__name__)


class WebDatasetSource(Source):
    """The regular members of tar files whose names say image, hidden ones left out, in the order of the file.

    A key is the member's whole name. The n-th member of one name gets `#n` behind it (n >= 2): no image suffix ends
    like that, so nothing else has this key. The URI is `tar://KEY::SHARD`.
    """

    def shards(self) -> Iterator[Shard]:
        """The tar files, sorted; SourceError if one is compressed."""
        for shard in find_shards("webdataset", self.url, (".tar", *COMPRESSED_TARS)):
            if shard.uri.lower().endswith(COMPRESSED_TARS):
                raise SourceError(
                    f"{shard.uri} is compressed, so that no part of it can be read alone: unpack it to a plain .tar "
                    "first (images hardly shrink)"
                )
            yield shard

    def index(self, shard: Shard) -> Iterator[ImageRef]:
        """One pass over the headers; SourceError if the file is cut off or damaged, whatever came before."""
        fs, path = open_uri(shard.uri)
        seen: Counter[str] = Counter()
        links = 0
        with naming(shard), fs.open(path, "rb", block_size=_AHEAD, cache_type="readahead") as file:
            for member in _members(file, shard.size or 0):
                key = escape(member.name)
                if not is_image(key, self.options.include):
                    continue
                if member.isreg():
                    seen[key] += 1
                    key = key if seen[key] == 1 else f"{key}#{seen[key]}"
                    yield ImageRef(key, member.offset_data, member.size)
                elif not member.isdir():
                    links += 1
        if links:
            logger.warning("%s: %d links or devices with image names left out", shard.uri, links)

    def read(self, unit: Unit) -> pa.Table:
        """The members' bytes, read in as few ranges as their distances allow."""
        check_unchanged(unit.shard)
        fs, path = open_uri(unit.shard.uri)
        small = unit.sizes <= self.options.max_image_bytes
        starts, ends = unit.offsets[small], unit.offsets[small] + unit.sizes[small]
        with naming(unit.shard):
            data = _slices(fs, path, starts, ends)
            images = [Fetched(next(data)) if is_small else _TOO_LARGE for is_small in small]
        return read_table(unit, [f"tar://{key}::{unit.shard.uri}" for key in unit.keys], images)


class _Headers:
    """A file of which no more than a header is read at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: IO[bytes], size: int) -> Iterator[tarfile.TarInfo]:
    """All members of a plain tar of `size` bytes, from their headers alone, which may lie about everything.

    `tarfile`'s own iteration ends quietly at a broken header, and at the first end mark of tars put behind each other;
    here the first raises and the second goes on. A tar without an end mark is one that was cut off.

    Raises:
        tarfile.ReadError: a header is broken, or the file ends too soon.
    """
    offset, ended = 0, False
    headers = _Headers(file)
    try:
        if headers.read(8).startswith(_COMPRESSED):
            raise tarfile.ReadError("it is compressed: unpack it to a plain .tar")
        headers.seek(0)
        tar = tarfile.TarFile(fileobj=headers, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while offset < size:
            headers.seek(offset)
            if not headers.read(tarfile.BLOCKSIZE).strip(b"\0"):
                offset, ended = offset + tarfile.BLOCKSIZE, True
                continue
            headers.seek(offset)
            member = tarfile.TarInfo.fromtarfile(tar)
            if not offset < tar.offset <= size or member.size < 0:
                raise tarfile.ReadError(f"{member.name:.99} would end at byte {tar.offset} of {size}")
            offset, ended = tar.offset, False
            if member.issparse():
                raise tarfile.ReadError(f"{member.name:.99} is a sparse file, which is not supported")
            yield member
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise tarfile.ReadError(f"at byte {offset}: {error}") from error
    if not ended:
        raise tarfile.ReadError(f"no end mark at byte {size}")


def _slices(
    fs: fsspec.AbstractFileSystem, path: str, starts: np.ndarray, ends: np.ndarray
) -> Iterator[memoryview | bytes]:
    """The bytes of each range [start, end) of a file, the ranges being in order and disjoint."""
    far = np.flatnonzero(starts[1:] - ends[:-1] > _GAP) + 1
    for some_starts, some_ends in zip(np.split(starts, far), np.split(ends, far), strict=True):
        if not len(some_starts):
            return
        first, last = int(some_starts[0]), int(some_ends[-1])
        block = memoryview(read_file(fs, path, first, last) if last > first else b"")
        yield from (block[start - first : end - first] for start, end in zip(some_starts, some_ends, strict=True))
