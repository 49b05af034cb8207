"""AP and AR of boxes, masks, keypoints and proposals, as pycocotools has them."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from numbers import Real
from typing import Any

import numpy as np
import orjson
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.truth import Truth
from prelabel.schemas.coco import write_results
from prelabel.schemas.errors import UserError
from prelabel.schemas.tables import ROWS_PER_IMAGE

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
PROPOSALS = (100, 300, 1000)
"""The best so many of an image are measured."""
KEYPOINTS = 17
"""COCO knows how exactly people place these, and no others."""

Objects = list[dict[str, Any]]
logger = logging.getLogger("prelabel")


def measure_objects(dataset: LabelDataset, truth: Truth) -> dict[str, dict[str, float]]:
    """What the job has of boxes, masks, keypoints and proposals, against a COCO instances or keypoints document.

    Raises:
        UserError: the job has none of them, or the truth has masks or keypoints that are none.
    """
    tables = dataset.record.tables
    if not {"annotations", "proposals"} & set(tables):
        raise UserError(f"{dataset.url} has no objects and no proposals: --truth must be a COCO panoptic document")
    figures: dict[str, dict[str, float]] = {}
    with redirect_stdout(io.StringIO()):
        if "annotations" in tables:
            figures |= _measure_annotations(dataset, truth)
        if "proposals" in tables:
            figures["proposals"] = _measure_proposals(dataset, truth)
    return figures


def _measure_annotations(dataset: LabelDataset, truth: Truth) -> dict[str, dict[str, float]]:
    results = _results(dataset, truth)
    annotations = truth.document["annotations"]
    expected = _indexed(truth, annotations)
    figures = {"boxes": _measure(expected, _without(results, "segmentation"), "bbox", truth)}
    if all(item.get("segmentation") for item in results + annotations):
        _encode_masks(expected, truth)
        # A result with a box gets the box's area, which sorts masks into the wrong sizes.
        figures["masks"] = _measure(expected, _without(results, "bbox"), "segm", truth)
    if "detect_keypoints" in dataset.record.tasks and any("keypoints" in item for item in annotations):
        figures |= _measure_keypoints(results, truth)
    return figures


def _results(dataset: LabelDataset, truth: Truth) -> Objects:
    """All annotations as COCO's results, by the truth's ids."""
    document = io.BytesIO()
    write_results(document, dataset.batches("annotations"))
    return [
        result | {"image_id": truth.images[image_id], "category_id": truth.categories[category_id]}
        for result in orjson.loads(document.getvalue())
        if (image_id := result["image_id"]) in truth.images
        and (category_id := result["category_id"]) in truth.categories
    ]


def _without(results: Objects, left_out: str) -> Objects:
    return [{key: value for key, value in result.items() if key != left_out} for result in results]


def _indexed(truth: Truth, annotations: Objects) -> COCO:
    expected = COCO()
    expected.dataset = truth.document | {"annotations": annotations}
    expected.createIndex()
    return expected


def _encode_masks(expected: COCO, truth: Truth) -> None:
    """Does what COCOeval would do with the segmentations, and says which of them can't be one."""
    for annotation in expected.loadAnns(expected.getAnnIds(imgIds=list(truth.images.values()))):
        try:
            annotation["segmentation"] = expected.annToRLE(annotation)
        except Exception as error:  # whatever pycocotools stumbles over
            raise UserError(f"--truth {truth.url}: annotation {annotation['id']} has no valid segmentation") from error


def _measure(expected: COCO, found: Objects, kind: str, truth: Truth) -> dict[str, float]:
    evaluation = _evaluate(expected, found, kind, imgIds=sorted(truth.images.values()))
    evaluation.summarize()
    names = KEYPOINT_METRICS if kind == "keypoints" else METRICS
    return {name: float(value) for name, value in zip(names, evaluation.stats, strict=False)}


def _evaluate(expected: COCO, found: Objects, kind: str, **params: Any) -> COCOeval:
    # loadRes can't take an empty list
    evaluation = COCOeval(expected, expected.loadRes(found) if found else COCO(), kind)
    vars(evaluation.params).update(params)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _measure_keypoints(results: Objects, truth: Truth) -> dict[str, dict[str, float]]:
    """Of the categories whose annotations have keypoints; nothing where they are not COCO's 17."""
    found = [result for result in results if "keypoints" in result]
    expected = _with_keypoints(truth)
    counts = {len(item["keypoints"]) for item in found + expected}
    if counts != {3 * KEYPOINTS}:
        logger.warning("keypoints are not measured: COCO's measure is for %s points an object", KEYPOINTS)
        return {}
    found = _without(_without(found, "bbox"), "segmentation")  # else loadRes takes these for the object's size
    return {"keypoints": _measure(_indexed(truth, expected), found, "keypoints", truth)}


def _with_keypoints(truth: Truth) -> Objects:
    """The truth's annotations of categories that have keypoints; those without count neither for nor against."""
    annotations = truth.document["annotations"]
    for item in annotations:
        points = item.get("keypoints", [])
        valid = isinstance(points, list) and len(points) % 3 == 0 and all(isinstance(value, Real) for value in points)
        if not valid or ("keypoints" in item and not isinstance(item.get("num_keypoints"), int)):
            raise UserError(
                f"--truth {truth.url}: annotation {item['id']} has no valid keypoints: give x, y and visibility of "
                "each, and num_keypoints"
            )
    categories = {item["category_id"] for item in annotations if item.get("keypoints")}
    none = {"keypoints": [0] * 3 * KEYPOINTS, "num_keypoints": 0}
    return [item if item.get("keypoints") else item | none for item in annotations if item["category_id"] in categories]


def _measure_proposals(dataset: LabelDataset, truth: Truth) -> dict[str, float]:
    """AR of the best 100, 300 and 1,000 of each image, and of the 1,000 by size of object; categories are ignored."""
    expected = _indexed(truth, truth.document["annotations"])
    category_ids = expected.getCatIds()
    found = _proposals(dataset, truth, category_ids[0]) if category_ids else []
    images = sorted(truth.images.values())
    evaluation = _evaluate(expected, found, "bbox", imgIds=images, useCats=0, maxDets=list(PROPOSALS))
    recall = evaluation.eval["recall"][:, 0]  # IoU thresholds x areas x numbers
    figures = {f"AR{most}": _mean(recall[:, 0, k]) for k, most in enumerate(PROPOSALS)}
    return figures | {f"AR_{size}": _mean(recall[:, k, -1]) for k, size in enumerate(("small", "medium", "large"), 1)}


def _proposals(dataset: LabelDataset, truth: Truth, category_id: int) -> Objects:
    """As COCO's results; COCOeval sees none without a category of the truth's, even where categories are ignored."""
    found: Objects = []
    for batch in dataset.batches("proposals", ["proposal_id", "image_id", "score", "bbox"]):
        ranks = batch["proposal_id"].to_numpy() % ROWS_PER_IMAGE
        best = batch.filter(ranks < PROPOSALS[-1])
        boxes = np.stack([side.to_numpy() for side in best["bbox"].flatten()], axis=1).tolist()
        found += [
            {"image_id": truth.images[image_id], "category_id": category_id, "bbox": box, "score": score}
            for image_id, score, box in zip(best["image_id"].to_pylist(), best["score"].to_pylist(), boxes, strict=True)
            if image_id in truth.images
        ]
    return found


def _mean(values: np.ndarray) -> float:
    """Of those that count, as COCOeval does; -1 where none does."""
    counted = values[values > -1]
    return float(counted.mean()) if len(counted) else -1.0
