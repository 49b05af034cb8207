"""What FiftyOne imports as `fiftyone.types.COCODetectionDataset`: labels.json, and data, the folder of the images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.image_files import ImageFiles, Put
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing, writing_folder
from prelabel.pipeline.validate.masks import Runs, measure, runs_of
from prelabel.schemas.coco import write_instances
from prelabel.schemas.tables import BBOX

ROUNDING = 1e-3
"""Pixels: a side that is this near to the middle of a pixel may be rounded either way."""


class FiftyOne(Exporter):
    """COCO's instances document whose boxes hold their masks, for FiftyOne cuts a mask where its box ends."""

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """`file_name` is the path in `data`; where images are not put there, the key."""
        fitted, info = _Fitted(), document_info(dataset)
        with (
            writing_folder(to) as folder,
            writing(f"{folder}/labels.json") as out,
            images.into(f"{folder}/data") as put,
        ):
            found = (_named(batch, images, put) for batch in dataset.batches("images"))
            annotations = map(fitted.fit, dataset.batches("annotations"))
            counts = write_instances(out, found, annotations, dataset.categories, info)
        notes = [*fitted.notes()]
        if "detect_keypoints" in dataset.record.tasks:
            notes.append("keypoints are left out: FiftyOne imports those of coco-keypoints")
        if not images.are_put:
            notes.append("tell FiftyOne the images' folder: data_path=...")
        return ExportSummary(to, *counts, tuple(notes))


def _named(batch: pa.RecordBatch, images: ImageFiles, put: Put) -> pa.RecordBatch:
    """The images by the names that they have in `data`, where they are put."""
    if not images.are_put:
        return batch
    rows = batch.to_pylist()
    names = [images.name(row) if row["status"] == "ok" else "" for row in rows]
    for row, name in zip(rows, names, strict=True):
        if name:
            put(row, name)
    return _with(batch, "key", pa.array(names, pa.string()))


class _Fitted:
    """Annotations whose boxes, rounded as FiftyOne rounds them, hold their masks: if not, they become its extent."""

    def __init__(self) -> None:
        self._moved = self._empty = 0

    def fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch, in its order."""
        column = batch["segmentation"]
        measures = measure(_runs(column))
        box, extent = _sides(batch), measures.boxes
        start, end = box[:, :2], box[:, :2] + box[:, 2:]
        first, last = extent[:, :2], extent[:, :2] + extent[:, 2:]
        holds = np.all((np.rint(start + ROUNDING) <= first) & (np.rint(end - ROUNDING) >= last), axis=1)
        masked, has_pixels = column.is_valid().to_numpy(zero_copy_only=False), measures.areas > 0
        moved, empty = has_pixels & ~holds, masked & ~has_pixels
        self._moved, self._empty = self._moved + int(moved.sum()), self._empty + int(empty.sum())
        sides = np.where(moved[:, None], extent, box).astype(np.float32)
        batch = _with(batch, "bbox", pa.StructArray.from_arrays([*map(pa.array, sides.T)], fields=[*BBOX]))
        return _with(batch, "segmentation", pc.if_else(pa.array(empty), pa.scalar(None, column.type), column))

    def notes(self) -> Iterator[str]:
        """What differs from the labels."""
        if self._moved:
            yield f"{self._moved:,} boxes did not hold their masks, which FiftyOne would cut: they are their extents"
        if self._empty:
            yield f"{self._empty:,} masks without a pixel are left out: there are the boxes"


def _runs(column: pa.StructArray) -> Runs:
    sizes, counts = pc.struct_field(column, "size"), pc.struct_field(column, "counts").fill_null("")
    heights, widths = (pc.list_element(sizes, k).fill_null(0).to_numpy().astype(np.int64) for k in (0, 1))
    return runs_of(pa.chunked_array([counts]), heights, widths)


def _sides(batch: pa.RecordBatch) -> np.ndarray:
    """float64 (N, 4)."""
    return np.stack([side.to_numpy() for side in batch["bbox"].flatten()], axis=1).astype(np.float64)


def _with(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, column)
