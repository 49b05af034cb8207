"""Tiny random detectors of torchvision's classes, as sure of some boxes as trained ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

Network = TypeVar("Network", RetinaNet, SSD)


class TinyBackbone(nn.Module):
    """Three levels, as wide apart in what they say as those of a trained network."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, 16, 3, 2, 1) for channels in (3, 16, 16, 16))
        self.pyramid = FeaturePyramidNetwork([16] * 3, 16)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {}
        for level, layer in enumerate(self.layers):
            images = layer(images).tanh() * 3
            maps[str(level)] = images
        found: dict[str, Tensor] = self.pyramid({name: maps[name] for name in "123"})
        return found


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)


def decided(network: Network) -> Network:
    """With a head that is as sure of some boxes as a trained one."""
    for layer in network.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return network.eval()


def retinanet(kind: type[RetinaNet] = RetinaNet, **options: Any) -> RetinaNet:
    torch.manual_seed(1)
    network = kind(TinyBackbone(), 12, anchor_generator=anchors(), min_size=96, max_size=160, **options)
    return decided(network)


def ssd(**options: Any) -> SSD:
    torch.manual_seed(3)
    backbone: Any = TinyBackbone()
    backbone.out_channels = [16] * 3
    network = SSD(backbone, DefaultBoxGenerator([[2], [2, 3], [2]]), (160, 96), 12, **options)
    return decided(network)


def rcnn(kind: Callable[..., FasterRCNN] = FasterRCNN, **options: Any) -> FasterRCNN:
    torch.manual_seed(2)
    pools: dict[str, Any] = {"box_roi_pool": MultiScaleRoIAlign(["1", "2", "3"], 7, 2)}
    if kind is MaskRCNN:
        pools["mask_roi_pool"] = MultiScaleRoIAlign(["1", "2", "3"], 14, 2)
        pools |= {"mask_head": MaskRCNNHeads(16, (16,), 1), "mask_predictor": MaskRCNNPredictor(16, 16, 12)}
    few = {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 120, "box_head": TwoMLPHead(16 * 49, 32)}
    sizes = {"min_size": 96, "max_size": 160, "rpn_anchor_generator": anchors()}
    network = kind(TinyBackbone(), box_predictor=FastRCNNPredictor(32, 12), **(few | sizes | pools | options)).eval()
    for layer in (network.roi_heads.box_predictor.cls_score, network.roi_heads.box_predictor.bbox_pred):
        layer.weight.data *= 20
    network.rpn.head.cls_logits.weight.data *= 50
    network.rpn.head.bbox_pred.weight.data *= 20
    return network
