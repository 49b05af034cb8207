"""A model that looks at large images through overlapping windows, so that small objects stay large enough to be found.

Everything is merged as boxes and runs; no mask is ever made at the image's size.

Objects: a window cuts what reaches over its inner borders, those inside of the image. Two objects of one category from
different windows are compared in the area that both windows see, and are one where more than half of their parts there
agrees: the intersection over the union of two whole ones, over the cut one's part where one is cut, over the smaller
part where both are. Then, as non-maximum suppression does, the best of whole ones is kept; a cut one gives way to
a whole one; and cut ones that are left are united, in chains over any number of windows. Objects that one window
told apart are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from prelabel.operators.base import Instances, Model, Prediction, Proposals, Segments, Task
from prelabel.operators.batches import BATCH_SIZE, images_at_once
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.errors import ModelError
from prelabel.schemas.rle import Rle, area, bbox, merge, place, stitch

LEAST_TILE = 16
"""Pixels; a smaller window shows nothing."""
MOST_OVERLAP = 0.9
"""Of a window's side; each pixel is looked at 100 times."""
AGREEMENT = 0.5
"""The fraction of two objects' parts in common above which they are one."""
PROPOSAL_IOU = 0.7
"""Of two proposals above which the worse one is dropped: that of torchvision's region proposal networks."""
EDGE = 1 / 64
"""Of a tile's side; a box that ends so near to a window's inner border is cut: networks don't hit borders exactly."""


class Span(NamedTuple):
    """A window's pixels along one side of an image, and the core: those nearer to its center than to any other's."""

    start: int
    stop: int
    core_start: int
    core_stop: int


class Window(NamedTuple):
    """A part of an image."""

    rows: Span
    columns: Span

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0 y0 x1 y1 in pixels of the image."""
        return self.columns.start, self.rows.start, self.columns.stop, self.rows.stop


def spans(length: int, tile: int, stride: int) -> list[Span]:
    """The fewest windows along a side of `length` pixels that are at most `stride` apart, evenly spread.

    Each is `tile` long, or the side where that is shorter; the first begins and the last ends with the image.
    """
    size = min(tile, length)
    gaps = math.ceil((length - size) / stride)
    starts = [k * (length - size) // max(gaps, 1) for k in range(gaps + 1)]
    cuts = [0, *((one + other + size) // 2 for one, other in pairwise(starts)), length]
    return [Span(start, start + size, *core) for start, core in zip(starts, pairwise(cuts), strict=True)]


class TiledModel(Model):
    """Another model behind windows.

    An image that fits in one window gets exactly the other model's answer. To CLASSIFY, it looks at the image as
    a whole. It can't FUSE_PANOPTIC, because the segments of things don't say which are one across a seam; its
    instances and semantic segments can be fused.
    """

    def __init__(self, model: Model, tile: int, overlap: float, batch_pixels: float = math.inf) -> None:
        """Wraps the model.

        Args:
            model: of which `takes_regions` is False
            tile: side of the windows, in pixels
            overlap: the least fraction of a window's side that it shares with the next one
            batch_pixels: of the network's inputs in a forward pass, at most

        Raises:
            ModelError: tile or overlap make no sense, or nothing that the model can do can be tiled.
        """
        if tile < LEAST_TILE:
            raise ModelError(f"tile is {tile}: give at least {LEAST_TILE} pixels")
        if not 0 <= overlap < MOST_OVERLAP:
            raise ModelError(f"tile_overlap is {overlap}: give at least 0 and less than {MOST_OVERLAP}")
        self.model, self.tile = model, tile
        self.windows_at_once = images_at_once((model.input_size(tile, tile),), BATCH_SIZE, batch_pixels)
        self.stride = max(1, round(tile * (1 - overlap)))
        self.name, self.categories, self.digest = model.name, model.categories, model.digest
        self.tasks = model.tasks - {Task.FUSE_PANOPTIC}
        if not self.tasks:
            raise ModelError(f"{model.name} can only {Task.FUSE_PANOPTIC}, which can't be tiled: leave tile out")

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The other model's for an image that fits in a window, else the image's own size."""
        return self.model.input_size(height, width) if max(height, width) <= self.tile else (height, width)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order, see `Model.predict`; the windows of one image share forward passes."""
        fitting = [image for image in images if max(image.shape) <= self.tile]
        untiled = iter(self.model.predict(fitting, tasks) if fitting else [])
        return [next(untiled) if max(image.shape) <= self.tile else self._tiled(image, tasks) for image in images]

    def _tiled(self, image: Tensor, tasks: frozenset[Task]) -> Prediction:
        height, width = int(image.shape[1]), int(image.shape[2])
        whole, windowed = tasks & {Task.CLASSIFY}, tasks - {Task.CLASSIFY}
        labels = self.model.predict([image], whole)[0].labels if whole else None
        if not windowed:
            return Prediction(labels=labels)
        sides = (spans(side, self.tile, self.stride) for side in (height, width))
        windows = [Window(*both) for both in product(*sides)]
        found = self._look(image, windows, windowed)
        instances = [one.instances for one in found if one.instances is not None]
        proposals = [one.proposals for one in found if one.proposals is not None]
        semantic = [one.semantic for one in found if one.semantic is not None]
        return Prediction(
            merge_instances(instances, windows, (height, width)) if instances else None,
            merge_proposals(proposals, windows) if proposals else None,
            merge_segments(semantic, windows, (height, width)) if semantic else None,
            labels=labels,
        )

    def _look(self, image: Tensor, windows: Sequence[Window], tasks: frozenset[Task]) -> list[Prediction]:
        """What the model says of each window; where the accelerator's memory runs out, of fewer at once."""
        if len(windows) > self.windows_at_once:
            chunks = [windows[k : k + self.windows_at_once] for k in range(0, len(windows), self.windows_at_once)]
            return [one for chunk in chunks for one in self._look(image, chunk, tasks)]
        # contiguous: pinning a view would pin all that lies between its first and its last pixel
        pixels = [image[:, rows.start : rows.stop, cols.start : cols.stop].contiguous() for rows, cols in windows]
        try:
            return self.model.predict(pixels, tasks)
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(windows) // 2
        return self._look(image, windows[:half], tasks) + self._look(image, windows[half:], tasks)


def merge_segments(found: Sequence[Segments], windows: Sequence[Window], size: tuple[int, int]) -> Segments:
    """An image's semantic segments from those of its windows, which each decide on their core, by category id.

    A score is the mean over a segment's pixels.
    """
    parts: dict[int, list[tuple[Rle, int, int]]] = {}
    totals: dict[int, float] = {}
    for segments, (rows, columns) in zip(found, windows, strict=True):
        core = rows.core_stop - rows.core_start, columns.core_stop - columns.core_start
        scores = np.zeros(len(segments)) if segments.scores is None else segments.scores
        for category_id, mask, score in zip(segments.category_ids.tolist(), segments.masks, scores, strict=True):
            part = place(mask.rle, core, rows.start - rows.core_start, columns.start - columns.core_start)
            if pixels := area(part):
                parts.setdefault(category_id, []).append((part, rows.core_start, columns.core_start))
                totals[category_id] = totals.get(category_id, 0.0) + float(score) * pixels
    masks = {category_id: _measured(stitch(parts[category_id], size)) for category_id in sorted(parts)}
    means = [totals[category_id] / mask.area for category_id, mask in masks.items()]
    without = any(segments.scores is None for segments in found)
    return Segments(np.array([*masks], np.int32), [*masks.values()], None if without else np.array(means, np.float32))


def merge_proposals(found: Sequence[Proposals], windows: Sequence[Window]) -> Proposals:
    """An image's proposals from those of its windows: non-maximum suppression of those from different windows."""
    of_window = np.repeat(np.arange(len(windows)), [len(one) for one in found])
    bounds = np.array([window.box for window in windows])[of_window]
    boxes = _shifted([one.boxes for one in found], bounds)
    scores = np.concatenate([one.scores for one in found])
    kept = _suppress(scores, *_overlapping(boxes, of_window, bounds, PROPOSAL_IOU))
    order = np.argsort(-scores, kind="stable")
    order = order[kept[order]]
    return Proposals(boxes[order], scores[order])


def merge_instances(found: Sequence[Instances], windows: Sequence[Window], size: tuple[int, int]) -> Instances:
    """An image's objects from those of its windows, as told at the top of this file, by descending score.

    United objects have the union of their masks, the box around their boxes, and the category, score and keypoints of
    the best.
    """
    objects = Objects.collect(found, windows, size)
    groups = objects.groups()
    best = np.array([group[0] for group in groups], np.int64)
    boxes = [np.append(objects.boxes[group, :2].min(0), objects.boxes[group, 2:].max(0)) for group in groups]
    return Instances(
        np.array(boxes, np.float32).reshape(-1, 4),
        objects.scores[best],
        objects.category_ids[best],
        None if objects.masks is None else [_measured(objects.united_mask(group, size)) for group in groups],
        None if objects.keypoints is None else objects.keypoints[best],
    )


@dataclass(frozen=True)
class Objects:
    """All objects that were found in an image's windows, one window after the other.

    Attributes:
        bounds: int64 (N, 4), x0 y0 x1 y1 of each object's window in pixels of the image, as all boxes
        of_window: int64 (N,), the number of each object's window
        boxes: float32 (N, 4)
        cut: bool (N,), whether the window's inner borders cut it
        scores: float32 (N,)
        category_ids: int32 (N,)
        masks: N masks at their windows' size, or None
        keypoints: float32 (N, K, 3), x y in pixels of the image and the visibility, or None
    """

    bounds: np.ndarray
    of_window: np.ndarray
    boxes: np.ndarray
    cut: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    masks: list[Rle] | None
    keypoints: np.ndarray | None

    @classmethod
    def collect(cls, found: Sequence[Instances], windows: Sequence[Window], size: tuple[int, int]) -> Objects:
        """Moves what was found to its place in the image."""
        of_window = np.repeat(np.arange(len(windows)), [len(one) for one in found])
        bounds = np.array([window.box for window in windows])[of_window]
        boxes = _shifted([one.boxes for one in found], bounds)
        masks = [one.masks for one in found if one.masks is not None]
        keypoints = [one.keypoints for one in found if one.keypoints is not None and len(one)]
        return cls(
            bounds,
            of_window,
            boxes,
            _cut(boxes, bounds, size),
            np.concatenate([one.scores for one in found]),
            np.concatenate([one.category_ids for one in found]),
            [mask.rle for some in masks for mask in some] if masks else None,
            _shifted_points(np.concatenate(keypoints), bounds) if keypoints else found[0].keypoints,
        )

    def groups(self) -> list[np.ndarray]:
        """What is left: the members of each object, the best first, by descending score."""
        first, second = self._agreeing()
        cuts = self.cut[first].astype(np.int64) + self.cut[second]
        kept = _suppress(self.scores, first[cuts == 0], second[cuts == 0])
        one = cuts == 1
        kept[np.where(self.cut[first], first, second)[one]] = False
        both = (cuts == 2) & kept[first] & kept[second]
        chain = _chains(len(kept), first[both], second[both])
        order = np.argsort(-self.scores, kind="stable")
        groups: dict[int, list[int]] = {}
        for member in order[kept[order]].tolist():
            groups.setdefault(chain[member], []).append(member)
        return [np.array(group) for group in groups.values()]

    def united_mask(self, group: np.ndarray, size: tuple[int, int]) -> Rle:
        """The union of some masks, in the image."""
        masks = [self._mask_in(np.array([0, 0, size[1], size[0]]), member) for member in group]
        return masks[0] if len(masks) == 1 else merge(masks)

    def _agreeing(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that are one object."""
        first, second = _overlapping(self.boxes, self.of_window, self.bounds, 0.0)
        same = self.category_ids[first] == self.category_ids[second]
        first, second = first[same], second[same]
        compare = self._compare_boxes if self.masks is None else self._compare_masks
        common, part, other = compare(first, second)
        of_both = np.where(self.cut[first] & self.cut[second], np.minimum(part, other), part + other - common)
        total = np.where(self.cut[first] == self.cut[second], of_both, np.where(self.cut[first], part, other))
        agree = common > AGREEMENT * total
        return first[agree], second[agree]

    def _compare_boxes(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """float64 (3, P): of each pair the area of its intersection, and of its parts in what both windows see."""
        part = _intersection(self.boxes[first], self.bounds[second])
        other = _intersection(self.boxes[second], self.bounds[first])
        return np.stack([_area(_intersection(part, other)), _area(part), _area(other)])

    def _compare_masks(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The same of masks."""
        areas = np.zeros((3, len(first)))
        for pair, common in enumerate(_intersection(self.bounds[first], self.bounds[second])):
            parts = [self._mask_in(common, member) for member in (first[pair], second[pair])]
            areas[:, pair] = [area(merge(parts, intersect=True)), *map(area, parts)]
        return areas

    def _mask_in(self, box: np.ndarray, member: int) -> Rle:
        """An object's mask in a part of the image, or the image itself."""
        assert self.masks is not None
        x0, y0, x1, y1 = box.tolist()
        left, top = self.bounds[member, :2].tolist()
        return place(self.masks[member], (y1 - y0, x1 - x0), top - y0, left - x0)


def _shifted(boxes: Sequence[np.ndarray], bounds: np.ndarray) -> np.ndarray:
    """float32 (N, 4): the boxes of all windows in pixels of the image."""
    return np.concatenate(boxes).astype(np.float32) + bounds[:, [0, 1, 0, 1]].astype(np.float32)


def _shifted_points(keypoints: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The same of keypoints; COCO has those of visibility 0 at 0, 0."""
    shifts = np.pad(bounds[:, None, :2], ((0, 0), (0, 0), (0, 1))) * (keypoints[..., 2:] > 0)
    return (keypoints + shifts).astype(np.float32)


def _cut(boxes: np.ndarray, bounds: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (N,): which boxes reach their window's border, or nearly so, where it is not the image's."""
    near = EDGE * (bounds[:, 2:] - bounds[:, :2]).max(1, initial=0, keepdims=True)
    low = (boxes[:, :2] <= bounds[:, :2] + near) & (bounds[:, :2] > 0)
    high = (boxes[:, 2:] >= bounds[:, 2:] - near) & (bounds[:, 2:] < size[::-1])
    return (low | high).any(1)


def _overlapping(
    boxes: np.ndarray, of_window: np.ndarray, bounds: np.ndarray, least_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of boxes from different windows whose intersection over union is above the least."""
    pairs = [np.zeros((0, 2), np.int64)]
    _, starts = np.unique(of_window, return_index=True)
    members = np.split(np.arange(len(boxes)), starts[1:])
    seen, tensor = bounds[starts], torch.from_numpy(boxes)
    for one in range(len(starts)):
        for other in one + 1 + _meeting(seen[one + 1 :], seen[one]):
            mine = members[one][_meeting(boxes[members[one]], seen[other])]
            theirs = members[other][_meeting(boxes[members[other]], seen[one])]
            i, j = torch.nonzero(box_iou(tensor[mine], tensor[theirs]) > least_iou).numpy().T
            pairs.append(np.column_stack([mine[i], theirs[j]]))
    first, second = np.concatenate(pairs).T
    return first, second


def _meeting(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """int64 (K,): the numbers of the boxes that share an area with another one."""
    return np.flatnonzero(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(1))


def _suppress(scores: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool (N,): what is kept where, from the best on, each that is kept drops the others of its pairs."""
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    ahead = rank[first] < rank[second]
    better, worse = np.where(ahead, first, second), np.where(ahead, second, first)
    order = np.argsort(rank[better], kind="stable")
    kept = np.ones(len(scores), np.bool_)
    for one, other in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if kept[one]:
            kept[other] = False
    return kept


def _chains(count: int, first: np.ndarray, second: np.ndarray) -> list[int]:
    """For each of `count` objects, the lowest number in the chain of pairs that it belongs to."""
    lowest = np.arange(count)
    while (lowest[first] != lowest[second]).any():
        least = np.minimum(lowest[first], lowest[second])
        np.minimum.at(lowest, first, least)
        np.minimum.at(lowest, second, least)
    chains: list[int] = lowest.tolist()
    return chains


def _intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, 4): what each box shares with another; x1 < x0 or y1 < y0 where that is nothing."""
    return np.concatenate([np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    """float64 (N,): the area of each box; 0 where it is inverted."""
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def _measured(rle: Rle) -> MaskRuns:
    return MaskRuns(rle, area(rle), bbox(rle))
