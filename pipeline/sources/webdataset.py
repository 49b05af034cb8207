"""WebDataset: images in tar files. A member's name is only ever a name; nothing is extracted."""

from __future__ import annotations

import logging
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

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
_NUMBERS = re.compile(
    rb"(?:[0-7]{7}[\0 ]){3}([0-7]{11})[\0 ][0-7]{11}[\0 ]([0-7]{6})[\0 ]{2}([0x])"
)  # from mode to type
_DEVICE = re.compile(rb"(?:[0-7]{7}[\0 ]|\0{8}){2}")
_TIMES = re.compile(rb"(?:[0-9]{2} [acm]time=[0-9.]{1,32}\n){1,3}\0*")
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
                if member.kind == "file":
                    seen[key] += 1
                    key = key if seen[key] == 1 else f"{key}#{seen[key]}"
                    yield ImageRef(key, member.offset, member.size)
                elif member.kind != "folder":
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


class _Member(NamedTuple):
    """What a tar holds: the offset is that of the bytes; `kind` is "file", "folder" or "other"."""

    name: str
    offset: int
    size: int
    kind: str = "file"


def _members(file: IO[bytes], size: int) -> Iterator[_Member]:
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
            blocks = headers.read(3 * tarfile.BLOCKSIZE)
            if not blocks[: tarfile.BLOCKSIZE].strip(b"\0"):
                offset, ended = offset + tarfile.BLOCKSIZE, True
                continue
            member = None if tar.pax_headers else _plain_member(blocks, offset)
            if member is not None:
                end = member.offset + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            else:
                headers.seek(offset)
                member, end = _any_member(tar), tar.offset
            if not offset < end <= size or member.size < 0:
                raise tarfile.ReadError(f"{member.name:.99} would end at byte {end} of {size}")
            offset, ended = end, False
            yield member
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise tarfile.ReadError(f"at byte {offset}: {error}") from error
    if not ended:
        raise tarfile.ReadError(f"no end mark at byte {size}")


def _any_member(tar: tarfile.TarFile) -> _Member:
    """The member whose header is next."""
    found = tarfile.TarInfo.fromtarfile(tar)
    if found.issparse():
        raise tarfile.ReadError(f"{found.name:.99} is a sparse file, which is not supported")
    kind = "file" if found.isreg() else "folder" if found.isdir() else "other"
    return _Member(found.name, found.offset_data, found.size, kind)


def _plain_member(blocks: bytes, offset: int) -> _Member | None:
    """The file whose header, at an offset, is as most are, as `tarfile` reads it in five times as long; else None.

    It may have an extended header before it that says no more than times, as webdataset's writer puts one.
    """
    if blocks[156:157] == b"x":
        if _plain_header(blocks, b"x") is None or not _says_times_alone(blocks[512:1024]):
            return None
        blocks, offset = blocks[1024:], offset + 1024
    found = _plain_header(blocks, b"0")
    return _Member(found[0], offset + 512, found[1]) if found else None


def _plain_header(block: bytes, kind: bytes) -> tuple[str, int] | None:
    """Name and size, where the numbers are octal and the checksum is right."""
    numbers = _NUMBERS.fullmatch(block, 100, 157)
    if numbers is None or numbers[3] != kind or _DEVICE.fullmatch(block, 329, 345) is None or len(block) < 512:
        return None
    if int(numbers[2], 8) != _sum(block) - sum(block[148:156]) + sum(b" " * 8):
        return None
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    whole = b"/".join((prefix, name)) if prefix else name
    return whole.decode("utf-8", "surrogateescape"), int(numbers[1], 8)


def _sum(block: bytes) -> int:
    """Of 512 bytes, which is what the lower half of Adler-32 counts from 1 on, up to 65,520."""
    return sum(zlib.adler32(half) & 0xFFFF for half in (block[:256], block[256:512])) - 2


def _says_times_alone(block: bytes) -> bool:
    records = block.rstrip(b"\0").splitlines(keepends=True)
    return _TIMES.fullmatch(block) is not None and all(int(one[:2]) == len(one) for one in records)


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
