"""Where each image's rows are: found without opening any part but its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from prelabel.pipeline.dataset import LabelDataset, reading_part
from prelabel.pipeline.manifest import UNITS
from prelabel.schemas.errors import JobError, one_line
from prelabel.schemas.tables import TABLES, empty_table


class Units:
    """The committed images, and their rows; several threads may ask.

    Attributes:
        images: how many there are
    """

    def __init__(self, dataset: LabelDataset) -> None:
        """Raises JobError where the plan can't be read."""
        self._dataset = dataset
        first = np.append(_first_image_ids(dataset), dataset.record.images)
        self._first, self._end = first[dataset.units], first[np.array(dataset.units, np.int64) + 1]
        self._before = np.append(0, np.cumsum(self._end - self._first))
        self.images = int(self._before[-1])
        self._parts = lru_cache(self._open_parts)

    def __contains__(self, image_id: int) -> bool:
        return bool(self.contain(np.array([image_id]))[0])

    def contain(self, image_ids: np.ndarray) -> np.ndarray:
        """Which of the images are committed: bool, as many."""
        unit = self._units_of(image_ids)
        return (unit >= 0) & (image_ids < self._end[unit]) if len(self._end) else np.zeros(len(image_ids), bool)

    def _units_of(self, image_ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first, image_ids, side="right") - 1

    def page(self, offset: int, limit: int) -> np.ndarray:
        """The ids of a run of the committed images, int64."""
        places = np.arange(min(offset, self.images), min(offset + limit, self.images))
        unit = np.searchsorted(self._before, places, side="right") - 1
        return self._first[unit] + places - self._before[unit]

    def rows(self, name: str, image_ids: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """The images' rows of a table, in image order.

        Args:
            name: of the table
            image_ids: int64, of committed images
            columns: which; None: all

        Raises:
            JobError: a part is missing or damaged.
        """
        parts, units = self._parts(name), self._units_of(image_ids)
        if not parts or not len(image_ids):
            return empty_table(name).select(columns or TABLES[name].names)
        wanted = [(parts[unit], pa.array(image_ids[units == unit])) for unit in np.unique(units)]
        return pa.concat_tables([_read(part, columns, pc.field("image_id").isin(ids)) for part, ids in wanted])

    def image(self, image_id: int) -> dict[str, Any]:
        """A committed image's row of the images table."""
        row: dict[str, Any] = self.rows("images", np.array([image_id])).to_pylist()[0]
        return row

    def unit_of(self, image_id: int) -> int:
        """The place, among the committed units, of the one that a committed image is in."""
        return int(self._units_of(np.array([image_id]))[0])

    def unit_rows(self, name: str, unit: int, columns: list[str]) -> pa.Table:
        """All rows of a unit."""
        parts = self._parts(name)
        return _read(parts[unit], columns) if parts else empty_table(name).select(columns)

    def _open_parts(self, name: str) -> list[ds.Fragment]:
        return list(self._dataset.table(name).get_fragments())


def _read(part: ds.Fragment, columns: list[str] | None, filter: Any = None) -> pa.Table:
    with reading_part(part.path):
        return part.to_table(columns=columns, filter=filter, use_threads=False)


def _first_image_ids(dataset: LabelDataset) -> np.ndarray:
    """The first image_id of each planned unit, int64."""
    storage = dataset.storage
    try:
        paths = [storage.path(f"{UNITS}/{name}") for name in storage.names(UNITS)]
        tables = [pq.read_table(path, columns=["first_image_id"], filesystem=storage.fs) for path in paths]
        return pa.concat_tables(tables)["first_image_id"].to_numpy()
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"the plan of {storage.url} can't be read: {one_line(error)}") from error
