"""Labels image by image, as most formats want them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from prelabel.pipeline.selection import Labels

Row = dict[str, Any]
_ROWS = 16_384
"""As many rows become Python objects at a time, however large the batches are."""


def labeled_images(dataset: Labels, *tables: str) -> Iterator[tuple[Row, dict[str, list[Row]]]]:
    """Each image that could be read, with its rows of some tables: none of those that the job did not write.

    They come in image order; what is in memory at a time does not grow with the job.
    """
    groups = {name: _Groups(table_rows(dataset, name)) for name in tables}
    for image in table_rows(dataset, "images"):
        found = {name: group.of(image["image_id"]) for name, group in groups.items()}
        if image["status"] == "ok":
            yield image, found


def table_rows(dataset: Labels, table: str, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of a table, in order."""
    for batch in dataset.batches(table, columns):
        for start in range(0, batch.num_rows, _ROWS):
            yield from batch.slice(start, _ROWS).to_pylist()


class _Groups:
    """Rows by image, asked for in image order."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._groups = groupby(rows, key=itemgetter("image_id"))
        self._image_id: int | None
        self._rows: Iterator[Row]
        self._next()

    def _next(self) -> None:
        self._image_id, self._rows = next(self._groups, (None, iter(())))

    def of(self, image_id: int) -> list[Row]:
        found: list[Row] = []
        while self._image_id is not None and self._image_id <= image_id:
            if self._image_id == image_id:
                found = list(self._rows)
            self._next()
        return found
