"""Non-maximum suppression of many images at once, with torchvision's answer for each of them alone.

On a GPU a call per image, level or class waits each time until all work is done, and walks through one image's boxes
while most of the chip is idle. Here whole batches go through the same few operations. What suppresses what is decided
by the same float32 numbers as in torchvision's kernel for the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

_FEW, _FEW_ELSEWHERE = 1_000, 25_000
"""Up to so many boxes of an image, on a processor and elsewhere, torchvision's `batched_nms` moves classes apart."""
_PAIRS = 2**24
"""Of boxes, that are compared at once: 64 MiB for each of their numbers."""
_TURNS = 4


def keep_best(
    boxes: Tensor, scores: Tensor, images: Tensor, classes: Tensor, threshold: float, most: Sequence[int], width: int
) -> list[Tensor]:
    """What `batched_nms(boxes, scores, classes, threshold)` keeps of each image alone, best first.

    Args:
        boxes: float32 (N, 4), x0 y0 x1 y1 in any frame
        scores: float32 (N,); of equal ones the first counts as better
        images: int64 (N,), the image that a box lies in
        classes: int64 (N,), below `width`; boxes of two classes don't suppress each other
        threshold: overlap (intersection over union) above which the better of two boxes stays
        most: how many boxes of each image stay
        width: a number of classes

    Returns:
        for each image, int64 positions among the boxes
    """
    on_processor = boxes.device.type == "cpu"
    candidates = _count(images, len(most))
    few = (candidates <= (_FEW if on_processor else _FEW_ELSEWHERE))[images]
    groups = images * width + classes
    if on_processor:  # moved boxes of several classes are apart: a call for all of them
        groups = torch.where(few, images * width, groups)
    order = scores.argsort(descending=True, stable=True)
    order = order[images[order].argsort(stable=True)]
    in_groups = order[groups[order].argsort(stable=True)]
    counts = groups[in_groups].unique_consecutive(return_counts=True)[1]
    moved = torch.where(few[:, None], _moved(boxes, images, classes, len(most)), boxes)[in_groups]
    suppress = _suppress_in_turn if on_processor else suppress_at_once
    stays = torch.empty_like(scores, dtype=torch.bool)
    stays[in_groups] = suppress(moved, scores[in_groups], counts, threshold)
    kept = order[stays[order]]
    by_image = kept.split(_count(images[kept], len(most)).tolist())
    if on_processor:
        by_image = tuple(map(_in_stocks_order, by_image, candidates.tolist(), repeat(scores)))
    return [some[:limit] for some, limit in zip(by_image, most, strict=True)]


def _in_stocks_order(kept: Tensor, candidates: int, scores: Tensor) -> Tensor:
    """Of equal scores `batched_nms` takes any first where it looks at classes one by one: the same ones here."""
    if candidates <= _FEW:
        return kept
    kept = kept.sort().values
    return kept[scores[kept].sort(descending=True).indices]


def _count(images: Tensor, num_images: int) -> Tensor:
    """How many there are of each: `bincount`, which would wait for the GPU."""
    return images.new_zeros(num_images).index_add_(0, images, torch.ones_like(images))


def _moved(boxes: Tensor, images: Tensor, classes: Tensor, num_images: int) -> Tensor:
    """The boxes as torchvision moves them apart, which rounds."""
    last = boxes.new_zeros(num_images).scatter_reduce(0, images, boxes.amax(1), "amax", include_self=False)
    return boxes + (classes.to(boxes) * (last + 1)[images])[:, None]


def _suppress_in_turn(boxes: Tensor, scores: Tensor, counts: Tensor, threshold: float) -> Tensor:
    """See `suppress_at_once`; quicker on a processor, which has nothing to wait for."""
    stays = torch.ones_like(scores, dtype=torch.bool)
    for start, end in pairwise(accumulate(counts.tolist(), initial=0)):
        if end - start > 1:
            stays[start:end] = False
            stays[start:end][nms(boxes[start:end], scores[start:end], threshold)] = True
    return stays


def suppress_at_once(boxes: Tensor, scores: Tensor, counts: Tensor, threshold: float) -> Tensor:
    """Which boxes stay, bool (N,), when each group of them is suppressed by itself.

    Args:
        boxes: float32 (N, 4), group by group, each sorted by descending score
        scores: not needed, as they are sorted
        counts: int64 (G,), boxes in each group
        threshold: see `keep_best`
    """
    stays = torch.zeros(len(boxes) + 1, dtype=torch.bool, device=boxes.device)  # one more for the padding
    if not len(boxes):
        return stays[:-1]
    starts, widest = counts.cumsum(0) - counts, int(counts.max())
    for few in torch.arange(len(counts), device=boxes.device).split(max(1, _PAIRS // widest**2)):
        places = torch.arange(widest, device=boxes.device)
        inside = places < counts[few, None]
        places = torch.where(inside, starts[few, None] + places, len(boxes))
        stays[places] = _greedy(boxes[places.clamp(max=len(boxes) - 1)], inside, threshold)
    return stays[:-1]


def _greedy(boxes: Tensor, inside: Tensor, threshold: float) -> Tensor:
    """Which of (G, K, 4) sorted boxes stay, bool (G, K).

    A box stays unless a better one that stays overlaps it. That has one solution: the best box is right after one turn
    over all of them, the next one at the latest after two; and what a turn no longer changes is right.
    """
    better = (_overlaps(boxes) > _largest_float(threshold)).triu_(1) & inside[:, :, None]
    stays = inside
    while True:
        before = stays
        for _ in range(_TURNS):  # each look at whether anything changed waits for the GPU
            stays = inside & ~(better & stays[:, :, None]).any(1)
        if torch.equal(before, stays):
            return stays


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of each two of (G, K, 4) boxes, (G, K, K), in torchvision's order of operations."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    areas = (x1 - x0) * (y1 - y0)
    width = (torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])).clamp_(min=0)
    height = (torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])).clamp_(min=0)
    shared = width.mul_(height)
    return shared / (areas[:, :, None] + areas[:, None]).sub_(shared)


def _largest_float(threshold: float) -> float:
    """The largest float32 that is not above the threshold: torchvision compares with the float64, torch would round."""
    rounded = np.float32(threshold)
    return float(rounded if rounded <= threshold else np.nextafter(rounded, np.float32(-np.inf)))
