"""Which object of one job is which of another's, in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

Row = dict[str, Any]

_PAIRS_AT_ONCE = 2**20
"""Of so many at most the boxes are compared together, however many objects an image has."""


@dataclass(frozen=True)
class Objects:
    """One image's objects, or segments, in one job.

    Attributes:
        categories: their names, object (N,)
        scores: float64 (N,), NaN where there is none
        boxes: float64 (N, 4), x0 y0 x1 y1 in pixels of the upright image
        masks: COCO's compressed RLE, or None, object (N,)
        extents: float64 (N, 4), the tight boxes of the masks, as `boxes`; NaN where there is none
        areas: float64 (N,), the pixels of the masks; NaN where there is none
    """

    categories: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    extents: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row], names: Sequence[str]) -> Objects:
        """The objects in rows of the tables: score, bbox and segmentation of each, and the category's name."""
        count = len(rows)
        categories, masks = np.array(names, object), np.array([row["segmentation"] for row in rows], object)
        bboxes = [(box["x"], box["y"], box["width"], box["height"]) for box in (row["bbox"] for row in rows)]
        extents, areas = np.full((count, 4), np.nan), np.full(count, np.nan)
        there = np.flatnonzero([mask is not None for mask in masks])
        if len(there):
            given = masks[there].tolist()
            extents[there], areas[there] = _corners(coco_mask.toBbox(given)), coco_mask.area(given)
        scores = np.array([row["score"] for row in rows], np.float64)
        return cls(categories, scores, _corners(np.array(bboxes, np.float64).reshape(-1, 4)), masks, extents, areas)

    def __len__(self) -> int:
        return len(self.categories)


class Pair(NamedTuple):
    """An object before, the same object after, both by their places in the image, and their IoU, up to 1."""

    before: int
    after: int
    iou: float


def match(before: Objects, after: Objects, threshold: float) -> list[Pair]:
    """Pairs objects one to one: those of the same category first, then those of different ones.

    Greedy: the pair of the highest IoU is taken, then the highest of what is left. IoU is that of the masks where both
    have one with pixels in either, else that of the boxes; masks of images of different sizes have nothing in common.
    The same pairs come out when the two are swapped.

    Args:
        before, after: the objects of one image, by rank
        threshold: the lowest IoU of a pair, above 0
    """
    rows, columns, ious = _overlapping(before, after, threshold)
    differ = (before.categories[rows] != after.categories[columns]).astype(bool)
    # Of equal IoUs, the highest ranks first. Pairs of an equal sum of ranks have no object in common: no order matters.
    order = np.lexsort((rows + columns, -ious, differ))
    taken_before, taken_after = set[int](), set[int]()
    pairs = []
    for i, j, iou in zip(rows[order].tolist(), columns[order].tolist(), ious[order].tolist(), strict=True):
        if i not in taken_before and j not in taken_after:
            taken_before.add(i)
            taken_after.add(j)
            pairs.append(Pair(i, j, iou))
    return pairs


def _overlapping(before: Objects, after: Objects, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs whose IoU is not below the threshold: places before, places after, IoUs."""
    found = [np.empty((3, 0))]
    step = max(1, _PAIRS_AT_ONCE // max(1, len(after)))
    for start in range(0, len(before), step):
        ious = _ious(before, after, slice(start, start + step), threshold)
        rows, columns = np.nonzero(ious >= threshold)
        found.append(np.stack([rows + start, columns, ious[rows, columns]]))
    rows, columns, ious = np.concatenate(found, axis=1)
    return rows.astype(int), columns.astype(int), ious


def _ious(before: Objects, after: Objects, some: slice, threshold: float) -> np.ndarray:
    """(N, M), of some of the objects before with all after; what is below the threshold may be any such number."""
    ious = _box_ious(before.boxes[some], after.boxes)
    masks, areas = before.masks[some], before.areas[some, None] + after.areas
    masked = areas > 0
    if masked.any():
        ious = np.where(masked, _most_mask_ious(before, after, some), ious)
    rows, columns = np.nonzero(masked & (ious >= threshold))  # only these are compared run by run
    if len(rows):
        pairs = zip(masks[rows], after.masks[columns], strict=True)
        shared = coco_mask.area([coco_mask.merge(pair, intersect=True) for pair in pairs]).astype(float)
        ious[rows, columns] = shared / (areas[rows, columns] - shared)
    return ious


def _box_ious(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N, M), of boxes x0 y0 x1 y1; 1 for two boxes without area that are the same."""
    shared = _shared(before, after)
    union = (before[:, 2:] - before[:, :2]).prod(1)[:, None] + (after[:, 2:] - after[:, :2]).prod(1) - shared
    same = (before[:, None] == after).all(2).astype(float)
    return np.divide(shared, union, out=same, where=union > 0)


def _most_mask_ious(before: Objects, after: Objects, some: slice) -> np.ndarray:
    """(N, M): what the IoUs of masks are at most, by their areas and tight boxes; whatever where there is no mask."""
    areas = before.areas[some, None]
    shared = np.minimum(_shared(before.extents[some], after.extents), np.minimum(areas, after.areas))
    union = areas + after.areas - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _shared(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N, M): the area that two boxes have in common."""
    sides = np.minimum(before[:, None, 2:], after[:, 2:]) - np.maximum(before[:, None, :2], after[:, :2])
    return np.maximum(sides, 0).prod(axis=2)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
