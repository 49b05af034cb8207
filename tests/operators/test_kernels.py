"""Layers with other kernels say what they said; an image says it to the bit alone and in a batch."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from prelabel.operators import kernels
from prelabel.operators.kernels import LEAST_CHANNELS, LEAST_PIXELS, take_quick_kernels

MANY = LEAST_CHANNELS
LAYERS = {
    "3 x 3": nn.Conv2d(MANY, MANY + 32, 3, padding=1),
    "3 x 3, no bias": nn.Conv2d(MANY, MANY, 3, padding=1, bias=False),
    "3 x 3, few channels": nn.Conv2d(16, 24, 3, padding=1, stride=2),
    "3 x 3, dilated": nn.Conv2d(MANY, MANY, 3, padding=2, dilation=2),
    "1 x 1": nn.Conv2d(48, 80, 1),
    "1 x 1, stride 2": nn.Conv2d(48, 80, 1, stride=2, bias=False),
}
SIZES = [(24, 24), (25, 34), (61, 47), (1, LEAST_PIXELS), (10, 10)]
SMALL = 5, 7


def error(found: Tensor, layer: nn.Module, values: Tensor) -> float:
    """The largest, in standard deviations of what is right: the layer's own in float64."""
    right = deepcopy(layer).double()(values.double())
    return float((found - right).abs().max() / right.std())


@pytest.mark.parametrize(
    ("name", "size"), [*product(LAYERS, SIZES), *((name, SMALL) for name in LAYERS if name.startswith("3 x 3"))]
)
@torch.inference_mode()
def test_convolutions(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(sum(size))
    layer, maps = LAYERS[name], torch.randn(3, LAYERS[name].in_channels, *size)
    quick = deepcopy(layer)
    take_quick_kernels(quick)
    for given in (maps, maps.to(memory_format=torch.channels_last)):
        found = quick(given)
        assert error(found, layer, maps) < 2e-4
        for alone, among in zip(given.split(1), found.split(1), strict=True):
            assert torch.equal(quick(alone), among)
    assert found.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_a_large_linear_layer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8192, 1024)
    quick, values = deepcopy(layer), torch.randn(5, 8192)
    with patch.object(kernels, "_linear", wraps=kernels._linear) as used:
        take_quick_kernels(quick)
        assert error(quick(values), layer, values) < 1e-4
    assert used.call_count == 1
    torch.testing.assert_close(quick(values[:, None]), layer(values[:, None]))  # other shapes, by torch itself
    assert quick(values[:0]).shape == (0, 1024)


@pytest.mark.parametrize("name", ["3 x 3", "1 x 1"])
@torch.inference_mode()
def test_what_kernels_are_not_for_is_torchs_own(name: str) -> None:
    layer = LAYERS[name]
    quick = deepcopy(layer)
    take_quick_kernels(quick)
    channels = layer.in_channels
    for maps in (torch.randn(1, channels, *SMALL), torch.randn(channels, 30, 30), torch.zeros(0, channels, 30, 30)):
        torch.testing.assert_close(quick(maps), layer(maps))
    large = torch.randn(1, channels, 30, 30)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(large), layer(large))
        assert quick(large).dtype == torch.bfloat16


def test_only_what_they_can_is_given_to_them() -> None:
    network = nn.Sequential(
        *LAYERS.values(),
        nn.Conv2d(MANY, MANY, 3, padding="same"),
        nn.Conv2d(MANY, MANY, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(MANY, MANY, 1, groups=2),
        nn.Conv1d(MANY, MANY, 3),
        nn.Linear(64, 64),
    )
    network = deepcopy(network)
    take_quick_kernels(network)
    assert ["forward" in vars(layer) for layer in network] == [True] * len(LAYERS) + [False] * 5
