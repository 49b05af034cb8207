"""RoIAlign on the processor over feature maps whose channels lie together, which is how convolutions leave them here.

Torchvision's kernel wants each channel by itself: it copies the maps first, and then walks through memory once per
channel. Here the four neighbours of a point are four runs of channels, added up as vectors. Each number comes of the
same float32 operations in the same order as torchvision's `roi_align` with `aligned=False`: equal to the bit. The
operation is that of He et al., "Mask R-CNN" (2017), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from prelabel.schemas.compiled import compiled


def pool_channels_last(network: nn.Module) -> None:
    """Makes the network's poolers work so: torchvision's own, of a network on the processor."""
    for_convolutions = set(_pools_for_convolutions(network))
    for module in network.modules():
        if type(module) is MultiScaleRoIAlign:
            module.forward = partial(_pooled, module, module in for_convolutions)


def _pools_for_convolutions(network: nn.Module) -> Iterator[nn.Module]:
    """The poolers whose channels may lie together; other heads may flatten what they get, channel by channel."""
    for heads in network.modules():
        for kind in ("box", "mask", "keypoint") if isinstance(heads, RoIHeads) else ():
            if type(getattr(heads, f"{kind}_head")) in (FastRCNNConvFCHead, MaskRCNNHeads, KeypointRCNNHeads):
                yield getattr(heads, f"{kind}_roi_pool")


def _pooled(
    pool: MultiScaleRoIAlign,
    together: bool,
    maps: dict[str, Tensor],
    boxes: list[Tensor],
    sizes: list[tuple[int, int]],
) -> Tensor:
    """What the pooler's class returns, float32 (N, C, h, w), for boxes x0 y0 x1 y1 in pixels of the input.

    `together` says that the channels of a point shall lie so.
    """
    if pool.scales is None or pool.map_levels is None:  # which the class finds on its first call
        return MultiScaleRoIAlign.forward(pool, maps, boxes, sizes)
    features = [maps[name] for name in maps if name in pool.featmap_names]
    rois = torch.cat(boxes).float().numpy()
    of_image = np.repeat(np.arange(len(boxes)), [len(one) for one in boxes])
    levels = pool.map_levels(boxes).numpy() if len(features) > 1 else np.zeros(len(rois), np.int64)
    channels, (height, width) = features[0].shape[1], pool.output_size
    shape = (len(rois), height * width, channels) if together else (len(rois), channels, height * width)
    pooled = np.empty(shape, np.float32)
    for level, (feature, scale) in enumerate(zip(features, pool.scales, strict=True)):
        which = np.flatnonzero(levels == level)
        if which.size:  # of a map in bfloat16 a copy is made
            rows = feature.float().permute(0, 2, 3, 1).contiguous().numpy()
            how = pool.sampling_ratio, height, width, together
            _on_threads(which, rows, np.float32(scale), rois, of_image, *how, pooled)
    if together:
        return torch.from_numpy(pooled).view(len(rois), height, width, channels).permute(0, 3, 1, 2)
    return torch.from_numpy(pooled).view(len(rois), channels, height, width)


def _on_threads(which: np.ndarray, *known: Any) -> None:
    shares = np.array_split(which, torch.get_num_threads())
    if len(shares) == 1:
        _align(which, *known)
        return
    with ThreadPoolExecutor(len(shares)) as threads:
        list(threads.map(lambda share: _align(share, *known), shares))


@compiled
def _align(
    which: np.ndarray,
    maps: np.ndarray,
    scale: np.float32,
    rois: np.ndarray,
    of_image: np.ndarray,
    sampling_ratio: int,
    bins_y: int,
    bins_x: int,
    together: bool,
    pooled: np.ndarray,
) -> None:
    """Pools the RoIs of one level: maps float32 (images, H, W, C) into pooled, (N, C, bins), or (N, bins, C)."""
    height, width, channels = maps.shape[1:]
    sums = np.empty((bins_y * bins_x, channels), np.float32)
    for n in which:
        low_y, part_y = _points(rois[n, 1] * scale, rois[n, 3] * scale, bins_y, sampling_ratio, height)
        low_x, part_x = _points(rois[n, 0] * scale, rois[n, 2] * scale, bins_x, sampling_ratio, width)
        sums[:] = 0
        for i in range(low_y.size):
            for j in range(low_x.size):
                if low_y.flat[i] >= 0 and low_x.flat[j] >= 0:
                    place = i // low_y.shape[1] * bins_x + j // low_x.shape[1]
                    at = maps[of_image[n]], low_y.flat[i], low_x.flat[j], part_y.flat[i], part_x.flat[j]
                    _add_point(sums[place], *at)
        count = np.float32(low_y.shape[1] * low_x.shape[1])
        if together:
            pooled[n] = sums / count
            continue
        for channel in range(channels):
            for place in range(bins_y * bins_x):
                pooled[n, channel, place] = sums[place, channel] / count


@compiled
def _points(
    start: np.float32, end: np.float32, bins: int, sampling_ratio: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The points of each bin along a side: the cell below, int64 (bins, points), -1 outside; and how far beyond it."""
    one = np.float32(1)
    size = max(end - start, one) / np.float32(bins)
    points = sampling_ratio if sampling_ratio > 0 else max(1, int(np.ceil(size)))
    low, part = np.full((bins, points), -1, np.int64), np.zeros((bins, points), np.float32)
    for i in range(bins):
        for j in range(points):
            at = start + np.float32(i) * size + (np.float32(j) + np.float32(0.5)) * size / np.float32(points)
            if at >= -one and at <= np.float32(length):
                at = max(at, np.float32(0))
                low[i, j] = min(int(at), length - 1)
                part[i, j] = at - np.float32(int(at)) if at < length - 1 else np.float32(0)
    return low, part


@compiled
def _add_point(sums: np.ndarray, rows: np.ndarray, y: int, x: int, part_y: np.float32, part_x: np.float32) -> None:
    """Adds a point's channels, interpolated between its four neighbours, to the sums (C,) of its bin."""
    above, below = rows[y], rows[min(y + 1, rows.shape[0] - 1)]
    right = min(x + 1, rows.shape[1] - 1)
    one = np.float32(1)
    rest_y, rest_x = one - part_y, one - part_x
    a, b, c, d = rest_y * rest_x, rest_y * part_x, part_y * rest_x, part_y * part_x
    for channel in range(len(sums)):
        sums[channel] += (
            a * above[x, channel] + b * above[right, channel] + c * below[x, channel] + d * below[right, channel]
        )
