"""COCO's panoptic format: a JSON document, and beside it the folder of PNGs whose colors are the segments' ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing, writing_folder
from prelabel.schemas.coco import write_panoptic
from prelabel.schemas.errors import JobError, UserError
from prelabel.schemas.rle import Rle, decode

Row = dict[str, Any]


class CocoPanoptic(Exporter):
    """`NAME.json` and the folder `NAME`; image ids are the job's, `file_name` of an image is its key.

    PNGs are named by image_id: a key may hold folders, or worse, and two of them may have the same stem.
    """

    def write(self, dataset: Labels, to: str) -> ExportSummary:
        """Writes the images that could be read, with all of their panoptic segments, one PNG at a time.

        Where the folder is in a bucket, PNGs appear there one by one, and the document last.
        """
        if "fuse_panoptic" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no panoptic segments: label with --task fuse_panoptic")
        folder, suffix = os.path.splitext(to)
        if suffix != ".json":
            raise JobError(f"can't write {to}: give a name that ends in .json; without that, it is the PNGs' folder")
        with writing(to) as out, writing_folder(folder) as pngs:
            annotations = (_write_png(pngs, image, segments) for image, segments in _segments_by_image(dataset))
            counts = write_panoptic(
                out, dataset.batches("images"), annotations, dataset.categories, document_info(dataset)
            )
        return ExportSummary(to, *counts)


def _segments_by_image(dataset: Labels) -> Iterator[tuple[Row, list[Row]]]:
    """Each image that could be read, and its panoptic segments."""
    columns = ["segment_id", "image_id", "category_id", "area", "bbox", "segmentation", "kind"]
    panoptic = (row for row in _rows(dataset, "segments", columns) if row["kind"] == "panoptic")
    groups = groupby(panoptic, key=itemgetter("image_id"))
    image_id, segments = next(groups, (None, None))
    for image in _rows(dataset, "images", ["image_id", "height", "width", "status"]):
        found: list[Row] = []
        if segments is not None and image["image_id"] == image_id:
            found = list(segments)
            image_id, segments = next(groups, (None, None))
        if image["status"] == "ok":
            yield image, found


def _rows(dataset: Labels, table: str, columns: list[str]) -> Iterator[Row]:
    return (row for batch in dataset.batches(table, columns) for row in batch.to_pylist())


def _write_png(folder: str, image: Row, segments: list[Row]) -> Row:
    """Writes one image's PNG into the folder; returns its annotation."""
    name = f"{image['image_id']:012d}.png"
    colors = np.zeros((image["height"], image["width"], 3), np.uint8, order="F")  # as masks are: many times faster
    for segment in segments:
        mask = decode(Rle.from_coco(segment["segmentation"]))
        for channel, value in enumerate(segment["segment_id"].to_bytes(3, "little")):
            if value:
                colors[..., channel][mask] = value
    with writing(f"{folder}/{name}") as file:
        Image.fromarray(colors).save(file, "PNG")
    return {"image_id": image["image_id"], "file_name": name, "segments_info": [*map(_segment_info, segments)]}


def _segment_info(segment: Row) -> Row:
    return {
        "id": segment["segment_id"],
        "category_id": segment["category_id"],
        "area": segment["area"],
        "bbox": [int(segment["bbox"][side]) for side in ("x", "y", "width", "height")],
        "iscrowd": 0,
    }
