"""COCO's list of results, of proposals: class-agnostic boxes with objectness."""

from __future__ import annotations

from prelabel.pipeline.exports.base import Exporter, ExportSummary
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing
from prelabel.schemas.coco import write_proposals


class CocoProposals(Exporter):
    """image_id, bbox and score of each; category_id is 1, for pycocotools evaluates them with `useCats = 0`."""

    suffix = ".json"
    tables = ("proposals",)

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All proposals; a list has no place for images, so they are never copied."""
        with writing(to) as out:
            proposals = write_proposals(out, dataset.batches("proposals", ["image_id", "bbox", "score"]))
        found = sum(batch["status"].to_pylist().count("ok") for batch in dataset.batches("images", ["status"]))
        return ExportSummary(to, found, proposals)
