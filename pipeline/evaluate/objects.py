"""Boxes, masks, keypoints and proposals against a COCO instances or keypoints document."""

from __future__ import annotations

import io
import logging
from numbers import Real
from typing import Any

import numpy as np
import orjson
from pycocotools import mask as coco_mask

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.average_precision import PROPOSALS, Objects, measure, measure_proposals
from prelabel.pipeline.evaluate.detections import judge
from prelabel.pipeline.evaluate.figures import Evaluation, Metrics, Tables
from prelabel.pipeline.evaluate.truth import Truth
from prelabel.schemas.coco import write_results
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle
from prelabel.schemas.tables import ROWS_PER_IMAGE

KEYPOINTS = 17
"""COCO knows how exactly people place these, and no others."""
_FARTHEST = 1e6
"""Pixels from the corner to a point of a polygon; following its outline takes as many turns."""

logger = logging.getLogger("prelabel")


def measure_objects(dataset: LabelDataset, truth: Truth, confusion_score: float | None) -> Evaluation:
    """What the job has of boxes, masks, keypoints and proposals.

    Raises:
        UserError: the job has none of them, or the truth has masks or keypoints that are none.
    """
    tables = dataset.record.tables
    if not {"annotations", "proposals"} & set(tables):
        raise UserError(f"{dataset.url} has no objects and no proposals: --truth must be a COCO panoptic document")
    figures: dict[str, Metrics] = {}
    by_category: Tables = {}
    detections = None
    expected = annotations_of(truth)
    if "annotations" in tables:
        found = results_of(dataset, truth)
        kinds = _kinds(dataset, expected, found, truth)
        for name, (iou_type, theirs, ours) in kinds.items():
            figures[name], by_category[name] = measure(theirs, ours, iou_type, truth)
        matched_by = "masks" if "masks" in kinds else "boxes"
        _, theirs, ours = kinds[matched_by]
        detections = judge(theirs, ours, matched_by, truth.names, confusion_score)
    if "proposals" in tables:
        figures["proposals"] = measure_proposals(expected, _proposals(dataset, truth), truth)
    return Evaluation(figures, truth.matched, by_category, detections)


def annotations_of(truth: Truth) -> Objects:
    """The truth's in the images that were labeled; numbered from 1, for an id of 0 would be no match to COCO's code."""
    images = set(truth.images.values())
    annotations = [
        item
        for item in truth.document["annotations"]
        if item["image_id"] in images and item["category_id"] in truth.names
    ]
    return [
        item | {"id": number, "id_in_truth": item["id"], "iscrowd": int(item["iscrowd"] != 0)}
        for number, item in enumerate(annotations, start=1)
    ]


def results_of(dataset: LabelDataset, truth: Truth) -> Objects:
    """The annotations of images and categories that the truth has as COCO's results, by the truth's ids."""
    document = io.BytesIO()
    write_results(document, truth.batches(dataset, "annotations"))
    return [
        result | {"image_id": truth.images[result["image_id"]], "category_id": truth.categories[category_id]}
        for result in orjson.loads(document.getvalue())
        if (category_id := result["category_id"]) in truth.categories
    ]


def _kinds(
    dataset: LabelDataset, expected: Objects, found: Objects, truth: Truth
) -> dict[str, tuple[str, Objects, Objects]]:
    """What can be measured: its name in COCO's evaluation, the truth's objects and ours."""
    kinds = {"boxes": ("bbox", expected, _without(found, "segmentation"))}
    if "segment_instances" in dataset.record.tasks and any(item.get("segmentation") for item in expected):
        kinds |= _masks(expected, found, truth)
    if "detect_keypoints" in dataset.record.tasks and any("keypoints" in item for item in expected):
        kinds |= _keypoints(expected, found, truth)
    return kinds


def _masks(expected: Objects, found: Objects, truth: Truth) -> dict[str, tuple[str, Objects, Objects]]:
    """Of all objects; nothing where some have none."""
    if without := sum(not item.get("segmentation") for item in expected + found):
        logger.warning("masks are not measured: %s of %s objects have none", without, len(expected + found))
        return {}
    masks = [item | {"segmentation": _mask(item, truth)} for item in expected]
    # A result with a box gets the box's area, which sorts masks into the wrong sizes.
    return {"masks": ("segm", masks, _without(found, "bbox"))}


def _without(results: Objects, *left_out: str) -> Objects:
    return [{key: value for key, value in result.items() if key not in left_out} for result in results]


def _mask(annotation: dict[str, Any], truth: Truth) -> dict[str, Any]:
    """COCO's compressed RLE of an annotation's polygons or runs."""
    height, width = truth.sizes[annotation["image_id"]]
    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, dict):
            return Rle.from_coco(segmentation).to_coco()
        if max((abs(value) for polygon in segmentation for value in polygon), default=0) > _FARTHEST:
            raise ValueError("too far")
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    except Exception as error:  # whatever pycocotools stumbles over
        raise UserError(
            f"--truth {truth.url}: annotation {annotation['id_in_truth']} has no valid segmentation"
        ) from error


def _keypoints(expected: Objects, found: Objects, truth: Truth) -> dict[str, tuple[str, Objects, Objects]]:
    """Of the categories whose annotations have keypoints; nothing where they are not COCO's 17."""
    posed = [result for result in found if "keypoints" in result]
    expected = _with_keypoints(expected, truth)
    if {len(item["keypoints"]) for item in posed + expected} != {3 * KEYPOINTS}:
        logger.warning("keypoints are not measured: COCO's measure is for %s points an object", KEYPOINTS)
        return {}
    # With a box or a mask, these would be taken for the object's size.
    return {"keypoints": ("keypoints", expected, _without(posed, "bbox", "segmentation"))}


def _with_keypoints(expected: Objects, truth: Truth) -> Objects:
    """The truth's annotations of categories that have keypoints; those without count neither for nor against."""
    for item in expected:
        points = item.get("keypoints", [])
        valid = isinstance(points, list) and len(points) % 3 == 0 and all(isinstance(value, Real) for value in points)
        if not valid or ("keypoints" in item and not isinstance(item.get("num_keypoints"), int)):
            raise UserError(
                f"--truth {truth.url}: annotation {item['id_in_truth']} has no valid keypoints: give x, y and "
                "visibility of each, and num_keypoints"
            )
    categories = {item["category_id"] for item in expected if item.get("keypoints")}
    none = {"keypoints": [0] * 3 * KEYPOINTS, "num_keypoints": 0}
    return [item if item.get("keypoints") else item | none for item in expected if item["category_id"] in categories]


def _proposals(dataset: LabelDataset, truth: Truth) -> Objects:
    """As COCO's results, of one category of the truth's: there must be one even where categories are ignored."""
    category_id = next(iter(truth.names), None)
    found: Objects = []
    for batch in truth.batches(dataset, "proposals", ["proposal_id", "image_id", "score", "bbox"]):
        ranks = batch["proposal_id"].to_numpy() % ROWS_PER_IMAGE
        best = batch.filter(ranks < PROPOSALS[-1])
        boxes = np.stack([side.to_numpy() for side in best["bbox"].flatten()], axis=1).tolist()
        found += [
            {"image_id": truth.images[image_id], "category_id": category_id, "bbox": box, "score": score}
            for image_id, score, box in zip(best["image_id"].to_pylist(), best["score"].to_pylist(), boxes, strict=True)
        ]
    return found
