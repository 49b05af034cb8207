"""Mask classification: a class and a mask per query -> instances, semantic and panoptic labels at the image's size.

Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (2021). What is found is what the
`post_process_*` methods of transformers find, pixel for pixel up to rounding, with two differences. No Q x H x W
probabilities are made: masks become runs where they are small, and queries compete in strips of rows. And the parts of
fused stuff get one segment, also where transformers mixes up their ids (huggingface/transformers#23461).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from prelabel.operators.label_maps import label_runs, upsampled_argmax, upsampled_strips
from prelabel.operators.masks import MaskRuns
from prelabel.schemas.rle import area, bbox, from_run_lengths

INSIDE = 0.5
"""A pixel whose probability, times its query's score, is this or more belongs to the query's own mask."""
OVERLAP = 0.8
"""An instance that wins no more than this fraction of its own mask is dropped."""

Size = tuple[int, int]


class Queries(NamedTuple):
    """What a network says of one image: Q queries, K labels.

    Attributes:
        classes: float (Q, K + 1), logits; the last column is "no object"
        masks: float (Q, h, w), logits
    """

    classes: Tensor
    masks: Tensor


class Candidates(NamedTuple):
    """Masks that compete for the pixels of an image, by their values times their scores.

    Attributes:
        values: float (N, h, w)
        scores: float (N,)
        labels: int64 (N,)
    """

    values: Tensor
    scores: Tensor
    labels: Tensor


class Found(NamedTuple):
    """Masks by descending score.

    Attributes:
        masks: N of them, at the image's size, none empty
        scores: float32 (N,)
        labels: int64 (N,)
    """

    masks: list[MaskRuns]
    scores: np.ndarray
    labels: np.ndarray

    def of(self, wanted: np.ndarray) -> Found:
        """Those of the labels that `wanted`, bool (K,), is true for."""
        kept = np.flatnonzero(wanted[self.labels])
        return Found([self.masks[one] for one in kept.tolist()], self.scores[kept], self.labels[kept])


def semantic_labels(queries: Queries, size: Size, antialias: bool = False) -> np.ndarray:
    """The label of each pixel, an integer (H, W) map: that of the greatest sum of class times mask probabilities."""
    classes = queries.classes.softmax(-1)[:, :-1]
    scores = torch.einsum("qk,qhw->khw", classes, queries.masks.sigmoid())
    return upsampled_argmax(_reduced(scores, size) if antialias else scores, size)


def one_label_each(queries: Queries, threshold: float) -> Candidates:
    """The queries whose best class is a label with a score above the threshold."""
    scores, labels = queries.classes.softmax(-1).max(-1)
    kept = (labels != queries.classes.shape[-1] - 1) & (scores > threshold)
    return Candidates(queries.masks[kept].sigmoid(), scores[kept], labels[kept])


def _best_pairs(queries: Queries) -> tuple[Tensor, Tensor, Tensor]:
    """The Q best pairs of a query and a label: scores (Q,), queries (Q,), labels (Q,). A query may be there twice."""
    count, kinds = queries.classes.shape[0], queries.classes.shape[1] - 1
    scores, places = queries.classes.softmax(-1)[:, :-1].flatten().topk(count)
    return scores, places // kinds, places % kinds


def independent_masks(queries: Queries, size: Size, threshold: float) -> Found:
    """Instances that may overlap: Mask2Former's and MaskFormer's.

    The score, of at least the threshold, is the class's probability times the mean probability inside the mask.
    """
    scores, owners, labels = _best_pairs(queries)
    inside = queries.masks > 0
    sums, pixels = (queries.masks.sigmoid() * inside).flatten(1).sum(1), inside.flatten(1).sum(1)
    scores = scores * (sums / (pixels + 1e-6))[owners]
    kept = (scores >= threshold) & (pixels > 0)[owners]
    small = {one: inside[one].cpu().numpy() for one in owners[kept].unique().tolist()}
    masks = {one: upscaled_runs(mask, size) for one, mask in small.items()}
    return _sorted([masks[one] for one in owners[kept].tolist()], scores[kept], labels[kept])


def disjoint_masks(queries: Queries, size: Size, threshold: float) -> Found:
    """Instances of the queries' best labels that compete for pixels: DETR's. Scores are above the threshold."""
    return contested_masks(one_label_each(queries, threshold), size, overlap=OVERLAP)


def disjoint_pairs(queries: Queries, size: Size, threshold: float) -> Found:
    """Instances of the best pairs of a query and a label, which compete by their masks' logits: OneFormer's."""
    scores, owners, labels = _best_pairs(queries)
    kept = scores > threshold
    candidates = Candidates(queries.masks[owners[kept]], scores[kept], labels[kept])
    return contested_masks(candidates, size, overlap=OVERLAP, antialias=True)


def contested_masks(
    candidates: Candidates, size: Size, *, overlap: float, fused: Collection[int] = (), antialias: bool = False
) -> Found:
    """Disjoint masks: each pixel is the candidate's with the greatest product of value and score.

    Args:
        candidates: N of them
        size: the image's (height, width)
        overlap: a candidate that wins no more than this fraction of its own mask is dropped, and its pixels are void
        fused: labels whose candidates make one mask together, with the best one's score
        antialias: how values are resized to a smaller image, as in OneFormer
    """
    if not len(candidates.scores):
        return _sorted([], candidates.scores, candidates.labels)
    winners, won, own = _contest(candidates, size, antialias)
    kept = (won > 0) & (own > 0) & ((won / own).double() > overlap)
    owners = np.full(len(kept), -1, np.int16)
    masks: dict[int, int] = {}  # a fused label, or a candidate as -1 and below -> number of its mask
    for one, label in zip(kept.nonzero()[:, 0].tolist(), candidates.labels[kept].tolist(), strict=True):
        owners[one] = masks.setdefault(label if label in fused else -1 - one, len(masks))
    parts = [np.flatnonzero(owners == mask) for mask in range(len(masks))]
    scores, labels = candidates.scores.cpu(), candidates.labels.cpu()
    return _sorted(
        label_runs(owners[winners], len(masks)),
        torch.tensor([scores[one].max() for one in parts]),
        torch.tensor([labels[one[0]] for one in parts], dtype=torch.int64),
    )


def _contest(candidates: Candidates, size: Size, antialias: bool) -> tuple[np.ndarray, Tensor, Tensor]:
    """Who wins each pixel, uint8 or int16 (H, W); how many pixels each one wins; how many its own mask has."""
    values, weights = candidates.values, candidates.scores[:, None, None]
    count = len(values)
    winners = np.empty(size, np.uint8 if count <= 256 else np.int16)
    won, own = torch.zeros(2, count, dtype=torch.int64, device=values.device)
    for rows, strip in upsampled_strips(_reduced(values, size) if antialias else values, size):
        strip *= weights
        labels = strip.max(0).indices  # sooner than argmax, and the same
        won += labels.flatten().bincount(minlength=count)
        own += (strip >= INSIDE).flatten(1).sum(1)
        winners[rows] = labels.cpu().numpy()
    return winners, won, own


def _reduced(values: Tensor, size: Size) -> Tensor:
    """The values (N, h, w) made smaller along the axes where the image is, with an antialiasing filter.

    Along the others, where the filter is bilinear interpolation, they stay as they are.
    """
    height, width = (min(pair) for pair in zip(values.shape[1:], size, strict=True))
    return interpolate(values[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def upscaled_runs(mask: np.ndarray, size: Size) -> MaskRuns:
    """A bool (h, w) mask at another size, by its nearest pixels as torch's `interpolate` finds them."""
    height, width = size
    rows, columns = _nearest(mask.shape[0], height), _nearest(mask.shape[1], width)
    heads = np.searchsorted(rows, np.arange(mask.shape[0] + 1))  # the image's first row in each of the mask's
    padded = np.pad(mask, ((1, 1), (0, 0)))
    column, edges = np.nonzero((padded[1:] != padded[:-1]).T)
    counts = np.bincount(column, minlength=mask.shape[1])
    per_column = counts[columns]
    ends = np.cumsum(per_column)
    source = np.arange(per_column.sum()) - np.repeat(
        ends - per_column - (np.cumsum(counts) - counts)[columns], per_column
    )
    turns = heads[edges[source]] + np.repeat(np.arange(width) * height, per_column)
    turns, times = np.unique(
        turns, return_counts=True
    )  # what turns twice, at a skipped row or a column's foot, goes on
    turns = turns[(times % 2 == 1) & (turns < height * width)]
    rle = from_run_lengths([np.diff(turns, prepend=0, append=height * width)], size)[0]
    return MaskRuns(rle, area(rle), bbox(rle))


def _nearest(nodes: int, size: int) -> np.ndarray:
    """The node, of so many, nearest to each of `size` pixels along an axis."""
    numbers = torch.arange(nodes, dtype=torch.float32)[None, None]
    return interpolate(numbers, size, mode="nearest")[0, 0].long().numpy()


def _sorted(masks: list[MaskRuns], scores: Tensor, labels: Tensor) -> Found:
    values = scores.float().cpu().numpy()
    order = [one for one in np.argsort(-values, kind="stable").tolist() if masks[one].area]
    return Found([masks[one] for one in order], values[order], labels.cpu().numpy()[order])
