"""Some images of a unit: all of them, those that a search suspects, or those that failed and are worked again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from prelabel.pipeline.sources.base import READ_SCHEMA, Source, Unit

MESSAGES = {
    "crashed_worker": "it takes the process that works on it down, alone and each time",
    "timeout": "it takes longer than --image-timeout, alone and each time",
}
"""Of images that are skipped, by their error codes."""


class Skip(NamedTuple):
    """Why an image is left out: its error code, and whether already reading it ends the process."""

    code: str
    unread: bool = False


HARMLESS = Skip("harmless", unread=True)
"""In a trial: a gray image takes the place of this one."""
_GRAY = b"P6 640 480 255 " + b"\x80" * (640 * 480 * 3)


@dataclass(frozen=True)
class Portion:
    """Images of one unit that are worked together.

    Attributes:
        unit: whose
        image_ids: of the images, sorted
        skip: image_id -> why it is left out, and gets a failed row
    """

    unit: Unit
    image_ids: tuple[int, ...]
    skip: Mapping[int, Skip] = field(default_factory=dict)

    @classmethod
    def whole(cls, unit: Unit, skip: Mapping[int, Skip] | None = None) -> Portion:
        """All images of a unit."""
        return cls(unit, tuple(unit.image_ids), skip or {})

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def size(self) -> int:
        """Encoded bytes, as planned."""
        first = self.unit.first_image_id
        return sum(max(0, int(self.unit.sizes[image_id - first])) for image_id in self.image_ids)

    @property
    def at_risk(self) -> tuple[int, ...]:
        """The images that are not left out."""
        return tuple(image_id for image_id in self.image_ids if image_id not in self.skip)

    def only(self, image_ids: Collection[int]) -> Portion:
        """Some images of these."""
        return replace(self, image_ids=tuple(sorted(image_ids)))

    def without(self, skip: Mapping[int, Skip]) -> Portion:
        """The same images, with more of them left out."""
        return replace(self, skip={**self.skip, **skip})

    def read(self, source: Source) -> pa.Table:
        """A row for each image, as READ_SCHEMA says.

        Raises:
            SourceError: the shard is not what was planned.
            OSError: the storage failed, for now.
        """
        parts: list[pa.Table] = []
        for is_unread, some in groupby(self.image_ids, lambda one: self._why(one).unread):
            image_ids = list(some)
            parts += map(self._unread, image_ids) if is_unread else self._read(source, image_ids)
        return pa.concat_tables(parts)

    def _why(self, image_id: int) -> Skip:
        return self.skip.get(image_id, Skip(""))

    def _read(self, source: Source, image_ids: list[int]) -> Iterator[pa.Table]:
        for first, last in runs_of(image_ids):
            rows = source.read(part_of(self.unit, first, last))
            skipped = [image_id for image_id in range(first, last + 1) if image_id in self.skip]
            yield self._marked(rows, skipped) if skipped else rows

    def _marked(self, rows: pa.Table, skipped: list[int]) -> pa.Table:
        listed = rows.to_pylist()
        for row in listed:
            if row["image_id"] in skipped and row["error_code"] is None:
                row |= {"bytes": None, **self._failure(row["image_id"])}
        return pa.Table.from_pylist(listed, schema=READ_SCHEMA)

    def _unread(self, image_id: int) -> pa.Table:
        """Where an image's bytes are not looked for, its source can't say its URI."""
        key = self.unit.keys[image_id - self.unit.first_image_id]
        what = {"bytes": _GRAY} if self._why(image_id) == HARMLESS else self._failure(image_id)
        row = {"image_id": image_id, "key": key, "uri": f"{self.unit.shard.uri}#{key}", **what}
        return pa.Table.from_pylist([row], schema=READ_SCHEMA)

    def _failure(self, image_id: int) -> dict[str, Any]:
        code = self._why(image_id).code
        return {"error_code": code, "error": MESSAGES[code]}


def runs_of(image_ids: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of ids without a gap."""
    first = last = image_ids[0]
    for image_id in image_ids[1:]:
        if image_id != last + 1:
            yield first, last
            first = image_id
        last = image_id
    yield first, last


def part_of(unit: Unit, first: int, last: int) -> Unit:
    """The images from one id to another, as a unit of the same number."""
    some = slice(first - unit.first_image_id, last + 1 - unit.first_image_id)
    return Unit(unit.number, unit.shard, first, unit.keys[some], unit.offsets[some], unit.sizes[some])
