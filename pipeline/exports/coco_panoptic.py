"""COCO's panoptic format: a JSON document, and beside it the folder of PNGs whose colors are the segments' ids."""

from __future__ import annotations

import io
import os
import zlib

import numpy as np
from PIL import Image

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.exports.rows import Row, labeled_images
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import Storage, writing, writing_folder
from prelabel.schemas.coco import write_panoptic
from prelabel.schemas.errors import JobError, UserError
from prelabel.schemas.rle import Rle, decode


class CocoPanoptic(Exporter):
    """`NAME.json` and the folder `NAME`; image ids are the job's, `file_name` of an image is its key.

    PNGs are named by image_id: a key may hold folders, or worse, and two of them may have the same stem.
    """

    suffix = ".json"
    tables = ()

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """The images that could be read, with all of their panoptic segments, one PNG at a time.

        Where the folder is in a bucket, PNGs appear there one by one, and the document last.
        """
        if "fuse_panoptic" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no panoptic segments: label with --task fuse_panoptic")
        folder, suffix = os.path.splitext(to)
        if suffix != ".json":
            raise JobError(f"can't write {to}: give a name that ends in .json; without that, it is the PNGs' folder")
        with writing(to) as out, images.beside(to) as named, writing_folder(folder) as pngs:
            found = labeled_images(dataset, "segments")
            annotations = (_write_png(pngs, image, _panoptic(rows["segments"])) for image, rows in found)
            counts = write_panoptic(
                out, named(dataset.batches("images")), annotations, dataset.categories, document_info(dataset)
            )
        return ExportSummary(to, *counts)


def _panoptic(segments: list[Row]) -> list[Row]:
    return [row for row in segments if row["kind"] == "panoptic"]


def _write_png(folder: str, image: Row, segments: list[Row]) -> Row:
    """Writes one image's PNG into the folder; returns its annotation."""
    name = f"{image['image_id']:012d}.png"
    colors = np.zeros((image["height"], image["width"], 3), np.uint8, order="F")  # as masks are: many times faster
    for segment in segments:
        mask = decode(Rle.from_coco(segment["segmentation"]))
        for channel, value in enumerate(segment["segment_id"].to_bytes(3, "little")):
            if value:
                colors[..., channel][mask] = value
    png = io.BytesIO()
    Image.fromarray(colors).save(png, "PNG", compress_type=zlib.Z_RLE)
    Storage(folder).add(name, png.getvalue())
    return {"image_id": image["image_id"], "file_name": name, "segments_info": [*map(_segment_info, segments)]}


def _segment_info(segment: Row) -> Row:
    return {
        "id": segment["segment_id"],
        "category_id": segment["category_id"],
        "area": segment["area"],
        "bbox": [int(segment["bbox"][side]) for side in ("x", "y", "width", "height")],
        "iscrowd": 0,
    }
