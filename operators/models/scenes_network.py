"""The bundled demo network: a small Mask R-CNN for the generated scenes, and a semantic head on the same feature maps.

Layout as in He et al., "Mask R-CNN" (2017), on a ResNet of basic blocks (He et al., 2015) with a feature pyramid (Lin
et al., 2017), all narrow enough for a laptop's processor; with the head it is a panoptic feature pyramid network
(Kirillov et al., 2019). ``tools/train_scenes.py`` and ``tools/train_semantic.py`` made the weights beside this file.
"""

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign

SCENES_WEIGHTS = Path(__file__).with_name("scenes.safetensors")
NUM_CLASSES = 6
"""Background and the five thing categories of the scenes; labels 1 to 5 are their category ids."""
NUM_SEMANTIC_CLASSES = 10
"""Void, the things and the four kinds of stuff; labels 1 to 9 are their category ids."""

_WIDTHS = (32, 64, 128, 192)
_PYRAMID = 64
_SEMANTIC = 48
_ANCHOR_SIZES = ((24,), (48,), (88,), (144,))


def build_scenes_network() -> MaskRCNN:
    """Return the untrained network, in training mode: torchvision's detection interface, labels 1 to 5."""
    levels = ["0", "1", "2"]
    return MaskRCNN(
        ScenesBackbone(),
        min_size=256,
        max_size=320,
        rpn_anchor_generator=AnchorGenerator(_ANCHOR_SIZES, ((0.5, 1.0, 2.0),) * len(_ANCHOR_SIZES)),
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=128,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(_PYRAMID * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, NUM_CLASSES),
        box_batch_size_per_image=48,
        box_detections_per_img=50,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(_PYRAMID, (64, 64, 64), dilation=1),
        mask_predictor=MaskRCNNPredictor(64, 64, NUM_CLASSES),
    )


class ScenesBackbone(nn.Module):
    """ResNet of basic blocks and feature pyramid: float (N, 3, H, W) to four maps of 64 channels, strides 4 to 32."""

    out_channels = _PYRAMID

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv2dNormActivation(3, 24, stride=2), Conv2dNormActivation(24, _WIDTHS[0], stride=2))
        self.layers = nn.ModuleList(
            nn.Sequential(_first_block(before, after), BasicBlock(after, after))
            for before, after in pairwise((_WIDTHS[0], *_WIDTHS))
        )
        self.pyramid = FeaturePyramidNetwork(list(_WIDTHS), _PYRAMID)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the pyramid, finest map first, under the keys "0" to "3"."""
        features = self.stem(images)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for level, layer in enumerate(self.layers):
            features = layer(features)
            maps[str(level)] = features
        return self.pyramid(maps)


class SemanticHead(nn.Module):
    """The pyramid's maps, brought to the finest one's size and summed: class scores (N, 10, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Conv2dNormActivation(_PYRAMID, _SEMANTIC) for _ in _WIDTHS)
        self.scores = nn.Sequential(
            Conv2dNormActivation(_SEMANTIC, _SEMANTIC), nn.Conv2d(_SEMANTIC, NUM_SEMANTIC_CLASSES, kernel_size=1)
        )

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Return the scores for a pyramid as the backbone makes it."""
        size = maps["0"].shape[-2:]
        levels = [level(maps[str(number)]) for number, level in enumerate(self.levels)]
        total = torch.stack([interpolate(one, size, mode="bilinear", align_corners=False) for one in levels]).sum(0)
        scores: Tensor = self.scores(total)
        return scores


def _first_block(before: int, after: int) -> BasicBlock:
    if before == after:
        return BasicBlock(before, after)
    shortcut = Conv2dNormActivation(before, after, kernel_size=1, stride=2, activation_layer=None)
    return BasicBlock(before, after, stride=2, downsample=shortcut)
