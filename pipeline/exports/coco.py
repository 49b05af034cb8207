"""COCO's JSON documents: instances (images, annotations, categories) and results (what pycocotools' loadRes takes)."""

from __future__ import annotations

from prelabel.pipeline.exports.base import Exporter, ExportSummary, document_info
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing
from prelabel.schemas.coco import write_instances, write_results


class CocoInstances(Exporter):
    """One instances document of the images that could be read, with all of their annotations; ids are the job's."""

    suffix = ".json"

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """`file_name` is the image's key, or the name of its copy."""
        info = document_info(dataset)
        with writing(to) as out, images.beside(to) as named:
            found = named(dataset.batches("images"))
            counts = write_instances(out, found, dataset.batches("annotations"), dataset.categories, info)
        return ExportSummary(to, *counts)


class CocoResults(Exporter):
    """A list of results: image_id, category_id, bbox, score, segmentation and keypoints where there are any."""

    suffix = ".json"

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All annotations; a list has no place for images, so they are never copied."""
        with writing(to) as out:
            annotations = write_results(out, dataset.batches("annotations"))
        found = sum(batch["status"].to_pylist().count("ok") for batch in dataset.batches("images", ["status"]))
        return ExportSummary(to, found, annotations)
