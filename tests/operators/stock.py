"""Stock torchvision, one image at a time, masks pasted and encoded in full size: what models are held to."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models import detection

from prelabel.operators.base import Instances, Model, Task
from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.schemas.rle import decode

DETECT = frozenset({Task.DETECT})
TIED = 1e-6
SEGMENT = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})


def stock(network: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
    """What the network itself says of this image alone."""
    with torch.inference_mode():
        (found,) = network.eval()([image.float() / 255])
    return {name: value.numpy() for name, value in found.items()}


def assert_equal(found: Instances | None, expected: dict[str, np.ndarray]) -> None:
    """The same objects in the same order; two whose scores are equal up to rounding may have changed places."""
    assert found is not None
    order = np.arange(len(expected["boxes"]))
    for i, box in enumerate(found.boxes):
        tied = i + np.flatnonzero(np.abs(expected["scores"][order[i:]] - expected["scores"][order[i]]) < TIED)
        nearest = tied[np.abs(expected["boxes"][order[tied]] - box).max(1).argmin()]
        order[i], order[nearest] = order[nearest], order[i]
    np.testing.assert_allclose(found.boxes, expected["boxes"][order], atol=0.01)
    np.testing.assert_allclose(found.scores, expected["scores"][order], atol=1e-3)
    np.testing.assert_array_equal(found.category_ids, expected["labels"][order])


def assert_same_pixels(found: Instances | None, masks: np.ndarray) -> None:
    """Masks but for a few pixels, whose probability is the threshold up to rounding."""
    assert found is not None
    assert found.masks is not None
    for one, expected in zip(found.masks, masks, strict=True):
        assert (decode(one.rle) != (expected[0] > 0.5)).sum() <= max(2, 0.001 * one.area)


def counts(found: Instances | None) -> list[str]:
    assert found is not None
    assert found.masks is not None
    return [mask.rle.counts for mask in found.masks]


def stock_counts(masks: np.ndarray) -> list[str]:
    return [coco_mask.encode(np.asfortranarray(mask[0] > 0.5))["counts"].decode() for mask in masks]


def predict_one(model: Model, image: Tensor, tasks: frozenset[Task] = DETECT) -> Instances:
    (prediction,) = model.predict([image], tasks)
    assert prediction.instances is not None
    return prediction.instances


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Blurred noise: something at each scale."""
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)


def random_maskrcnn() -> detection.MaskRCNN:
    torch.manual_seed(3)
    network = build_scenes_network()
    network.roi_heads.score_thresh = 0.0
    return network
