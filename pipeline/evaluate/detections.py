"""How far scores can be trusted: calibration, the best thresholds, and which category is taken for which."""

from __future__ import annotations

import numpy as np

from prelabel.pipeline.evaluate.average_precision import Objects
from prelabel.pipeline.evaluate.figures import Bin, Confusion, Detections, ScoreQuality, Threshold
from prelabel.pipeline.evaluate.matching import Matching

BINS = 10
CONFUSION_SCORE = 0.5
"""Where no threshold is the best, for nothing is right."""
BACKGROUND = "background"


def judge(
    expected: Objects, found: Objects, matched_by: str, names: dict[int, str], confusion_score: float | None
) -> Detections:
    """Matches the objects, and counts.

    Args:
        expected: COCO's annotations
        found: COCO's results
        matched_by: "boxes" or "masks"
        names: of the category ids
        confusion_score: what scores lower is left out of the confusion matrix; None: lower than the best threshold
    """
    matching = Matching(expected, found, "segmentation" if matched_by == "masks" else "bbox")
    overall = _quality(matching)
    there = set(matching.found.tolist()) | set(matching.truth.tolist())
    categories = {name: _quality(matching, category_id) for category_id, name in names.items() if category_id in there}
    if confusion_score is None:
        confusion_score = overall.best.score if overall.best else CONFUSION_SCORE
    return Detections(matched_by, overall, categories, _confusion(matching, confusion_score, names))


def _quality(matching: Matching, category_id: int | None = None) -> ScoreQuality:
    """Of a category's objects, or of all."""
    found, truth = matching.counts, ~matching.ignored
    if category_id is not None:
        found, truth = found & (matching.found == category_id), truth & (matching.truth == category_id)
    scores, right = matching.scores[found], matching.right[found]
    counted = int(truth.sum())
    error, bins = calibration(scores, right)
    return ScoreQuality(counted, len(scores), int(right.sum()), error, bins, best_threshold(scores, right, counted))


def calibration(scores: np.ndarray, right: np.ndarray) -> tuple[float, tuple[Bin, ...]]:
    """The expected calibration error, and the bins of the reliability curve (Guo et al. 2017, equations 3 and 5).

    The error is the mean distance, over all objects, between the mean score of an object's bin and its precision.

    Args:
        scores: float (N,), from 0 to 1
        right: which of the objects are, bool (N,)

    Returns:
        the error, -1 for no objects, and `BINS` bins, each without its lower edge
    """
    # In float32, where a score of 0.1 is exactly on the edge.
    places = np.ceil(scores.astype(np.float32) * np.float32(BINS)).astype(int) - 1
    places = places.clip(0, BINS - 1)
    counts, hits, sums = (np.bincount(places, weights, BINS) for weights in (None, right, scores))
    error = float(np.abs(sums - hits).sum() / len(scores)) if len(scores) else -1.0
    return error, tuple(
        Bin(k / BINS, (k + 1) / BINS, int(count), sums[k] / count, hits[k] / count)
        if count
        else Bin(k / BINS, (k + 1) / BINS, 0, -1.0, -1.0)
        for k, count in enumerate(counts.tolist())
    )


def best_threshold(scores: np.ndarray, right: np.ndarray, truth: int) -> Threshold | None:
    """The threshold of the highest F1 = 2 TP / (2 TP + FP + FN), of several the highest; None where nothing is right.

    Args:
        scores: float64 (N,)
        right: which of the objects are true positives, bool (N,)
        truth: how many objects there are to find
    """
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits, kept = np.cumsum(right[order]), np.arange(1, len(scores) + 1)
    scores = scores[order]
    is_last = np.append(scores[1:] != scores[:-1], True)  # equal scores are kept or left out together
    f1 = 2 * hits / (kept + truth)
    best = int(np.argmax(np.where(is_last, f1, -1.0)))
    return Threshold(float(scores[best]), float(hits[best] / kept[best]), float(hits[best] / truth), float(f1[best]))


def _confusion(matching: Matching, score: float, names: dict[int, str]) -> Confusion:
    found, truth = matching.across_categories(score)
    ids = np.unique(np.concatenate([matching.found[found[found >= 0]], matching.truth[truth[truth >= 0]]]))
    size = len(ids) + 1
    rows, columns = _places(ids, matching.truth, truth), _places(ids, matching.found, found)
    cells, counts = np.unique(rows * size + columns, return_counts=True)
    table = zip((cells // size).tolist(), (cells % size).tolist(), counts.tolist(), strict=True)
    return Confusion(score, (*(names[one] for one in ids.tolist()), BACKGROUND), tuple(table))


def _places(ids: np.ndarray, categories: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """In `ids`, of the categories of some objects; after the last where there is none (-1)."""
    return np.where(objects >= 0, np.searchsorted(ids, np.append(categories, 0)[objects]), len(ids))
