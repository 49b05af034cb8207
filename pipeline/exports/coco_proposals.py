"""COCO's list of results, of proposals: class-agnostic boxes with objectness."""

from __future__ import annotations

from prelabel.pipeline.exports.base import Exporter, ExportSummary
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing
from prelabel.schemas.coco import write_proposals


class CocoProposals(Exporter):
    """image_id, bbox and score of each, for evaluation with `useCats = 0`.

    All have the job's lowest category_id, or 1: pycocotools passes over results of a category that is not the truth's.
    """

    suffix = ".json"
    tables = ("proposals",)

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All proposals; a list has no place for images, so they are never copied."""
        category_id = min(dataset.categories.ids, default=1)
        with writing(to) as out:
            proposals = write_proposals(out, dataset.batches("proposals", ["image_id", "bbox", "score"]), category_id)
        found = sum(batch["status"].to_pylist().count("ok") for batch in dataset.batches("images", ["status"]))
        return ExportSummary(to, found, proposals)
