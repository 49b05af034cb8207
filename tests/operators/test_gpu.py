"""What models do with a GPU, without one: its tensors and the host's don't meet, and neither waits for long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pretend_gpu import PretendGpu, pretend_gpu
from stock import assert_equal, random_image
from test_segmenter import Colors
from tiny_detectors import rcnn, retinanet, ssd
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN

from prelabel.operators.base import Model, Prediction
from prelabel.operators.classifier import ClassifierModel
from prelabel.operators.detector import DetectorModel
from prelabel.operators.precision import BFloat16Model
from prelabel.operators.segmenter import SegmenterModel
from prelabel.operators.tiled import TiledModel

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a pretended GPU would stand in a real one's way")

SIZES = [(64, 96), (70, 105), (64, 90), (64, 96), (72, 100), (66, 97)]
IMAGES = [random_image(*size, seed=seed) for seed, size in enumerate(SIZES)]
Build = Callable[[str], Model]
MASK_RCNN = partial(rcnn, MaskRCNN)


def detector(make: Callable[[], nn.Module], device: str) -> Model:
    return DetectorModel(make(), name="tiny:detector", device=device)


def segmenter(device: str) -> Model:
    return SegmenterModel(Colors(21), name="tiny:segmenter", device=device, resize=64)


def classifier(device: str) -> Model:
    torch.manual_seed(0)
    network = resnet18(num_classes=7)
    return ClassifierModel(network, name="tiny:classifier", categories=None, score_threshold=0.01, device=device)


def tiled(device: str) -> Model:
    return TiledModel(detector(MASK_RCNN, device), 64, 0.25)


DETECTORS: dict[str, Build] = {
    "retinanet": partial(detector, retinanet),
    "ssd": partial(detector, partial(ssd, score_thresh=0.2)),
    "faster": partial(detector, rcnn),
    "mask": partial(detector, MASK_RCNN),
}
MODELS: dict[str, Build] = DETECTORS | {"segmenter": segmenter, "classifier": classifier, "tiled": tiled}


def look(model: Model, images: Sequence[Tensor]) -> list[Prediction]:
    if isinstance(model, SegmenterModel):
        return [model.predict([image], model.tasks)[0] for image in images]
    return model.predict(images, model.tasks)


def look_on_gpu(build: Build, images: Sequence[Tensor]) -> tuple[list[Prediction], PretendGpu]:
    """The second time: the first one finds anchors and the like."""
    with pretend_gpu() as gpu:
        model = build("cuda")
        look(model, images)
        gpu.waits.clear()
        return look(model, images), gpu


@pytest.mark.parametrize("name", MODELS)
def test_it_says_the_same_as_a_processor(name: str) -> None:
    here = look(MODELS[name]("cpu"), IMAGES)
    there, _ = look_on_gpu(MODELS[name], IMAGES)
    for expected, found in zip(here, there, strict=True):
        if one := expected.instances:
            assert_equal(found.instances, {"boxes": one.boxes, "scores": one.scores, "labels": one.category_ids})
        for part in ("instances", "semantic"):
            assert areas(getattr(found, part)) == pytest.approx(areas(getattr(expected, part)), rel=0.02, abs=4)
        if expected.labels:
            np.testing.assert_array_equal(found.labels.category_ids, expected.labels.category_ids)
            np.testing.assert_allclose(found.labels.scores, expected.labels.scores, atol=1e-5)
    assert sum(len(part) for one in here for part in vars(one).values() if part is not None) > 10


def areas(found: Any) -> list[int]:
    return sorted(mask.area for mask in getattr(found, "masks", None) or [])


@pytest.mark.parametrize("name", DETECTORS)
def test_a_batch_waits_as_often_as_an_image(name: str) -> None:
    few, many = (sum(look_on_gpu(DETECTORS[name], images)[1].waits.values()) for images in (IMAGES[:1], IMAGES))
    assert many <= few + 6  # turns of the suppression
    assert many < 30


def test_bfloat16_reaches_the_host_as_float32() -> None:
    def build(device: str) -> Model:
        return BFloat16Model(detector(MASK_RCNN, device), torch.device(device))

    predictions, gpu = look_on_gpu(build, IMAGES)
    for prediction in predictions:
        assert prediction.instances is not None
        assert len(prediction.instances) > 10
        assert prediction.instances.boxes.dtype == prediction.instances.scores.dtype == np.float32
    assert sum(gpu.waits.values()) < 30


def test_the_pretended_gpu_is_as_strict_as_a_real_one() -> None:
    with pretend_gpu() as gpu:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(AssertionError, match="here and there"):
            there + here
        with pytest.raises(AssertionError, match="as an array"):
            there.numpy()
        assert not gpu.waits
        assert there.sum().item() == 3
        assert here.to("cuda", non_blocking=True).cpu().tolist() == there[there > 0].tolist() == [1, 1, 1]
        assert gpu.waits == {"_local_scalar_dense": 1, "to the host": 1, "index": 1, "tolist": 1}
