"""Average precision and recall as COCO has them (Lin et al. 2014): pycocotools' numbers, by faster-coco-eval."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from prelabel.pipeline.evaluate.figures import Metrics
from prelabel.pipeline.evaluate.truth import Truth

SIZES = ("small", "medium", "large")
"""COCO's: areas up to 32 x 32 and 96 x 96 pixels, and above."""

Objects = list[dict[str, Any]]


class Cut(NamedTuple):
    """A part of COCO's results, whose mean is a metric.

    Attributes:
        of: "precision" or "recall"
        iou: at this threshold; None: at all of them
        size: of objects
        most: with so many of an image, as the place in `maxDets`
    """

    of: str
    iou: float | None = None
    size: str = "all"
    most: int = -1


def _of_sizes(cuts: dict[str, Cut], sizes: tuple[str, ...]) -> dict[str, Cut]:
    return {f"{name}_{size}": cut._replace(size=size) for size in sizes for name, cut in cuts.items()}


_AP = {"AP": Cut("precision")}
_APS = _AP | {"AP50": Cut("precision", 0.5), "AP75": Cut("precision", 0.75)}
_AR = {"AR": Cut("recall")}
_ARS = {f"AR{most}": Cut("recall", most=place) for place, most in enumerate((1, 10, 100))}
_BY_CATEGORY = _APS | {"AR100": _ARS["AR100"]}
_KEYPOINTS_BY_CATEGORY = _APS | _AR
METRICS = _APS | _of_sizes(_AP, SIZES) | _ARS
KEYPOINT_METRICS = (
    _APS
    | _of_sizes(_AP, SIZES[1:])
    | _AR
    | {"AR50": Cut("recall", 0.5), "AR75": Cut("recall", 0.75)}
    | _of_sizes(_AR, SIZES[1:])
)
CATEGORY_METRICS = _BY_CATEGORY | _of_sizes(_BY_CATEGORY, SIZES)
KEYPOINT_CATEGORY_METRICS = _KEYPOINTS_BY_CATEGORY | _of_sizes(_KEYPOINTS_BY_CATEGORY, SIZES[1:])
PROPOSALS = (100, 300, 1000)
"""The best so many of an image are measured."""
PROPOSAL_METRICS = {f"AR{most}": Cut("recall", most=place) for place, most in enumerate(PROPOSALS)} | _of_sizes(
    _AR, SIZES
)


def measure(expected: Objects, found: Objects, kind: str, truth: Truth) -> tuple[Metrics, dict[str, Metrics]]:
    """The metrics of all categories, and those of each that the truth has or that was found, by name.

    Args:
        expected: COCO's annotations, ids from 1
        found: COCO's results; without "bbox" for masks or keypoints, which would take their area from the box
        kind: "bbox", "segm" or "keypoints"
        truth: what the ids mean
    """
    results = _evaluate(expected, found, kind, truth)
    of_all, of_each = (
        (KEYPOINT_METRICS, KEYPOINT_CATEGORY_METRICS) if kind == "keypoints" else (METRICS, CATEGORY_METRICS)
    )
    there = {item["category_id"] for item in expected + found}
    figures = {name: _mean(results, cut) for name, cut in of_all.items()}
    return figures, {
        truth.names[category_id]: {name: _mean(results, cut, place) for name, cut in of_each.items()}
        for place, category_id in enumerate(results.params.catIds)
        if category_id in there
    }


def measure_proposals(expected: Objects, found: Objects, truth: Truth) -> Metrics:
    """AR of the best 100, 300 and 1,000 of each image, and of the 1,000 by size of object; categories are ignored."""
    results = _evaluate(expected, found, "bbox", truth, useCats=0, maxDets=list(PROPOSALS))
    return {name: _mean(results, cut) for name, cut in PROPOSAL_METRICS.items()}


def _evaluate(expected: Objects, found: Objects, kind: str, truth: Truth, **params: Any) -> COCOeval_faster:
    document = COCO({key: truth.document[key] for key in ("images", "categories")} | {"annotations": expected})
    results = COCOeval_faster(document, document.loadRes(found), kind)
    vars(results.params).update(imgIds=sorted(truth.images.values()), catIds=sorted(truth.names), **params)
    with np.errstate(over="ignore"):  # keypoints of an object without an area
        results.evaluate()
    results.accumulate()
    return results


def _mean(results: COCOeval_faster, cut: Cut, category: int | None = None) -> float:
    """Of the values that count; -1 where none does."""
    params = results.params
    values = results.eval[cut.of]  # IoU thresholds x (recalls x) categories x sizes x numbers
    values = values[..., params.areaRngLbl.index(cut.size), cut.most]
    if cut.iou is not None:
        values = values[np.isclose(params.iouThrs, cut.iou)]
    if category is not None:
        values = values[..., category]
    counted = values[values > -1]
    return float(counted.mean()) if len(counted) else -1.0
