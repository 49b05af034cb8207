"""A network made ready to predict: the same results but for rounding, sooner."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from prelabel.operators.kernels import take_quick_kernels
from prelabel.operators.roi_align import pool_channels_last

Network = TypeVar("Network", bound=nn.Module)
_RESIDUAL = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


def prepare(network: Network, device: torch.device) -> Network:
    """Takes the network over: in evaluation mode, on the device, and quick there.

    Batch norms become part of the convolutions before them, and the channels of a pixel lie together in memory, as
    convolutions like it; on a processor RoIAlign follows suit, and layers take torch's quickest kernels. Boxes move by
    some 1e-4 pixels.
    """
    network.eval().requires_grad_(False)
    _fold_batch_norms(network)
    network.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        pool_channels_last(network)
        take_quick_kernels(network)
    return network


def _fold_batch_norms(network: nn.Module) -> None:
    for owner in list(network.modules()):
        for first, second in list(_in_turn(owner)):
            convolution: Any = getattr(owner, first, None)
            norm: Any = getattr(owner, second, None)
            if _is_plain(convolution, nn.Conv2d) and _is_plain(norm, nn.BatchNorm2d, FrozenBatchNorm2d):
                setattr(owner, first, fuse_conv_bn_eval(convolution, norm))
                setattr(owner, second, nn.Identity())


def _is_plain(module: Any, *kinds: type[nn.Module]) -> bool:
    """Of just that kind, and nobody listens to it."""
    return type(module) in kinds and not module._forward_hooks and not module._forward_pre_hooks


def _in_turn(owner: Any) -> Iterator[tuple[str, str]]:
    """Names of children of which the second is known to see what the first returns, and nothing else to see it."""
    if type(owner).forward is nn.Sequential.forward:
        yield from pairwise(owner._modules)
    elif type(owner) is IntermediateLayerGetter:
        yield from (pair for pair in pairwise(owner._modules) if pair[0] not in owner.return_layers)
    elif type(owner) in (BasicBlock, Bottleneck):
        yield from _RESIDUAL
    elif type(owner) is ResNet:
        yield "conv1", "bn1"
