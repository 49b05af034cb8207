"""Images made smaller before they are normalized are what torchvision's transform makes of them, but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from prelabel.operators.batched import batch_postprocessing

STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIZES = [(480, 640), (1081, 1919), (333, 1777), (1500, 7), (320, 320), (40, 30)]
"""Of images; the last ones grow."""


def ours(transform: GeneralizedRCNNTransform) -> GeneralizedRCNNTransform:
    """As detectors have it."""
    network = GeneralizedRCNN(nn.Identity(), nn.Identity(), nn.Identity(), transform.eval())
    batch_postprocessing(network)
    return transform


@pytest.mark.parametrize("height_width", SIZES, ids=str)
@pytest.mark.parametrize(
    "kind", [{"min_size": 320, "max_size": 640}, {"min_size": 0, "max_size": 0, "fixed_size": (300, 200)}]
)
def test_a_transform_is_stocks(height_width: tuple[int, int], kind: dict[str, object]) -> None:
    image = torch.randint(0, 256, (3, *height_width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected, _ = GeneralizedRCNNTransform(**kind, **STATISTICS).eval()([image.float() / 255])
    found, _ = ours(GeneralizedRCNNTransform(**kind, **STATISTICS))([image])
    assert found.image_sizes == expected.image_sizes
    # torch itself rounds places in other ways on one thread and on several: 2,000 pixels to 1e-4
    torch.testing.assert_close(found.tensors, expected.tensors, atol=1e-3, rtol=0)


def test_a_transform_with_a_forward_of_its_own_gets_what_it_expects() -> None:
    class Other(GeneralizedRCNNTransform):
        def forward(self, images, targets=None):  # type: ignore[no-untyped-def]
            return self.resize(self.normalize(images[0]) * 2)

    image = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8)
    found, _ = ours(Other(320, 640, **STATISTICS))([image])
    expected, _ = Other(320, 640, **STATISTICS).eval()([image.float() / 255])
    torch.testing.assert_close(found, expected)
