"""Run-length masks in COCO's form: what a mask is from the network's output to the exported file.

A mask's pixels are read column by column. Its run lengths count pixels in turn outside and inside, beginning outside
(so the first may be 0); COCO writes them as a string of 5-bit groups (cocoapi's `common/maskApi.c`). pycocotools does
what it can; inverting, cropping and shifting, which it would do on the full-size mask, is done here, on the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from prelabel.schemas.errors import UserError


@dataclass(frozen=True)
class Rle:
    """A binary mask as runs.

    Attributes:
        size: height and width in pixels
        counts: COCO's compressed run lengths

    >>> Rle((2, 3), "231").to_coco()
    {'size': [2, 3], 'counts': '231'}
    """

    size: tuple[int, int]
    counts: str

    def to_coco(self) -> dict[str, Any]:
        """The `segmentation` object of a COCO document, as pycocotools takes it."""
        return {"size": list(self.size), "counts": self.counts}

    @classmethod
    def from_coco(cls, segmentation: Mapping[str, Any]) -> Rle:
        """The mask of a COCO `segmentation` object; `counts` is compressed (str or bytes) or a list of run lengths.

        Raises:
            UserError: the runs don't fill the size, or are no runs
        """
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")
        lengths = run_lengths(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
        if lengths.sum() != height * width or (lengths < 0).any():
            raise UserError(
                f"the runs of a mask of {height} x {width} pixels should be counts that add up to {height * width}, "
                f"these add up to {lengths.sum()}: take the segmentation from the tool that wrote it once more"
            )
        if not isinstance(counts, str):
            return from_run_lengths([lengths], (height, width))[0]
        return cls((int(height), int(width)), counts)


def from_run_lengths(masks: Sequence[np.ndarray], size: tuple[int, int]) -> list[Rle]:
    """Masks of one size from integer arrays of run lengths, each beginning with a run outside."""
    height, width = int(size[0]), int(size[1])
    uncompressed = [{"size": [height, width], "counts": lengths} for lengths in masks]
    compressed = coco_mask.frPyObjects(uncompressed, height, width) if uncompressed else []
    return [Rle((height, width), rle["counts"].decode("ascii")) for rle in compressed]


def encode(mask: np.ndarray) -> Rle:
    """The runs of a bool (H, W) mask."""
    return _from_pycocotools(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


def decode(rle: Rle) -> np.ndarray:
    """The bool (H, W) mask."""
    return coco_mask.decode(rle.to_coco()).astype(bool)


def area(rle: Rle) -> int:
    """The number of pixels inside."""
    return int(coco_mask.area(rle.to_coco()))


def bbox(rle: Rle) -> tuple[int, int, int, int]:
    """The tight box: x and y of the top-left pixel, width, height; four zeros where no pixel is inside."""
    x, y, width, height = coco_mask.toBbox(rle.to_coco()).astype(int).tolist()
    return x, y, width, height


def merge(rles: Sequence[Rle], intersect: bool = False) -> Rle:
    """The union, or the intersection, of one or more masks of one size."""
    return _from_pycocotools(coco_mask.merge([rle.to_coco() for rle in rles], intersect=intersect))


def invert(rle: Rle) -> Rle:
    """The mask of all other pixels."""
    lengths = run_lengths(rle.counts)
    return from_run_lengths([lengths[1:] if lengths[0] == 0 else np.append(0, lengths)], rle.size)[0]


def place(window: Rle, size: tuple[int, int], top: int, left: int) -> Rle:
    """A window's mask in an image of `size` (height, width), clipped to the image: crop-and-shift, on the runs.

    The opposite, an image's mask in a window of it, is the same with -top and -left.

    Args:
        window: the mask of a part of the image
        size: the image's height and width
        top: the image's row of the window's first row; negative where the window begins above the image
        left: the image's column of the window's first column; negative where it begins left of the image
    """
    return stitch([(window, top, left)], size)


def stitch(windows: Sequence[tuple[Rle, int, int]], size: tuple[int, int]) -> Rle:
    """One mask of an image of `size` from those of disjoint windows: each a mask, its top and its left as in `place`.

    Where windows overlap, no pixel may be inside the masks of two.
    """
    height, width = size
    pieces = [_visible_runs(window, height, width, top, left) for window, top, left in windows]
    begins, ends = np.concatenate([np.zeros((2, 0), np.int64), *pieces], axis=1)
    order = np.argsort(begins)
    begins, ends = begins[order], ends[order]
    apart = begins[1:] != ends[:-1]  # a run that ends at a column's foot goes on at the next one's head
    begins, ends = begins[np.append(True, apart)[: len(begins)]], ends[np.append(apart, True)[: len(ends)]]
    lengths = np.diff(np.column_stack([begins, ends]).ravel(), prepend=0, append=height * width)
    if len(ends) and lengths[-1] == 0:
        lengths = lengths[:-1]
    return from_run_lengths([lengths], size)[0]


def _visible_runs(window: Rle, height: int, width: int, top: int, left: int) -> np.ndarray:
    """int64 (2, N): the first pixel in the image of each run inside, and that after its last, cut at columns' feet."""
    columns, tops, bottoms = column_runs(window)
    columns = columns + left
    tops, bottoms = np.maximum(tops + top, 0), np.minimum(bottoms + top, height)
    visible = (tops < bottoms) & (columns >= 0) & (columns < width)
    return (columns * height + np.stack([tops, bottoms]))[:, visible]


def _from_pycocotools(rle: Mapping[str, Any]) -> Rle:
    height, width = rle["size"]
    return Rle((int(height), int(width)), rle["counts"].decode("ascii"))


def run_lengths(counts: str) -> np.ndarray:
    """int64 run lengths from COCO's string: little-endian 5-bit groups, offset by 48, the 6th bit says that more come.

    From the fourth on, a number is the difference to the run length two before.
    """
    groups = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise UserError(f"{counts[:20]!r} is not a COCO run-length string: take the segmentation from its source again")
    first = np.flatnonzero(np.append(True, groups[:-1] & 32 == 0))
    shift = 5 * (np.arange(len(groups)) - np.repeat(first, np.diff(first, append=len(groups))))
    numbers = np.add.reduceat((groups & 31) << shift, first)
    last = np.append(first[1:], len(groups)) - 1
    numbers -= np.where(groups[last] & 16, 32 << shift[last], 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def column_runs(rle: Rle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs inside, cut at the feet of columns: column, first row, and row after the last, of each piece."""
    height = rle.size[0]
    edges = np.cumsum(run_lengths(rle.counts))
    ends = edges[1::2]
    begins = edges[0::2][: len(ends)]
    begins, ends = begins[begins < ends], ends[begins < ends]
    first = begins // height
    pieces = (ends - 1) // height - first + 1
    run = np.repeat(np.arange(len(begins)), pieces)
    columns = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    head = columns * height
    return columns, np.maximum(begins[run] - head, 0), np.minimum(ends[run] - head, height)
