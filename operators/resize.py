"""A photograph made as small as a network wants it, without touching the pixels that don't count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prelabel.schemas.compiled import compiled

Size = tuple[int, int]
"""(height, width) in pixels."""


def resize_normalized(image: Tensor, size: Size, mean: list[float], std: list[float]) -> Tensor:
    """What `ToTensor`, normalizing and `interpolate(mode="bilinear", align_corners=False)` make, but for rounding.

    Interpolating first, and only then normalizing, comes to the same, and needs four bytes for each number of the
    output; of a large image the rest is never looked at.

    Args:
        image: uint8 (C, height, width), on the processor
        size: of the output
        mean, std: of each channel, where pixels are 0..1

    Returns:
        float32 (C, *size)
    """
    resized = np.empty((image.shape[0], *size), np.float32)
    rows, columns = (_taps(before, after) for before, after in zip(image.shape[1:], size, strict=True))
    scale = 1 / (255 * np.array(std))
    shift = -np.array(mean) / np.array(std)
    _resize(image.numpy(), *rows, *columns, scale.astype(np.float32), shift.astype(np.float32), resized)
    return torch.from_numpy(resized)


def _taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place of the output the two of the input between which it lies, and the weight of the second one.

    Pixels are squares whose centers are at one half; borders repeat. As in torch, on one thread, the scale is
    a float32, and so is the place, rounded once.
    """
    scale = np.float64(np.float32(before) / np.float32(after))
    places = np.maximum((scale * (np.arange(after) + 0.5) - 0.5).astype(np.float32), 0)
    first = np.minimum(places.astype(np.int64), before - 1)
    weight = (places - first).clip(0, 1).astype(np.float32)
    return first, np.minimum(first + 1, before - 1), weight


@compiled
def _resize(
    image: np.ndarray,
    tops: np.ndarray,
    bottoms: np.ndarray,
    downs: np.ndarray,
    lefts: np.ndarray,
    rights: np.ndarray,
    alongs: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    out: np.ndarray,
) -> None:
    one = np.float32(1)
    for channel in range(out.shape[0]):
        for row in range(out.shape[1]):
            above, below = image[channel, tops[row]], image[channel, bottoms[row]]
            down = downs[row]
            for column in range(out.shape[2]):
                left, right, along = lefts[column], rights[column], alongs[column]
                upper = (one - along) * np.float32(above[left]) + along * np.float32(above[right])
                lower = (one - along) * np.float32(below[left]) + along * np.float32(below[right])
                value = (one - down) * upper + down * lower
                out[channel, row, column] = value * scale[channel] + shift[channel]
