"""Semantic models against stock torchvision: its preset, the same network, and the scores upsampled in full size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights as Weights
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.transforms.functional import resize

from prelabel.operators.base import Segments, Task
from prelabel.operators.segmenter import MOST_PIXELS, SegmenterModel
from prelabel.schemas.categories import COCO, VOC, Category, CategorySet, numbered
from prelabel.schemas.errors import ModelError
from prelabel.schemas.rle import decode

SEMANTIC = frozenset({Task.SEGMENT_SEMANTIC})
SIDE = 96  # of the inputs here; 520 would only take longer
STOCK: Any = Weights.DEFAULT.transforms


class Colors(nn.Module):
    """Scores from an image's colors, at an eighth of its size and back, as torchvision's networks have it."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = nn.Conv2d(3, labels, kernel_size=1, stride=8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": interpolate(self.scores(images), images.shape[-2:], mode="bilinear", align_corners=False)}


def random_lraspp() -> nn.Module:
    """With weights so large that many of its 21 classes win somewhere."""
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(2)
    return network


def stock(network: nn.Module, image: Tensor, side: int = SIDE) -> np.ndarray:
    """The label of every pixel."""
    with torch.inference_mode():
        scores = network.eval()(STOCK(resize_size=side)(image)[None])["out"]
        return interpolate(scores, image.shape[1:], mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def label_map_of(segments: Segments | None, size: tuple[int, ...]) -> np.ndarray:
    assert segments is not None
    labels, layers = np.zeros(size, int), np.zeros(size, int)
    for category_id, mask in zip(segments.category_ids, segments.masks, strict=True):
        labels += category_id * decode(mask.rle)
        layers += decode(mask.rle)
    assert layers.max(initial=0) <= 1
    assert len(set(segments.category_ids.tolist())) == len(segments)
    return labels


def predict_one(model: SegmenterModel, image: Tensor) -> np.ndarray:
    (prediction,) = model.predict([image], SEMANTIC)
    return label_map_of(prediction.semantic, image.shape[1:])


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed)) * 255
    return interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)


GRAY = random_image(60, 90)[:1].expand(3, -1, -1)


@pytest.mark.parametrize("image", [random_image(150, 213), random_image(120, 80), GRAY], ids=["wide", "tall", "gray"])
def test_an_image_is_as_stock(image: Tensor) -> None:
    model = SegmenterModel(random_lraspp(), name="torchvision:lraspp_mobilenet_v3_large", resize=SIDE)
    expected = stock(random_lraspp(), image)
    assert len(np.unique(expected)) > 3
    assert (predict_one(model, image) == expected).mean() > 0.9999  # rounding decides on ties
    assert model.tasks == SEMANTIC
    assert model.categories == VOC


def test_at_the_usual_size() -> None:
    image = random_image(100, 140)
    model = SegmenterModel(Colors(21), name="colors", device="cpu")
    assert (predict_one(model, image) == stock(Colors(21), image, 520)).mean() > 0.9999


def test_alone_and_in_a_batch() -> None:
    model = SegmenterModel(random_lraspp(), name="lraspp", resize=SIDE)
    images = [random_image(height, 2 * height, seed) for seed, height in enumerate((50, 96, 200))]
    assert len({model.input_size(*image.shape[1:]) for image in images}) == 1
    for image, together in zip(images, model.predict(images, SEMANTIC), strict=True):
        assert (label_map_of(together.semantic, image.shape[1:]) == predict_one(model, image)).mean() > 0.9999


# ---- the size of the input


def test_input_size_is_stocks_up_to_the_limit() -> None:
    model = SegmenterModel(Colors(21), name="colors")
    sides = np.random.default_rng(0).integers(1, 3000, (100, 2)).tolist()
    limited = 0
    for height, width in [*sides, [1, 1], [520, 520], [480, 640], [4000, 6000], [7, 50]]:
        size = model.input_size(height, width)
        stock_size = resize(torch.empty(3, height, width, device="meta"), [520]).shape[1:]
        if stock_size.numel() <= MOST_PIXELS:
            assert size == tuple(stock_size), (height, width)
        else:
            limited += 1
            assert 0.95 * MOST_PIXELS < size[0] * size[1] <= MOST_PIXELS
            assert size[0] / size[1] == pytest.approx(height / width, rel=0.1)
    assert limited > 2


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (200, 20_000), (20_000, 200)])
def test_extreme_images(size: tuple[int, int]) -> None:
    model = SegmenterModel(Colors(21), name="colors")
    height, width = model.input_size(*size)
    assert 0 < height * width <= MOST_PIXELS
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[0, :, size[1] // 2 :] = 255
    ends = [0, size[1] - 1]
    assert predict_one(model, image)[0, ends].tolist() == [stock(Colors(21), image[:, :1, [x]])[0, 0] for x in ends]


# ---- what labels stand for


def test_labels_with_and_without_a_background() -> None:
    image = random_image(90, 120)
    labels = stock(Colors(4), image)
    assert np.unique(labels).tolist() == [0, 1, 2, 3]
    plain = SegmenterModel(Colors(4), name="colors", resize=SIDE)
    assert plain.categories == numbered(4)
    np.testing.assert_array_equal(predict_one(plain, image), labels)
    three = CategorySet([Category(10, "a"), Category(20, "b"), Category(30, "c")])
    np.testing.assert_array_equal(
        predict_one(SegmenterModel(Colors(4), name="colors", categories=three, resize=SIDE), image), 10 * labels
    )
    four = CategorySet([*three, Category(5, "d")])
    np.testing.assert_array_equal(
        predict_one(SegmenterModel(Colors(4), name="colors", categories=four, resize=SIDE), image),
        np.array([10, 20, 30, 5])[labels],
    )


def test_an_image_of_background_alone_has_no_segments() -> None:
    network = Colors(4)
    nn.init.zeros_(network.scores.weight)
    nn.init.zeros_(network.scores.bias)  # then label 0 is the first of four equal ones
    (prediction,) = SegmenterModel(network, name="colors").predict([random_image(50, 60)], SEMANTIC)
    assert prediction.semantic is not None
    assert len(prediction.semantic) == 0


# ---- one line where it does not fit


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Colors(4), {"categories": COCO}, "3 classes besides the background, and there are 80 categories"),
        (nn.Identity(), {}, r"net does not return a dict with \"out\""),
        (nn.Linear(3, 4), {}, "net fails on one float32 .* give it torchvision's interface"),
    ],
)
def test_what_does_not_fit_is_said_at_once(network: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        SegmenterModel(network, name="net", **options)
    assert "\n" not in str(raised.value)
