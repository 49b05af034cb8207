"""A network made ready says what it said before; RoIAlign says it to the bit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detectors import rcnn
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import MaskRCNN, backbone_utils
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from prelabel.operators.prepare import prepare
from prelabel.operators.roi_align import pool_channels_last

CPU = torch.device("cpu")
SIZES = [(200, 272), (200, 272)]


def resnet_fpn(norm_layer: Callable[..., nn.Module]) -> nn.Module:
    return backbone_utils.resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm_layer)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(get_model, "resnet18", weights=None),
    "mobilenet_v3_small": partial(get_model, "mobilenet_v3_small", weights=None),
    "resnet50_fpn": partial(resnet_fpn, nn.BatchNorm2d),
    "frozen": partial(resnet_fpn, FrozenBatchNorm2d),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norms_are_folded_and_nothing_changes(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
    image = torch.rand(2, 3, 96, 128)
    with torch.inference_mode():
        before: Any = network(image)
        after: Any = prepare(deepcopy(network), CPU)(image)
    pairs = [(before, after)] if isinstance(before, Tensor) else [(before[key], after[key]) for key in before]
    for one, other in pairs:
        np.testing.assert_allclose(other, one, atol=1e-5 * float(one.abs().max()))
    left = prepare(network, CPU).modules()
    assert not any(isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d) for module in left)


def test_what_somebody_listens_to_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    heard: list[Tensor] = []
    network[1].register_forward_hook(lambda *seen: heard.append(seen[2]))
    prepare(network, CPU)(torch.rand(1, 3, 8, 8))
    assert len(heard) == 1
    assert [type(module) for module in network] == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.Identity]


def random_boxes(count: int) -> Tensor:
    """Of all sizes, some beyond the image, one empty."""
    boxes = torch.rand(count, 4) * torch.tensor([272.0, 200.0, 150.0, 150.0])
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * torch.rand(count, 1) ** 2
    boxes[0], boxes[1] = torch.tensor([-90.0, -90.0, 400.0, 400.0]), torch.tensor([50.0, 60.0, 50.0, 60.0])
    boxes[2] = torch.tensor([900.0, 900.0, 950.0, 950.0])
    return boxes


@pytest.mark.parametrize(("levels", "sampling_ratio", "threads"), [(4, 2, 1), (1, 2, 2), (3, 0, 2)])
def test_roi_align_is_torchvisions_to_the_bit(levels: int, sampling_ratio: int, threads: int) -> None:
    torch.manual_seed(levels)
    names = [str(level) for level in range(levels)]
    maps = {
        name: torch.randn(2, 12, 50 >> level, 68 >> level).to(memory_format=torch.channels_last)
        for level, name in enumerate(names)
    } | {"pool": torch.zeros(2, 12, 3, 3)}
    boxes = [random_boxes(40), random_boxes(25)]
    pool = MultiScaleRoIAlign(names, (7, 5), sampling_ratio)
    expected = pool(maps, boxes, SIZES)
    pool_channels_last(pool)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(pool(maps, boxes, SIZES), expected)
        assert pool(maps, [box[:0] for box in boxes], SIZES).shape == (0, 12, 7, 5)
    finally:
        torch.set_num_threads(before)
    assert pool(maps, [torch.full((1, 4), torch.nan)] * 2, SIZES).shape == (2, 12, 7, 5)


def test_what_convolutions_get_is_the_same_and_lies_as_they_like_it() -> None:
    network = rcnn(MaskRCNN)
    with torch.inference_mode():
        maps = network.backbone(torch.rand(2, 3, 96, 160).to(memory_format=torch.channels_last))
        boxes = [random_boxes(20), random_boxes(15)]
        pools = network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool
        expected = [pool(maps, boxes, [(96, 160)] * 2) for pool in pools]
        pool_channels_last(network)
        found = [pool(maps, boxes, [(96, 160)] * 2) for pool in pools]
    assert all(map(torch.equal, found, expected))
    assert [one.is_contiguous(memory_format=torch.channels_last) for one in found] == [False, True]
    assert found[0].is_contiguous()
