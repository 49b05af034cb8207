"""COCO's JSON document of keypoints, as person_keypoints."""

from __future__ import annotations

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing
from prelabel.schemas.coco import write_keypoints
from prelabel.schemas.errors import UserError


class CocoKeypoints(Exporter):
    """One document of the images that could be read, with those annotations that have keypoints; ids are the job's."""

    suffix = ".json"

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """`file_name` is the image's key, or the name of its copy."""
        if "detect_keypoints" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no keypoints: label with --task detect_keypoints")
        info = document_info(dataset)
        with writing(to) as out, images.beside(to) as named:
            found = named(dataset.batches("images"))
            counts = write_keypoints(out, found, dataset.batches("annotations"), dataset.categories, info)
        return ExportSummary(to, *counts)
