"""Classifiers against stock torchvision: the weights' own preset and the network, one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights

from prelabel.operators.base import Task
from prelabel.operators.classifier import ClassifierModel
from prelabel.schemas.categories import COCO, Category, CategorySet
from prelabel.schemas.errors import ModelError

CLASSIFY = frozenset({Task.CLASSIFY})
SIZES = [(60, 90), (300, 200), (224, 224), (1, 1), (3, 200), (200, 20_000)]


def random_network(name: str = "resnet18", num_classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return get_model_builder(name)(weights=None, num_classes=num_classes).eval()


def random_images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES]
    return [*images, images[0][:1].expand(3, -1, -1)]  # the last one gray


def stock(network: nn.Module, preset: Any, image: Tensor) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = network(preset(image)[None]).softmax(1)[0].numpy()
    return found


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_probabilities_are_stocks(name: str) -> None:
    preset, images = get_model_weights(name).DEFAULT.transforms(), random_images()
    expected = np.stack([stock(random_network(name), preset, image) for image in images])
    model = ClassifierModel(random_network(name), name=f"x:{name}", categories=None, preset=preset)
    np.testing.assert_allclose(model.probabilities(images), expected, atol=1e-5)
    np.testing.assert_allclose(model.probabilities(images[1:2]), expected[1:2], atol=1e-5)
    assert model.probabilities([]).shape == (0, 7)
    assert {model.input_size(*size) for size in SIZES} == {(224, 224)}


def test_labels_are_sorted_and_named() -> None:
    categories = CategorySet([Category(5, "crane"), Category(3, "dog"), Category(9, "crane")])
    network, (image, *_) = random_network(num_classes=3), random_images()
    model = ClassifierModel(network, name="x:y", categories=categories, score_threshold=0.3)
    scores = model.probabilities([image])[0].numpy()
    expected = sorted(((score, id_) for score, id_ in zip(scores, [5, 3, 9], strict=True) if score > 0.3), reverse=True)
    (prediction,) = model.predict([image], CLASSIFY)
    assert prediction.labels is not None
    assert list(zip(prediction.labels.scores, prediction.labels.category_ids, strict=True)) == expected
    assert 0 < len(expected) < 3
    assert model.tasks == CLASSIFY


def test_without_categories_they_are_numbered_from_0() -> None:
    model = ClassifierModel(random_network(), name="x:y", categories=None)
    assert model.categories.names[:2] == ("class 0", "class 1")
    assert model.category_ids.tolist() == list(range(7))


def test_a_strip_takes_little_memory() -> None:
    model = ClassifierModel(random_network(), name="x:y", categories=None)  # resized as a whole: 650 GB
    strip = torch.arange(256, dtype=torch.uint8).repeat(3, 1, 40_000)
    center = strip[:, :, strip.shape[2] // 2 - 64 :][:, :, :128]
    torch.testing.assert_close(model.probabilities([strip]), model.probabilities([center]))
    upright = [strip.mT, center.mT]
    torch.testing.assert_close(*model.probabilities(upright).unbind())


class Answering(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


def test_what_is_no_classifier() -> None:
    with pytest.raises(ModelError, match="has 7 classes, and there are 80 categories"):
        ClassifierModel(random_network(), name="x:y", categories=COCO)
    with pytest.raises(ModelError, match=r"does not return logits \(N, K\)"):
        ClassifierModel(Answering(lambda images: images), name="x:y", categories=None)
    with pytest.raises(ModelError, match="fails on one float32"):
        ClassifierModel(Answering(lambda images: images["x"]), name="x:y", categories=None)
