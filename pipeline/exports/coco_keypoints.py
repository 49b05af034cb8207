"""COCO's JSON document of keypoints, as person_keypoints."""

from __future__ import annotations

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing
from prelabel.schemas.coco import write_keypoints
from prelabel.schemas.errors import UserError


class CocoKeypoints(Exporter):
    """One document; image ids are the job's, `file_name` is the image's key."""

    def write(self, dataset: Labels, to: str) -> ExportSummary:
        """Writes the images that could be read, with those of their annotations that have keypoints."""
        if "detect_keypoints" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no keypoints: label with --task detect_keypoints")
        info = document_info(dataset)
        with writing(to) as out:
            images, annotations = write_keypoints(
                out, dataset.batches("images"), dataset.batches("annotations"), dataset.categories, info
            )
        return ExportSummary(to, images, annotations)
