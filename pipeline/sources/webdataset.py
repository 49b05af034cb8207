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
        with naming(shard), fs.open(path, "rb") as file:
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
        with naming(unit.shard):
            images = [Fetched(data) for data in _slices(fs, path, unit.offsets, unit.offsets + unit.sizes)]
        return read_table(unit, [f"tar://{key}::{unit.shard.uri}" for key in unit.keys], images)


def _members(file: IO[bytes], size: int) -> Iterator[tarfile.TarInfo]:
    """All members of a plain tar of `size` bytes, from their headers alone.

    `tarfile`'s own iteration ends quietly at a broken header, and at the first end mark of tars put behind each other;
    here the first raises and the second goes on. A tar without an end mark is one that was cut off.

    Raises:
        tarfile.ReadError: a header is broken, or the file ends too soon.
    """
    offset, ended = 0, False
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
        while offset < size:
            file.seek(offset)
            if not file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                offset, ended = offset + tarfile.BLOCKSIZE, True
                continue
            file.seek(offset)
            member = tarfile.TarInfo.fromtarfile(tar)
            offset, ended = tar.offset, False
            if offset > size:
                raise tarfile.ReadError(f"{member.name} ends at byte {offset} of {size}")
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file, which is not supported")
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
