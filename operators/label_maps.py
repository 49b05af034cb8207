"""Label maps, the output of semantic and panoptic networks: class scores -> labels at the image's size -> runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from prelabel.operators.base import Segments
from prelabel.operators.counts import LONGEST, extend, write_counts
from prelabel.operators.masks import MaskRuns, masks_in
from prelabel.schemas.compiled import compiled

_Nodes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""For each pixel along an axis, the scores before and after it, int64, and the later one's weight, float32."""
STRIP_BYTES = 8 * 2**20
"""Scores at the image's size that are there at a time, in each of a few tensors."""


def semantic_segments(labels: np.ndarray, category_ids: np.ndarray) -> Segments:
    """One segment per category that a label map shows, by falling area; ties by category id.

    Args:
        labels: integers (H, W); those outside of 0..K - 1 are nobody's
        category_ids: int32 (K,), the category that each label stands for, -1 for none; two may stand for one
    """
    categories = np.unique(category_ids[category_ids >= 0]).astype(np.int32)
    owners = np.where(category_ids >= 0, np.searchsorted(categories, category_ids), -1)
    masks = _runs(labels, owners, len(categories))
    shown = sorted((k for k, mask in enumerate(masks) if mask.area), key=lambda k: -masks[k].area)
    return Segments(categories[shown], [masks[k] for k in shown])


def label_runs(labels: np.ndarray, count: int) -> list[MaskRuns]:
    """The masks `labels == 0`, ..., `labels == count - 1` of an integer (H, W) map, empty ones included.

    Equal to pycocotools' `encode` of each of them, in one go over the map and without any of them in memory.
    """
    return _runs(labels, np.arange(count), count)


def upsampled_argmax(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The best class of each pixel, after bilinear interpolation of the scores to the image's size.

    Equal to `interpolate(scores[None], size, mode="bilinear", align_corners=False).argmax(1)[0]`, but row by row on the
    processor and strip by strip elsewhere, so that no K x H x W scores are made. Only labels leave the scores' device.

    Args:
        scores: float (K, h, w), K at most 32768
        size: H, W

    Returns:
        uint8 (H, W), int16 for more than 256 classes
    """
    labels = np.empty(size, np.uint8 if len(scores) <= 256 else np.int16)
    if scores.device.type == "cpu":
        together = scores.permute(1, 2, 0).float().contiguous().numpy()
        _label_rows(together, _nodes(scores.shape[1], size[0]), _nodes(scores.shape[2], size[1]), labels)
        return labels
    kind = torch.from_numpy(labels).dtype
    for strip, values in upsampled_strips(scores, size):
        labels[strip] = values.max(0).indices.to(kind).cpu().numpy()  # sooner than argmax, and the same
    return labels


def _nodes(count: int, pixels: int) -> _Nodes:
    before, after, weight = _rows(count, pixels, torch.device("cpu"))
    return before.numpy(), after.numpy(), weight.numpy()


def upsampled_strips(scores: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the image, and the scores float (K, rows, W) there: bilinear interpolation, strip by strip.

    Args:
        scores: float (K, h, w)
        size: H, W
    """
    classes, nodes, _ = scores.shape
    above, below, weight = _rows(nodes, size[0], scores.device)
    rows = max(1, STRIP_BYTES // (4 * classes * size[1]))
    for start in range(0, size[0], rows):
        strip = slice(start, start + rows)
        first, last = int(above[start]), int(below[strip][-1])
        # along x as torch does, which goes along x before y; then along y here, where torch knows no offset
        source = scores[None, :, first : last + 1].float()
        wide = interpolate(source, (last + 1 - first, size[1]), mode="bilinear", align_corners=False)[0]
        far = weight[strip, None]
        values = wide.index_select(1, above[strip] - first).mul_(1 - far)
        yield strip, values.addcmul_(wide.index_select(1, below[strip] - first), far)


def _rows(nodes: int, height: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of the image, the rows of the scores above and below it, and the lower one's weight, as in torch."""
    centers = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    source = (centers * (torch.tensor(nodes, dtype=torch.float32) / height) - 0.5).clamp(min=0)
    above = source.long().clamp(max=nodes - 1)
    return above, (above + 1).clamp(max=nodes - 1), source - above


@compiled
def _widen(scores: np.ndarray, columns: _Nodes, wide: np.ndarray) -> None:
    left, right, weight = columns
    classes, width = wide.shape
    for x in range(width):
        far = weight[x]
        near = np.float32(1) - far
        for label in range(classes):
            wide[label, x] = scores[left[x], label] * near + scores[right[x], label] * far


@compiled
def _label_rows(scores: np.ndarray, rows: _Nodes, columns: _Nodes, labels: np.ndarray) -> None:
    """Fills in each pixel's best class; scores float32 (h, w, K).

    Scores are interpolated along x once for each of their own rows, then along y for one row of the image at a time,
    class by class, which the compiler makes vectors of.
    """
    classes, (height, width) = scores.shape[2], labels.shape
    above, below, weight = rows
    wide, held = np.empty((2, classes, width), np.float32), np.full(2, -1)
    best, whose = np.empty(width, np.float32), np.empty(width, np.int32)
    for y in range(height):
        for node in (above[y], below[y]):  # neighbours, of which one is even
            if held[node % 2] != node:
                _widen(scores[node], columns, wide[node % 2])
                held[node % 2] = node
        upper, lower, far = wide[above[y] % 2], wide[below[y] % 2], weight[y]
        near = np.float32(1) - far
        best[:] = -np.inf
        whose[:] = 0
        for label in range(classes):
            for x in range(width):
                score = upper[label, x] * near + lower[label, x] * far
                is_better = score > best[x]
                best[x] = score if is_better else best[x]
                whose[x] = label if is_better else whose[x]
        labels[y] = whose


def _runs(labels: np.ndarray, owners: np.ndarray, count: int) -> list[MaskRuns]:
    """The masks 0 to count - 1; `owners[label]` is the mask that a label belongs to, -1 for none."""
    begins, whose = _stretches(labels, _changes(labels), owners)
    lengths, slots, areas, corners = _lengths(begins, whose, count, labels.shape[0])
    text, ends = _texts(lengths, slots, count)
    return masks_in(text, ends, areas, corners, (labels.shape[0], labels.shape[1]))


@compiled
def _changes(labels: np.ndarray) -> np.ndarray:
    """int64 places, column by column, of the pixels that are on top or have another label than the one above.

    The map is read row by row, as it lies in memory: once to count each column's changes, once to put them in order.
    """
    height, width = labels.shape
    found = np.ones(width, np.int64)
    for y in range(1, height):
        for x in range(width):
            found[x] += labels[y, x] != labels[y - 1, x]
    place = np.cumsum(found) - found
    changes = np.empty(found.sum(), np.int64)
    changes[place] = np.arange(width) * height
    for y in range(1, height):
        for x in range(width):
            if labels[y, x] != labels[y - 1, x]:
                place[x] += 1
                changes[place[x]] = x * height + y
    return changes


@compiled
def _stretches(labels: np.ndarray, changes: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map as stretches of pixels of one owner: where each begins, the end of the map included, and whose it is."""
    height, width = labels.shape
    begins, whose = np.empty(len(changes) + 1, np.int64), np.empty(len(changes), np.int64)
    found = 0
    for change in changes:
        label = labels[change % height, change // height]
        owner = owners[label] if 0 <= label < len(owners) else -1
        if found == 0 or owner != whose[found - 1]:
            begins[found], whose[found] = change, owner
            found += 1
    begins[found] = height * width
    return begins[: found + 1], whose[:found]


@compiled
def _lengths(
    begins: np.ndarray, whose: np.ndarray, count: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All masks' uint32 run lengths, the slots where each one's are, and their areas and corners (x0 y0 x1 y1).

    After the masks comes what is nobody's: owner -1 is the last place.
    """
    room = np.ones(count + 1, np.int64)  # a run outside and one inside per stretch, and one that follows the last
    for owner in whose:
        room[owner] += 2
    slots = np.column_stack((np.cumsum(room) - room, np.cumsum(room) - room))
    lengths, position = np.empty(room.sum(), np.uint32), np.zeros(count + 1, np.int64)
    areas, corners = np.zeros(count + 1, np.int64), np.zeros((count + 1, 4), np.int64)
    for stretch, owner in enumerate(whose):
        begin, end = begins[stretch], begins[stretch + 1]
        extend(corners[owner], areas[owner] == 0, begin, end - 1, height)
        free = slots[owner, 1]
        lengths[free], lengths[free + 1] = begin - position[owner], end - begin
        slots[owner, 1] += 2
        position[owner] = end
        areas[owner] += end - begin
    for owner in range(count):
        if position[owner] < begins[-1]:
            lengths[slots[owner, 1]] = begins[-1] - position[owner]
            slots[owner, 1] += 1
    return lengths, slots, areas, corners


@compiled
def _texts(lengths: np.ndarray, slots: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """COCO's strings of the masks, one after the other, and where each ends."""
    text, ends, at = np.empty(LONGEST * len(lengths), np.uint8), np.empty(count, np.int64), 0
    for owner in range(count):
        at = write_counts(lengths[slots[owner, 0] : slots[owner, 1]], text, at)
        ends[owner] = at
    return text, ends
