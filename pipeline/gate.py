"""What every row passes on its way into an export: a damaged label must not reach the people who correct labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prelabel.operators.threads import map_ahead
from prelabel.pipeline.dataset import LabelDataset, reading_part
from prelabel.pipeline.validate.manifest import PlannedUnit
from prelabel.pipeline.validate.rows import (
    CHECKS,
    Images,
    Vocabulary,
    check_counts,
    check_image_ids,
    check_images,
)
from prelabel.pipeline.validate.violations import Wrong
from prelabel.schemas.errors import JobError
from prelabel.schemas.tables import TABLES

ROUNDING = 1e-3
"""Pixels: what reaches over a border by less is what float32 makes of the border."""
OF_IMAGES = ["image_id", "key", "shard", "width", "height", "status", "num_annotations"]
"""What the checks of objects ask of their images."""


class GatedDataset(LabelDataset):
    """A job's labels as `batches` gives them, a part at a time, each checked before its rows go out.

    What `prelabel validate` proves of rows holds of them: runs fill their image, areas and boxes follow from the runs,
    segments share no pixel, ids are unique and in order. Boxes of models that do not clip end at the image's borders,
    and keypoints outside of it are not placed: zeros.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._beyond: dict[int, int] = {}

    def notes(self) -> tuple[str, ...]:
        """Of the labels that have passed, what was left out."""
        beyond = sum(self._beyond.values())
        return (f"{beyond:,} keypoints are left out: they lie outside of their images",) if beyond else ()

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """As `LabelDataset.batches`.

        Raises:
            JobError: also where a row breaks a promise.
        """
        if name not in {"images", *CHECKS}:
            yield from super().batches(name, columns)
            return
        parts = zip(self.units, self.parts(name), self.parts("images"), strict=False)
        # One part is read and another checked while the rows of a third are written.
        whole = map_ahead(lambda one: self._read(name, *one), parts, threads=1, ahead=1)
        for rows in map_ahead(lambda one: self._passed(name, *one), whole, threads=1, ahead=1):
            yield from rows.select(columns or TABLES[name].names).to_batches()

    def _read(self, name: str, unit: int, part: str, images_part: str) -> tuple[int, str, pa.Table, pa.Table]:
        rows = self._whole(name, part)
        return unit, part, rows, rows if name == "images" else self._whole("images", images_part, OF_IMAGES)

    def _passed(self, name: str, unit: int, part: str, rows: pa.Table, images: pa.Table) -> pa.Table:
        """The rows of a part, once they have been checked."""
        for wrong in self._check(name, rows, images, unit):
            if len(wrong.rows):
                row = int(wrong.rows[0])
                raise JobError(f"{part} row {row}: {wrong.say(row)}; `prelabel validate {self.url}` finds all")
        if name == "images":
            return rows
        most = _borders(rows, images)
        rows = _clipped(rows, most)
        if name == "annotations":
            rows, beyond = _placed(rows, most)
            if beyond:
                self._beyond[unit] = beyond  # an export may read a table twice
        return rows

    def gated(self) -> GatedDataset:
        """Itself."""
        return self

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.categories, tuple(one.get("name", "") for one in self.record.models))

    def _whole(self, name: str, part: str, columns: list[str] | None = None) -> pa.Table:
        """A part as one chunk: its file at once takes Arrow less time than row group by row group."""
        schema = TABLES[name] if columns is None else pa.schema([TABLES[name].field(one) for one in columns])
        with reading_part(self.storage.path(part)):
            file = pq.ParquetFile(pa.BufferReader(self.storage.read(part)), page_checksum_verification=True)
            return file.read(columns=schema.names, use_threads=False).cast(schema).combine_chunks()

    def _check(self, name: str, rows: pa.Table, images: pa.Table, unit: int) -> Iterator[Wrong]:
        if not len(images):
            return
        planned = PlannedUnit(
            unit, images["image_id"][0].as_py(), images["shard"][0].as_py(), images["key"].combine_chunks()
        )
        known = Images(planned, images)
        if name == "images":
            yield from check_image_ids(planned, rows)
            yield from check_images(planned, rows, self._vocabulary)
        elif name in CHECKS:
            yield from CHECKS[name](rows, known, self._vocabulary)
        if name == "annotations":
            yield from check_counts(rows, known)


def _clipped(rows: pa.Table, most: np.ndarray) -> pa.Table:
    """The rows with boxes that end at the borders of their images, which `_borders` says."""
    box = rows["bbox"].combine_chunks()
    sides = np.stack([side.to_numpy() for side in box.flatten()], axis=1).astype(np.float64)
    start, end = sides[:, :2], sides[:, :2] + sides[:, 2:]
    outside: np.ndarray = np.any((start < -ROUNDING) | (end > most + ROUNDING), axis=1)
    if not outside.any():
        return rows
    start, end = np.clip(start, 0, most), np.clip(end, 0, most)
    sides = np.where(outside[:, None], np.concatenate([start, end - start], axis=1), sides)
    clipped = pa.StructArray.from_arrays(list(map(pa.array, sides.T.astype(np.float32))), fields=list(box.type))
    rows = _with(rows, "bbox", clipped)
    if "segmentation" not in rows.column_names:
        return rows
    boxed = outside & rows["segmentation"].is_null().to_numpy()
    return _with(rows, "area", pa.array(np.where(boxed, sides[:, 2] * sides[:, 3], rows["area"].to_numpy())))


def _placed(rows: pa.Table, most: np.ndarray) -> tuple[pa.Table, int]:
    """The rows without keypoints outside of their images, which end at `_borders`; and how many there were."""
    lists = rows["keypoints"].combine_chunks()
    if lists.null_count == len(lists):
        return rows, 0
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    points = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, 3).copy()
    most = np.repeat(most, lengths // 3, axis=0)
    inside = ((points[:, :2] >= -ROUNDING) & (points[:, :2] <= most + ROUNDING)).all(1)
    outside = (points[:, 2] > 0) & ~inside
    if not outside.any():
        return rows, 0
    points[outside] = 0
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    column = pa.ListArray.from_arrays(offsets, pa.array(points.ravel()), mask=lists.is_null())
    return _with(rows, "keypoints", column), int(outside.sum())


def _borders(rows: pa.Table, images: pa.Table) -> np.ndarray:
    """int (N, 2): width and height of each row's image."""
    place = np.searchsorted(images["image_id"].to_numpy(), rows["image_id"].to_numpy())
    return np.stack([images[side].fill_null(0).to_numpy()[place] for side in ("width", "height")], axis=1)


def _with(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    place = rows.column_names.index(name)
    return rows.set_column(place, rows.schema.field(name), column.cast(rows.schema.field(name).type))
