"""Which images an imported job is of: some of another job's, found by what a document calls them, or its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports.rows import Row, table_rows
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import ImageRef, Shard, SourceOptions, Unit
from prelabel.pipeline.sources.names import escape
from prelabel.schemas.errors import UserError

UNIT_IMAGES = 512


class Named(NamedTuple):
    """What a document says of an image: as `ImportedImage`."""

    key: str
    height: int
    width: int
    image_id: int | None


class Images(ABC):
    """The images of a job that is to be written; each has a place in the document, or -1.

    Attributes:
        left_out: images that the document could hold and does not
    """

    left_out = 0

    @abstractmethod
    def planned(self) -> Iterator[tuple[Shard, ImageRef]]:
        """All of them in plan order."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[Row, int]]:
        """Their rows of the images table, but for the numbers that the new job gives, and their places."""

    def units(self) -> Iterator[Unit]:
        """The new job's plan."""
        number = images = 0
        for shard, refs in groupby(self.planned(), key=itemgetter(0)):
            while some := [ref for _, ref in islice(refs, UNIT_IMAGES)]:
                keys, offsets, sizes = zip(*some, strict=True)
                yield Unit(number, shard, images, list(keys), np.array(offsets, np.int64), np.array(sizes, np.int64))
                number, images = number + 1, images + len(some)


class DocumentImages(Images):
    """The images of a document by themselves: it is believed what it says of them.

    Args:
        named: what the document says
        document: its URL
        folder: that their names are relative to; None: nobody said where they are

    Raises:
        UserError: two have the same name, or none is in the folder.
        SourceError: the folder can't be listed.
    """

    def __init__(self, named: Sequence[Named], document: str, folder: str | None) -> None:
        check_names_differ(one.key for one in named)
        self._named = named
        self._order = sorted(range(len(named)), key=lambda place: named[place].key)
        self._shard, self._sizes = Shard("folder", escape(document), None), dict[str, int]()
        if folder is not None:
            source = source_of_kind("folder", folder, SourceOptions(include=("*",)))
            self._shard = next(source.shards())
            self._sizes = {ref.key: ref.size for ref in source.index(self._shard)}
            if named and not any(escape(one.key) in self._sizes for one in named):
                raise UserError(f"none of the images is in {folder}: names are relative to it, as {named[0].key!r:.99}")

    def planned(self) -> Iterator[tuple[Shard, ImageRef]]:
        """By name, as a folder's."""
        for key in (escape(self._named[place].key) for place in self._order):
            yield self._shard, ImageRef(key, 0, self._sizes.get(key, 0))

    def rows(self) -> Iterator[tuple[Row, int]]:
        """Of files that nobody has opened."""
        unread = {"orientation": 1, "format": "", "digest": "", "status": "ok"}
        for place in self._order:
            one, key = self._named[place], escape(self._named[place].key)
            size = {"width": one.width, "height": one.height, "num_bytes": self._sizes.get(key, 0)}
            yield {"key": key, "uri": f"{self._shard.uri.rstrip('/')}/{key}"} | size | unread, place


class JobImages(Images):
    """Those images of a job that a document holds; their ids stay if these are all that could be read.

    In that case the job's images that could not be read are there, too: no document holds them.

    Args:
        named: what the document says
        job: that it was exported from

    Raises:
        UserError: one is not in the job, or not as the job has it.
    """

    def __init__(self, named: Sequence[Named], job: LabelDataset) -> None:
        self._job = job
        self._places = find_images(named, job)
        others: list[int] = []
        for row in table_rows(job, "images", ["image_id", "status", "key", "height", "width"]):
            place = self._places.get(row["image_id"])
            if place is not None:
                _check_same(named[place], row, job.url)
            elif row["status"] == "ok":
                self.left_out += 1
            else:
                others.append(row["image_id"])
        if not self.left_out:
            self._places |= dict.fromkeys(others, -1)
        self._ids = np.array(sorted(self._places), np.int64)

    def planned(self) -> Iterator[tuple[Shard, ImageRef]]:
        """As in the job's plan."""
        for unit in (unit for wave in Manifest(self._job.storage).waves(set()) for unit in wave):
            first, last = np.searchsorted(self._ids, (unit.image_ids.start, unit.image_ids.stop))
            for place in (self._ids[first:last] - unit.first_image_id).tolist():
                yield unit.shard, ImageRef(unit.keys[place], int(unit.offsets[place]), int(unit.sizes[place]))

    def rows(self) -> Iterator[tuple[Row, int]]:
        """The job's own, without what it said of the image as a whole."""
        for row in table_rows(self._job, "images"):
            if row["image_id"] in self._places:
                yield row | {"labels": None}, self._places[row["image_id"]]


def find_images(named: Sequence[Named], job: LabelDataset) -> dict[int, int]:
    """The job's image ids -> places among the named.

    An image is found by its id and name; else by its name, which is its key or what exports call its file; else by a
    name that is the end of its key.

    Raises:
        UserError: one is not in the job, or may be several of its images.
    """
    files = ImageFiles("none", job)
    by_id = {one.image_id: place for place, one in enumerate(named) if one.image_id is not None}
    found: dict[int, int] = {}

    def with_id(row: Row) -> int | None:
        place = by_id.get(row["image_id"])
        return place if place is not None and named[place].key in (row["key"], files.name(row)) else None

    def by_name(names_of: Callable[[Row], Iterable[str]]) -> Callable[[Row], int | None]:
        left = set(range(len(named))).difference(found.values())
        check_names_differ(named[place].key for place in left)
        places = {named[place].key: place for place in left}
        return lambda row: next((places[name] for name in names_of(row) if name in places), None)

    for look in (
        lambda: with_id,
        lambda: by_name(lambda row: (row["key"], files.name(row))),
        lambda: by_name(lambda row: _ends(row["key"])),
    ):
        if len(found) < len(named):
            _look(job, look(), found, named)
    if len(found) < len(named):
        missing = set(range(len(named))).difference(found.values())
        names = {named[place].key for place in missing}
        check_names_differ(one.key for one in named if one.key in names)
        raise UserError(
            f"{len(missing):,} images of the document are not in {job.url}, such as {named[min(missing)].key!r:.99}: "
            "give the job that was exported, or none"
        )
    return found


def _look(
    job: LabelDataset, place_of: Callable[[Row], int | None], found: dict[int, int], named: Sequence[Named]
) -> None:
    """Adds what is found of images that were not found before."""
    taken: dict[int, str] = {}
    for row in table_rows(job, "images", ["image_id", "key", "format"]):
        if row["image_id"] in found or (place := place_of(row)) is None:
            continue
        if place in taken:
            raise UserError(
                f"{named[place].key!r:.99} may be {taken[place]!r:.99} or {row['key']!r:.99} of {job.url}: "
                "give file names that are keys"
            )
        taken[place] = row["key"]
        found[row["image_id"]] = place


def check_names_differ(names: Iterable[str]) -> None:
    """Raises UserError where two images have the same name."""
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise UserError(f"the document has {times} images of the name {name!r:.99}: each must have its own")


def _ends(key: str) -> Iterator[str]:
    """What is left of a key without its first folders."""
    while "/" in key:
        key = key.partition("/")[2]
        yield key


def _check_same(named: Named, row: dict[str, Any], url: str) -> None:
    if row["status"] != "ok":
        raise UserError(f"{row['key']!r:.99} could not be read in {url}: leave it out of the document")
    if (named.height, named.width) != (row["height"], row["width"]):
        sizes = f"{named.width} x {named.height} in the document, and {row['width']} x {row['height']} in {url}"
        raise UserError(f"{named.key!r:.99} is {sizes} (width x height, upright): is it the same image?")
