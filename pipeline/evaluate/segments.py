"""Panoptic and semantic segments against a COCO panoptic document and its PNGs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.figures import Evaluation, Metrics, Tables
from prelabel.pipeline.evaluate.overlaps import check_segments, count_overlaps, read_png
from prelabel.pipeline.evaluate.panoptic import PanopticTally
from prelabel.pipeline.evaluate.semantic import PixelTally
from prelabel.pipeline.evaluate.truth import Truth
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

Rows = list[dict[str, Any]]
Tallies = dict[str, dict[str, PanopticTally | PixelTally]]
"""Kind of segments -> what is measured of them -> its tally."""


def measure_segments(dataset: LabelDataset, truth: Truth) -> Evaluation:
    """Panoptic quality, and mean IoU: of semantic segments, or of panoptic ones by category where there are no others.

    Raises:
        UserError: the job has neither, or a PNG of the truth is missing or does not fit.
    """
    tallies = _tallies(dataset, truth)
    annotations = {annotation["image_id"]: annotation for annotation in truth.document["annotations"]}
    for image_id, rows in _images(dataset, truth):
        size = rows[0]["segmentation"]["size"] if rows else truth.sizes[image_id]
        _count(tallies, rows, annotations[image_id], size, truth)
    figures: dict[str, Metrics] = {}
    by_category: Tables = {}
    for of_kind in tallies.values():
        for name, tally in of_kind.items():
            figures[name], by_category[name] = tally.figures(truth.names)
    return Evaluation(figures, truth.matched, by_category, None)


def _tallies(dataset: LabelDataset, truth: Truth) -> Tallies:
    tasks = dataset.record.tasks
    if not {"fuse_panoptic", "segment_semantic"} & set(tasks):
        raise UserError(f"{dataset.url} has no panoptic segments: label with --task fuse_panoptic or segment_semantic")
    things = {entry["id"] for entry in truth.document["categories"] if entry["isthing"]}
    tallies: Tallies = {"panoptic": {"panoptic": PanopticTally(things)}} if "fuse_panoptic" in tasks else {}
    tallies.setdefault("semantic" if "segment_semantic" in tasks else "panoptic", {})["semantic"] = PixelTally()
    return tallies


def _images(dataset: LabelDataset, truth: Truth) -> Iterator[tuple[int, Rows]]:
    """The truth's id and our segments of each image; at the end the images that have none."""
    columns = ["image_id", "category_id", "segmentation", "kind"]
    rows = (row for batch in truth.batches(dataset, "segments", columns) for row in batch.to_pylist())
    empty = dict(truth.images)
    for image_id, segments in groupby(rows, key=itemgetter("image_id")):
        yield empty.pop(image_id), list(segments)
    yield from ((image_id, []) for image_id in empty.values())


def _count(tallies: Tallies, rows: Rows, annotation: dict[str, Any], size: tuple[int, int], truth: Truth) -> None:
    colors = read_png(truth, annotation, size)
    for kind, of_kind in tallies.items():
        found = [row for row in rows if row["kind"] == kind]
        overlaps = count_overlaps(colors, [Rle(**row["segmentation"]) for row in found])
        check_segments(overlaps, annotation, truth)
        categories = [truth.categories.get(row["category_id"]) for row in found]
        for tally in of_kind.values():
            tally.add(overlaps, annotation["segments_info"], categories)
