"""Of torch's own kernels for the processor the quick ones, where torch by itself would take others: float32 alone.

- Convolutions of 3 x 3 with many channels: NNPACK makes a tile of 6 x 6 outputs with 64 multiplications instead of 324
  (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016), and rounds to some 1e-5.
- Convolutions of 1 x 1, and linear layers of many weights: oneDNN. Torch takes MKL, which on other makers' processors
  leaves AVX-512 aside.

An image's neighbours in a batch change nothing: NNPACK gets one image at a time, and small maps of larger kernels go
through oneDNN always, as torch by itself has it for two images and more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

LEAST_CHANNELS = 128
LEAST_PIXELS = 24 * 24
"""Of a map, for NNPACK; for smaller ones, such as objects' masks, getting the weights ready takes too long."""
LEAST_POINTS = 10 * 10
"""Of a map, for convolutions of 1 x 1; smaller ones are MKL's, which is quicker on what is narrow."""
LEAST_WEIGHTS = 2**23
"""Of a linear layer: it gets a copy of them in the order that oneDNN likes, which the small ones do without."""
_ONEDNN: Any = torch.ops.mkldnn


def take_quick_kernels(network: nn.Module) -> None:
    """Makes layers of a network use them, which is on the processor, and for inference.

    They return the same but for rounding. Where this build of torch has no such kernel, layers stay as they are.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for module in network.modules():
        if "forward" not in vars(module) and (kernel := _kernel_of(module)):
            module.forward = partial(_forward, module, kernel)


def _kernel_of(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if type(module) is nn.Linear and module.weight.numel() >= LEAST_WEIGHTS and hasattr(_ONEDNN, "_linear_pointwise"):
        packed = cache(partial(_ONEDNN._reorder_linear_weight, module.weight.detach(), None))  # in bfloat16 never made
        return partial(_linear, packed, module.bias)
    if type(module) is not nn.Conv2d or module.groups > 1 or module.padding_mode != "zeros":
        return None
    if isinstance(module.padding, str):
        return None
    is_wide = min(module.in_channels, module.out_channels) >= LEAST_CHANNELS
    is_plain = module.stride == module.padding == module.dilation == (1, 1) and module.kernel_size == (3, 3)
    if is_wide and is_plain and torch.backends.nnpack.is_available():
        return partial(_by_tiles, module, cache(module.weight.detach().contiguous))
    return partial(_by_onednn, module)


def _forward(layer: Any, kernel: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    found: Tensor = kernel(values) if _suits(layer, values) else type(layer).forward(layer, values)
    return found


def _suits(layer: nn.Module, values: Tensor) -> bool:
    """Whether the kernel takes such values, and is quicker."""
    if values.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not values.numel():
        return False
    if isinstance(layer, nn.Linear):
        return values.ndim == 2
    return values.ndim == 4 and (layer.kernel_size != (1, 1) or _pixels(values) >= LEAST_POINTS)


def _pixels(maps: Tensor) -> int:
    return maps.shape[2] * maps.shape[3]


def _linear(packed: Callable[[], Tensor], bias: Tensor | None, values: Tensor) -> Tensor:
    found: Tensor = _ONEDNN._linear_pointwise(values, packed(), bias, "none", [], "")
    return found


def _by_onednn(layer: Any, maps: Tensor) -> Tensor:
    return torch.mkldnn_convolution(maps, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, 1)


def _by_tiles(layer: nn.Conv2d, weight: Callable[[], Tensor], maps: Tensor) -> Tensor:
    """Maps (N, C, H, W), and so is what comes of them, the channels of a pixel together.

    The weights are layer's, each channel's by itself; a copy that small maps do without.
    """
    if _pixels(maps) < LEAST_PIXELS:
        return _by_onednn(layer, maps)
    found = [torch._nnpack_spatial_convolution(_planes(one), weight(), layer.bias, 1, 1) for one in maps.split(1)]
    together = [one.contiguous(memory_format=torch.channels_last) for one in found]
    return torch.cat(together) if len(together) > 1 else together[0]


def _planes(maps: Tensor) -> Tensor:
    """Maps (1, C, H, W), each channel by itself: three times as fast as `contiguous`, which has no kernel for this."""
    _, channels, height, width = maps.shape
    rows = maps.permute(0, 2, 3, 1).contiguous().view(height * width, channels)
    return rows.t().contiguous().view(1, channels, height, width)
