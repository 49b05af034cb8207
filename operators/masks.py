"""From a network's mask probabilities to runs at the image's size, with no full-size mask in between.

The result is, bit for bit, torchvision's `paste_masks_in_image(...) > threshold` followed by pycocotools' `encode`:
`turns` finds where a mask turns from outside to inside and back, with the arithmetic of `bilinear`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prelabel.operators.bilinear import Rounding, resize_with_torch, torch_rounding
from prelabel.operators.counts import with_room, write_counts
from prelabel.operators.turns import Box, Way, turns
from prelabel.schemas.compiled import compiled
from prelabel.schemas.rle import Rle, area, bbox, encode, from_run_lengths, place


@dataclass(frozen=True)
class MaskRuns:
    """A mask at the image's size.

    Attributes:
        rle: its runs
        area: the number of pixels inside
        bbox: the mask's own tight box, x y width height in pixels; four zeros where no pixel is inside
    """

    rle: Rle
    area: int
    bbox: tuple[int, int, int, int]


def paste_runs(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[MaskRuns]:
    """Pastes the masks of boxes into an image, as runs. Several threads may call it; the kernel lets them run.

    Args:
        probabilities: float32 (N, M, M), 0..1
        boxes: float32 (N, 4), x0 y0 x1 y1 in pixels of the image; they may reach over its borders
        height: of the image, in pixels
        width: of the image, in pixels
        threshold: a pixel is inside where its probability is greater

    Returns:
        N masks of the image's size, empty where a box is inverted or outside the image.
    """
    masks = _padded(probabilities)
    padded = _padded_boxes(boxes, masks.shape[-1])
    of_small, of_large = torch_rounding(small=True), torch_rounding(small=False)
    if of_small is None or of_large is None:
        return [_paste_with_torch(*one, height, width, threshold) for one in zip(masks, padded, strict=True)]
    found = _paste_all(masks, padded, height, width, np.float32(threshold), of_small, of_large)
    return masks_in(*found, (height, width))


def masks_in(
    text: np.ndarray, ends: np.ndarray, areas: np.ndarray, corners: np.ndarray, size: tuple[int, int]
) -> list[MaskRuns]:
    """Masks from the strings of them all.

    Args:
        text: uint8, COCO's counts of one mask after the other
        ends: where each one's ends
        areas, corners: of each, x0 y0 x1 y1
        size: height, width
    """
    counts, begin = text[: ends[-1] if len(ends) else 0].tobytes().decode("ascii"), 0
    masks = []
    for end, area_, (x0, y0, x1, y1) in zip(ends.tolist(), areas.tolist(), corners.tolist(), strict=False):
        masks.append(MaskRuns(Rle(size, counts[begin:end]), area_, (x0, y0, x1 - x0, y1 - y0)))
        begin = end
    return masks


def _padded(probabilities: np.ndarray) -> np.ndarray:
    """float32 (N, M + 2, M + 2): with a border of zeros, and transposed: the values of a column are neighbours."""
    count, side, _ = probabilities.shape
    masks = np.zeros((count, side + 2, side + 2), np.float32)
    masks[:, 1:-1, 1:-1] = probabilities.transpose(0, 2, 1)
    return masks


def _padded_boxes(boxes: np.ndarray, side: int) -> np.ndarray:
    """int64 (N, 4): boxes grown by their masks' padding and truncated, as torchvision's `expand_boxes` does."""
    corners = np.asarray(boxes, np.float32).reshape(-1, 2, 2)
    half = (corners[:, 1] - corners[:, 0]) * np.float32(0.5) * np.float32(side / (side - 2))
    center = (corners[:, 1] + corners[:, 0]) * np.float32(0.5)
    return np.concatenate([center - half, center + half], axis=1).astype(np.int64)


def _paste_with_torch(mask: np.ndarray, corners: np.ndarray, height: int, width: int, threshold: float) -> MaskRuns:
    """One padded mask, resized by torch itself."""
    box = Box(*corners.tolist())
    rows, columns = box.visible(height, width)
    rle = from_run_lengths([np.array([height * width])], (height, width))[0]
    if rows.start < rows.stop and columns.start < columns.stop:
        resized = resize_with_torch(mask.T, box.size)
        inside = resized[rows.start - box.y0 : rows.stop - box.y0, columns.start - box.x0 : columns.stop - box.x0]
        rle = place(encode((inside > threshold).numpy()), (height, width), rows.start, columns.start)
    return MaskRuns(rle, area(rle), bbox(rle))


@compiled
def _area(turns: np.ndarray, height: int, corners: np.ndarray) -> int:
    """The pixels inside; their corners x0 y0 x1 y1 are written."""
    if len(turns) == 0:
        return 0
    area, x = 0, turns[0] // height
    x0, y0, y1 = x, height, 0
    for begin, end in zip(turns[::2], turns[1::2]):  # noqa: B905 numba knows no strict
        while begin >= (x + 1) * height:
            x += 1
        y0 = min(y0, begin - x * height)
        while end > (x + 1) * height:  # from one column's foot to the next one's head
            x += 1
            y0, y1 = 0, height
        y1 = max(y1, end - x * height)
        area += end - begin
    corners[0], corners[1], corners[2], corners[3] = x0, y0, x + 1, y1
    return area


@compiled
def _lengths_between(turns: np.ndarray, pixels: int) -> np.ndarray:
    """The lengths of the runs between the pixels at which a mask turns; a last run of none is left out."""
    lengths = np.empty(len(turns) + 1, np.uint32)
    position = 0
    for run, turn in enumerate(turns):
        lengths[run] = turn - position
        position = turn
    lengths[len(turns)] = pixels - position
    return lengths[: len(turns)] if len(turns) and position == pixels else lengths


@compiled
def _paste_all(
    masks: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    threshold: np.float32,
    of_small: Rounding,
    of_large: Rounding,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All padded masks of an image: their strings, where each ends, their areas and their corners; see `masks_in`."""
    text, at = np.empty(64 * len(masks), np.uint8), 0
    ends, areas, corners = (
        np.zeros(len(masks), np.int64),
        np.zeros(len(masks), np.int64),
        np.zeros(boxes.shape, np.int64),
    )
    for k in range(len(masks)):
        box = Box(boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3])
        small = box.x1 - box.x0 + box.y1 - box.y0 + 2 <= 128
        way = Way(threshold, small, of_small if small else of_large)
        found = turns(masks[k], box, height, width, way)
        areas[k] = _area(found, height, corners[k])
        text = with_room(text, at, len(found) + 1)
        at = write_counts(_lengths_between(found, height * width), text, at)
        ends[k] = at
    return text, ends, areas, corners
