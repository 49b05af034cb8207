"""Mean intersection over union of semantic segments, pixel by pixel (Long et al., "Fully Convolutional Networks for
Semantic Segmentation", CVPR 2015, section 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from prelabel.pipeline.evaluate.figures import Metrics
from prelabel.pipeline.evaluate.overlaps import VOID, Overlaps


class PixelTally:
    """Pixels by category, of all images so far.

    Attributes:
        truth: of the truth's segments that count
        found: of those, by what we say they are
        right: of those, where we are right
    """

    def __init__(self) -> None:
        self.truth, self.found, self.right = Counter[int](), Counter[int](), Counter[int]()

    def add(self, overlaps: Overlaps, segments: list[dict[str, Any]], categories: Sequence[int | None]) -> None:
        """Adds one image; pixels that are void in the truth, or in a crowd, are not counted.

        Args:
            overlaps: pixels by the truth's segment and ours
            segments: the truth's
            categories: of our segments, by the truth's ids; None: the truth has none such
        """
        expected = {segment["id"]: segment["category_id"] for segment in segments if not segment["iscrowd"]}
        for (segment_id, number), area in overlaps.items():
            category = expected.get(segment_id)
            if category is None:
                continue
            said = categories[number - 1] if number != VOID else None
            self.truth[category] += area
            if said is not None:
                self.found[said] += area
            if said == category:
                self.right[category] += area

    def figures(self, names: dict[int, str]) -> tuple[Metrics, dict[str, Metrics]]:
        """mIoU, over the categories that are in the truth or were found, and pixel accuracy; and those of each."""
        by_category = {
            name: {
                "IoU": self.right[one] / (self.truth[one] + self.found[one] - self.right[one]),
                "accuracy": self.right[one] / self.truth[one] if self.truth[one] else -1.0,
            }
            for one, name in names.items()
            if self.truth[one] or self.found[one]
        }
        pixels = self.truth.total()
        return {
            "mIoU": float(np.mean([each["IoU"] for each in by_category.values()])) if by_category else -1.0,
            "pixel_accuracy": self.right.total() / pixels if pixels else -1.0,
        }, by_category
