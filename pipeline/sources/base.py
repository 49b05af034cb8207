"""What a source is: it names its shards, indexes their images without decoding any, and reads one unit's bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

READ_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bytes", pa.large_binary()),  # null exactly where error_code is set
        pa.field("error_code", pa.string()),  # "missing", "read_error" or "too_large"
        pa.field("error", pa.string()),
    ]
)

MAX_IMAGE_BYTES = 2**30


@dataclass(frozen=True)
class SourceOptions:
    """How a source is to be read.

    Attributes:
        include: globs on a folder's keys, instead of the image suffixes
        image_column: the Parquet column that holds images, or the list's column that holds URIs; None: found by type
        allow_scheme: schemes that lists may name besides those that they may anyway
        allow_private_addresses: whether lists may lead to web servers that are not public
        max_image_bytes: an image file with more is not read
    """

    include: tuple[str, ...] = ()
    image_column: str | None = None
    allow_scheme: tuple[str, ...] = ()
    allow_private_addresses: bool = False
    max_image_bytes: int = MAX_IMAGE_BYTES


class ImageRef(NamedTuple):
    """An image that is planned: where it is, not what it is.

    `key` is its name within the source, escaped as in `names` and without secrets; `offset` its byte offset in a tar,
    its row in a Parquet file or a list, 0 for a file of its own; `size` its bytes as far as known without reading it
    (an estimate for Parquet, 0 for a list).
    """

    key: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One file that holds many images, or a folder or list as a whole.

    Attributes:
        kind: the source's name in the registry
        uri: absolute; with its protocol unless local; escaped as in `names`
        size: bytes of the file, None for a folder
        version: what changes when the file does, where its file system tells: an ETag, a time
    """

    kind: str
    uri: str
    size: int | None
    version: str | None = None


@dataclass(frozen=True)
class Unit:
    """A fixed run of images in one shard: the unit of work, retry and commit.

    Attributes:
        number: position in the plan, from 0
        first_image_id: the image_id of its first image; the others follow without a gap
        keys: the images' keys; offsets, sizes: int64 arrays, as in `ImageRef`
    """

    number: int
    shard: Shard
    first_image_id: int
    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_ids(self) -> range:
        """The ids of its images."""
        return range(self.first_image_id, self.first_image_id + len(self))


class Source(ABC):
    """Where images come from. A subclass handles one kind; its name goes into the registry."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        self.url = url
        self.options = options

    @abstractmethod
    def shards(self) -> Iterator[Shard]:
        """The shards behind the URL (which may be a glob), sorted by URI.

        Raises:
            SourceError: nothing is there, or it can't be listed.
        """

    @abstractmethod
    def index(self, shard: Shard) -> Iterator[ImageRef]:
        """The images of a shard in its own order (folders: sorted by key); nothing is decoded.

        Raises:
            SourceError: the shard is damaged.
        """

    @abstractmethod
    def read(self, unit: Unit) -> pa.Table:
        """One row per image of the unit, in order, as READ_SCHEMA says.

        What is confirmed to be gone becomes a row with an error_code; a transient failure is raised.

        Raises:
            SourceError: the shard is not what was planned.
            OSError: the storage failed, for now.
        """
