"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), counted as COCO's panopticapi does."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from prelabel.pipeline.evaluate.figures import Metrics
from prelabel.pipeline.evaluate.overlaps import VOID, Overlaps


class Tally:
    """What was found of one category: matched pairs and the sum of their IoU, and what has no partner."""

    def __init__(self) -> None:
        self.iou = 0.0
        self.matched = self.false_positives = self.false_negatives = 0

    def figures(self) -> Metrics | None:
        """PQ, SQ and RQ, and what they are made of; None where nothing was there and nothing was found."""
        segments = self.matched + 0.5 * self.false_positives + 0.5 * self.false_negatives
        if not segments:
            return None
        return {
            "PQ": self.iou / segments,
            "SQ": self.iou / self.matched if self.matched else 0.0,
            "RQ": self.matched / segments,
            "TP": self.matched,
            "FP": self.false_positives,
            "FN": self.false_negatives,
        }


class PanopticTally:
    """Tallies by category, of all images so far; `things` are the ids of those that are not stuff."""

    def __init__(self, things: Collection[int]) -> None:
        self._things = things
        self._tallies: defaultdict[int, Tally] = defaultdict(Tally)

    def add(self, overlaps: Overlaps, segments: list[dict[str, Any]], categories: Sequence[int | None]) -> None:
        """Adds one image.

        Args:
            overlaps: pixels by the truth's segment and ours; VOID lies in none
            segments: the truth's
            categories: of our segments, which are numbered from 1, by the truth's ids; None: the truth has none such
        """
        theirs, ours = Counter[int](), Counter[int]()
        for (segment_id, number), area in overlaps.items():
            theirs[segment_id] += area
            ours[number] += area
        partners: dict[int, int] = {}
        expected = {segment["id"]: segment["category_id"] for segment in segments if not segment["iscrowd"]}
        for (segment_id, number), area in overlaps.items():
            category = categories[number - 1] if number != VOID else None
            if category is None or expected.get(segment_id) != category:
                continue
            union = theirs[segment_id] + ours[number] - area - overlaps[VOID, number]
            if 2 * area > union:  # so a segment has one partner at most
                self._tallies[category].matched += 1
                self._tallies[category].iou += area / union
                partners[segment_id] = number
        for segment_id, category in expected.items():
            self._tallies[category].false_negatives += segment_id not in partners
        crowds = [(segment["category_id"], segment["id"]) for segment in segments if segment["iscrowd"]]
        for number, found in enumerate(categories, start=1):
            if found is None or number in partners.values() or not ours[number]:
                continue
            ignored = overlaps[VOID, number] + sum(overlaps[crowd, number] for of, crowd in crowds if of == found)
            self._tallies[found].false_positives += 2 * ignored <= ours[number]

    def figures(self, names: dict[int, str]) -> tuple[Metrics, dict[str, Metrics]]:
        """PQ, SQ and RQ, means over the categories; PQ of things and of stuff; -1 where there are none. And of each."""
        each = {one: found for one in names if (found := self._tallies[one].figures())}
        figures = {name: _mean([one[name] for one in each.values()]) for name in ("PQ", "SQ", "RQ")}
        figures["PQ_things"] = _mean([found["PQ"] for one, found in each.items() if one in self._things])
        figures["PQ_stuff"] = _mean([found["PQ"] for one, found in each.items() if one not in self._things])
        return figures, {names[one]: found for one, found in each.items()}


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else -1.0
