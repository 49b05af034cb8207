"""Which found object is which of the truth's, at an IoU of 0.5."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from prelabel.pipeline.evaluate.average_precision import Objects

PARTNER_IOU = 0.5
_LARGEST_AREA = 1e5**2
"""COCO leaves larger objects out, and such of a negative area."""
_PAIRS_AT_ONCE = 2**20
"""Of so many at most IoUs are held, however many objects an image has."""


@dataclass(frozen=True)
class Pairs:
    """Objects that overlap by `PARTNER_IOU` or more: places (P,) among the found and the truth's, IoUs (P,)."""

    found: np.ndarray
    truth: np.ndarray
    ious: np.ndarray

    def where(self, some: np.ndarray) -> Pairs:
        """Some of them; bool (P,)."""
        return Pairs(self.found[some], self.truth[some], self.ious[some])


class Matching:
    """Partners, taken greedily by falling score, as COCO's evaluation does at one threshold, but of all objects found.

    An object takes the free one of the truth, of its own category, that it overlaps most. Where there is none, it may
    lie in one that does not count (a crowd, which takes all that lie in it): then it does not count, either.

    Attributes:
        scores: of the found, float64 (N,), exactly as the tables have them
        found, truth: category ids, int64 (N,) and (M,)
        ignored: which of the truth do not count: crowds, and areas that COCO leaves out; bool (M,)
        partners: for each found object the place of its partner in the truth, or -1; int64 (N,)
    """

    def __init__(self, expected: Objects, found: Objects, shape: str) -> None:
        self.scores = np.array([one["score"] for one in found], np.float32).astype(np.float64)
        self.found = np.array([one["category_id"] for one in found], np.int64)
        self.truth = np.array([one["category_id"] for one in expected], np.int64)
        areas = np.array([one["area"] for one in expected], np.float64)
        self._crowd = np.array([one["iscrowd"] for one in expected], bool)
        self.ignored = self._crowd | (areas < 0) | (areas > _LARGEST_AREA)
        self._pairs = _overlapping(expected, found, shape)
        same = self.found[self._pairs.found] == self.truth[self._pairs.truth]
        self.partners = self._assign(self._pairs.where(same))

    @property
    def counts(self) -> np.ndarray:
        """Which of the found count: bool (N,)."""
        return ~np.append(self.ignored, False)[self.partners]

    @property
    def right(self) -> np.ndarray:
        """Which of the found have a partner that counts: bool (N,)."""
        return (self.partners >= 0) & self.counts

    def across_categories(self, score: float) -> tuple[np.ndarray, np.ndarray]:
        """Partners of any category, among those found with `score` or more; of its own category where there is one.

        Returns:
            places in the found and in the truth, int64 (K,): each that counts is in one pair, without a partner as -1
        """
        kept = self.counts & (self.scores >= score)
        partners = np.where(kept, self.partners, -1)
        free = ~self.ignored
        free[partners[partners >= 0]] = False
        open_pairs = (kept & (partners < 0))[self._pairs.found] & free[self._pairs.truth]
        others = self._assign(self._pairs.where(open_pairs))
        partners = np.where(others >= 0, others, partners)
        free[partners[partners >= 0]] = False
        found, missed = np.flatnonzero(kept), np.flatnonzero(free)
        return np.append(found, np.full(len(missed), -1)), np.append(partners[found], missed)

    def _assign(self, pairs: Pairs) -> np.ndarray:
        """Of equal IoUs, the truth's last object is taken, as COCO does."""
        ranks = np.empty(len(self.scores), np.int64)
        ranks[np.argsort(-self.scores, kind="stable")] = np.arange(len(ranks))
        order = np.lexsort((-pairs.truth, -pairs.ious, self.ignored[pairs.truth], ranks[pairs.found]))
        partners, taken, crowd = [-1] * len(self.scores), [False] * len(self.truth), self._crowd.tolist()
        for found, truth in zip(pairs.found[order].tolist(), pairs.truth[order].tolist(), strict=True):
            if partners[found] < 0 and not taken[truth]:
                partners[found], taken[truth] = truth, not crowd[truth]
        return np.array(partners, np.int64)


def _overlapping(expected: Objects, found: Objects, shape: str) -> Pairs:
    """Objects of one image, of whatever category; `shape` is "bbox" or "segmentation"."""
    pairs = [np.empty((3, 0))]
    for ours, theirs in _images(expected, found):
        shapes = [expected[place][shape] for place in theirs]
        crowd = [int(expected[place]["iscrowd"]) for place in theirs]
        step = max(1, _PAIRS_AT_ONCE // len(theirs))
        for some in (ours[start : start + step] for start in range(0, len(ours), step)):
            ious = np.asarray(coco_mask.iou([found[place][shape] for place in some], shapes, crowd))
            rows, columns = np.nonzero(ious >= PARTNER_IOU)
            pairs.append(np.stack([np.array(some)[rows], np.array(theirs)[columns], ious[rows, columns]]))
    places, others, ious = np.concatenate(pairs, axis=1)
    return Pairs(places.astype(np.int64), others.astype(np.int64), ious)


def _images(expected: Objects, found: Objects) -> Iterator[tuple[list[int], list[int]]]:
    """The places of the found and of the truth's objects in each image that has both."""
    places: tuple[dict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
    for objects, by_image in zip((found, expected), places, strict=True):
        for place, one in enumerate(objects):
            by_image[one["image_id"]].append(place)
    for image_id, ours in places[0].items():
        if image_id in places[1]:
            yield ours, places[1][image_id]
