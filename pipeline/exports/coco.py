"""COCO's JSON documents: instances (images, annotations, categories) and results (what pycocotools' loadRes takes)."""

from __future__ import annotations

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing
from prelabel.schemas.coco import write_instances, write_results
from prelabel.schemas.errors import UserError


class CocoInstances(Exporter):
    """One instances document; image ids are the job's, `file_name` is the image's key."""

    def write(self, dataset: Labels, to: str) -> ExportSummary:
        """Writes the images that could be read, with all of their annotations."""
        _check_objects(dataset)
        info = document_info(dataset)
        with writing(to) as out:
            images, annotations = write_instances(
                out, dataset.batches("images"), dataset.batches("annotations"), dataset.categories, info
            )
        return ExportSummary(to, images, annotations)


class CocoResults(Exporter):
    """A list of results: image_id, category_id, bbox, score, segmentation and keypoints where there are any."""

    def write(self, dataset: Labels, to: str) -> ExportSummary:
        """Writes all annotations."""
        _check_objects(dataset)
        with writing(to) as out:
            annotations = write_results(out, dataset.batches("annotations"))
        images = sum(batch["status"].to_pylist().count("ok") for batch in dataset.batches("images", ["status"]))
        return ExportSummary(to, images, annotations)


def _check_objects(dataset: Labels) -> None:
    if "annotations" not in dataset.record.tables:
        raise UserError(f"{dataset.url} has no objects: label with --task detect")
