"""Painted shapes, and a model that finds them exactly: what it says of a part can be compared with the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prelabel.operators.base import ImageLabels, Instances, Model, Prediction, Proposals, Segments, Task
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.rle import area, bbox, decode, encode

SEGMENT = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})


class Shapes(Model):
    """Each color but black is an object, whose color says its category and its score; exact, whatever it is shown."""

    name = "test:shapes"
    tasks = frozenset(set(Task) - {Task.FUSE_PANOPTIC, Task.DETECT_KEYPOINTS})
    categories = CategorySet([Category(1, "one"), Category(2, "two"), Category(3, "three")])
    digest = "shapes"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        assert len({image.shape for image in images}) == 1
        assert len(images) <= 8
        return [self._predict(image.numpy().astype(np.int64), tasks) for image in images]

    def _predict(self, image: np.ndarray, tasks: frozenset[Task]) -> Prediction:
        colors = image[0] << 16 | image[1] << 8 | image[2]
        found = self._instances(colors, Task.SEGMENT_INSTANCES in tasks)
        return Prediction(
            found if tasks & SEGMENT else None,
            Proposals(found.boxes, found.scores) if Task.PROPOSE in tasks else None,
            self._semantic(colors) if Task.SEGMENT_SEMANTIC in tasks else None,
            labels=ImageLabels(np.array([1], np.int32), np.array([colors.mean()], np.float32))
            if Task.CLASSIFY in tasks
            else None,
        )

    def _instances(self, colors: np.ndarray, with_masks: bool) -> Instances:
        found = np.sort(np.unique(colors[colors > 0]))[::-1]
        masks = [mask_runs(colors == color) for color in found]
        boxes = np.array([(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in map(pixels, masks)])
        category_ids = (found % 3 + 1).astype(np.int32)
        scores = (found / 2**24).astype(np.float32)
        return Instances(boxes.reshape(-1, 4).astype(np.float32), scores, category_ids, masks if with_masks else None)

    def _semantic(self, colors: np.ndarray) -> Segments:
        kinds = colors % 3 + 1
        ids = np.unique(kinds).astype(np.int32)
        return Segments(ids, [mask_runs(kinds == one) for one in ids], ids.astype(np.float32) / 4)


def pixels(mask: MaskRuns) -> tuple[np.ndarray, np.ndarray]:
    ys, xs = np.nonzero(decode(mask.rle))
    return ys, xs


def mask_runs(mask: np.ndarray) -> MaskRuns:
    rle = encode(mask)
    return MaskRuns(rle, area(rle), bbox(rle))


def paint(height: int, width: int, shapes: int, seed: int, kinds: int = 3) -> Tensor:
    """Shapes of all sizes that don't overlap, each in its own color: rectangles, ellipses, frames open to the left."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for number in range(shapes):
        h, w = (max(1, int(side * random.random() ** 2)) for side in (height, width))
        top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
        part = image[top : top + h, left : left + w]
        y, x = np.ogrid[:h, :w]
        ellipse = ((2 * y + 1 - h) / h) ** 2 + ((2 * x + 1 - w) / w) ** 2 <= 1
        frame = (y < h // 4) | (y >= h - h // 4) | (x >= w - max(1, w // 4))
        inside = (np.ones((h, w), bool), ellipse, frame)[random.integers(kinds)]
        if not part[inside].any():
            part[inside] = [number % 255 + 1, *random.integers(0, 256, 2)]
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
