"""COCO 1.0 as CVAT imports it: https://docs.cvat.ai/docs/dataset_management/formats/format-coco/."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.exports.names import check_names
from prelabel.pipeline.image_files import ImageFiles, Put
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing, writing_folder
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.coco import write_instances


class CvatCoco(Exporter):
    """A folder: `annotations/instances_default.json`, and `images` where they are put.

    CVAT takes category 0 for no category at all (its issue 4750): where there is one, all ids are one higher. It takes
    a mask without pixels for an error: such an object is a box.
    """

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All images that could be read, and all of their annotations, the masks as compressed run-length encoding."""
        check_names(dataset.categories.names, "CVAT")
        shift = int(0 in dataset.categories)
        categories = CategorySet(replace(one, id=one.id + shift) for one in dataset.categories)
        with (
            writing_folder(to) as folder,
            images.into(f"{folder}/images") as put,
            writing(f"{folder}/annotations/instances_default.json") as out,
        ):
            named = (_named(batch, images, put) for batch in dataset.batches("images"))
            annotations = (_fitting(batch, shift) for batch in dataset.batches("annotations"))
            counts = write_instances(out, named, annotations, categories, document_info(dataset))
        notes = ("category ids are the job's plus 1, since CVAT takes 0 for no category",) if shift else ()
        return ExportSummary(to, *counts, notes)


def _named(batch: pa.RecordBatch, images: ImageFiles, put: Put) -> pa.RecordBatch:
    """The images that could be read, each under its name in the export, and put there."""
    batch = batch.filter(pc.equal(batch["status"].cast(pa.string()), "ok"))
    rows = batch.to_pylist()
    names = [images.name(row) for row in rows]
    for row, name in zip(rows, names, strict=True):
        put(row, name)
    batch = batch.set_column(batch.schema.names.index("key"), "key", pa.array(names, pa.string()))
    urls = pa.array([images.url(row) for row in rows], pa.string())
    return batch.append_column("coco_url", urls) if len(urls) and not urls.null_count else batch


def _fitting(batch: pa.RecordBatch, shift: int) -> pa.RecordBatch:
    names, masks = batch.schema.names, batch["segmentation"]
    moved = pc.add(batch["category_id"], pa.scalar(shift, pa.int32()))
    masks = pc.if_else(pc.greater(batch["area"], 0), masks, pa.scalar(None, masks.type))
    batch = batch.set_column(names.index("category_id"), "category_id", moved)
    return batch.set_column(names.index("segmentation"), "segmentation", masks)
