"""Detectors against stock torchvision: the same network, one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stock import SEGMENT, assert_equal, counts, predict_one, random_image, random_maskrcnn, stock, stock_counts
from torch import Tensor, nn
from torchvision.models import detection, get_model_builder, list_models
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import clip_boxes_to_image

from prelabel.operators.base import Task
from prelabel.operators.detector import DetectorModel, padded_size
from prelabel.operators.models.scenes_network import ScenesBackbone
from prelabel.schemas.categories import COCO, COCO_PERSON, Category, CategorySet
from prelabel.schemas.errors import ModelError

BUILDERS = list_models(module=detection)
PROPOSE = frozenset({Task.PROPOSE})
KEYPOINTS = frozenset({Task.DETECT, Task.DETECT_KEYPOINTS})

# ---- the size of the input


@pytest.mark.parametrize("name", BUILDERS)
def test_input_size_is_stocks(name: str) -> None:
    with torch.device("meta"):
        transform = get_model_builder(name)(weights=None, weights_backbone=None).eval().transform
        sides = np.random.default_rng(0).integers(1, 3000, (30, 2)).tolist()
        for height, width in [*sides, [1, 1], [480, 640], [1, 700], [5000, 1], [1333, 800], [801, 1334]]:
            size = padded_size(transform, height, width)
            if 0 in size:  # so thin that torchvision refuses it
                with pytest.raises((RuntimeError, ZeroDivisionError)):
                    transform([torch.empty(3, height, width)])
            else:
                images, _ = transform([torch.empty(3, height, width)])
                assert size == tuple(images.tensors.shape[-2:]), (height, width)


class Unresized(GeneralizedRCNNTransform):
    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def test_a_transform_of_the_users_own_keeps_images_apart() -> None:
    own = Unresized(256, 320, [0.0] * 3, [1.0] * 3)
    assert padded_size(own, 100, 90) == (100, 90)
    assert padded_size(None, 100, 90) == (100, 90)


def test_images_of_one_input_size_may_differ_in_their_own() -> None:
    model = DetectorModel(random_maskrcnn(), name="scenes:random", score_threshold=0.0)
    images = [random_image(240, 300), random_image(480, 598, seed=1), random_image(252, 315, seed=2)]
    assert len({model.input_size(*image.shape[1:]) for image in images}) == 1
    for image, prediction in zip(images, model.predict(images, SEGMENT), strict=True):
        expected = stock(random_maskrcnn(), image)
        assert_equal(prediction.instances, expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (5000, 1), (200, 20_000)])
def test_degenerate_images(size: tuple[int, int]) -> None:
    model = DetectorModel(random_maskrcnn(), name="scenes:random", score_threshold=0.0)
    (prediction,) = model.predict([torch.zeros(3, *size, dtype=torch.uint8)], SEGMENT | PROPOSE)
    found, proposals = prediction.instances, prediction.proposals
    assert found is not None
    assert found.masks is not None
    assert len(found.masks) == len(found) == len(found.boxes) == len(found.category_ids)
    assert {mask.rle.size for mask in found.masks} <= {size}
    assert proposals is not None
    assert proposals.boxes.shape == (len(proposals), 4)


def test_the_first_image_leaves_no_trace() -> None:
    strip, image = torch.zeros(3, 40, 1333, dtype=torch.uint8), random_image(256, 320)
    model = DetectorModel(random_maskrcnn(), name="scenes:random", score_threshold=0.0)
    before = predict_one(model, strip)
    assert_equal(predict_one(model, image), stock(random_maskrcnn(), image))
    np.testing.assert_array_equal(predict_one(model, strip).boxes, before.boxes)


# ---- masks


def test_masks_are_stocks_bit_for_bit() -> None:
    network, image = random_maskrcnn(), random_image(200, 270)
    expected = stock(network, image)
    model = DetectorModel(random_maskrcnn(), name="scenes:random", score_threshold=0.0)
    found = predict_one(model, image, SEGMENT)
    assert len(found) == 50
    assert_equal(found, expected)
    assert counts(found) == stock_counts(expected["masks"])
    boxes_alone = predict_one(model, image)
    assert boxes_alone.masks is None
    np.testing.assert_array_equal(boxes_alone.boxes, found.boxes)
    assert counts(predict_one(model, image, SEGMENT)) == counts(found)


class Wrapped(nn.Module):
    """A detector that is not torchvision's, with full-size masks and labels in any order of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_maskrcnn()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{name: value.flip(0) for name, value in found.items()} for found in self.inner(images)]


def test_any_network_with_the_interface() -> None:
    image, categories = random_image(120, 150), CategorySet([Category(2, "two"), Category(4, "four")])
    expected = stock(random_maskrcnn(), image)
    known = np.isin(expected["labels"], [2, 4])
    model = DetectorModel(Wrapped(), name="python:mine", categories=categories, score_threshold=0.0)
    assert model.tasks == SEGMENT
    assert model.input_size(120, 150) == (120, 150)
    found = predict_one(model, image, SEGMENT)
    assert_equal(found, {key: value[known] for key, value in expected.items()})
    assert counts(found) == stock_counts(expected["masks"][known])
    with pytest.raises(ModelError, match="--categories"):
        DetectorModel(Wrapped(), name="python:mine")


class NothingInTheDark(Wrapped):
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        nothing = dict.fromkeys(("boxes", "scores", "labels", "masks"), torch.zeros(0))
        return [super(NothingInTheDark, self).forward([image])[0] if image.any() else nothing for image in images]


def test_nothing_found_may_have_any_shape() -> None:
    image, black = random_image(120, 150), torch.zeros(3, 120, 150, dtype=torch.uint8)
    model = DetectorModel(NothingInTheDark(), name="python:mine", categories=COCO, score_threshold=0.0)
    expected = counts(predict_one(model, image, SEGMENT))
    assert len(expected) > 10
    assert predict_one(model, black, SEGMENT).boxes.shape == (0, 4)
    together = model.predict([black, image], SEGMENT)
    assert [counts(prediction.instances) for prediction in together] == [[], expected]


# ---- proposals


def stock_proposals(network: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes that the network hands to its RoI heads, in pixels of the image, and the objectness of each."""
    with torch.inference_mode():
        small, _ = network.transform([image.float() / 255])
        maps = network.backbone(small.tensors)
        boxes = network.rpn(small, maps)[0][0]
        objectness, deltas = concat_box_prediction_layers(*network.rpn.head(list(maps.values())))
        decoded = network.rpn.box_coder.decode(deltas, network.rpn.anchor_generator(small, list(maps.values())))[:, 0]
        places = torch.cdist(boxes, clip_boxes_to_image(decoded, small.image_sizes[0])).argmin(1)
    return resize_boxes(boxes, small.image_sizes[0], image.shape[1:]), objectness[places, 0].sigmoid()


def test_proposals_are_the_region_proposal_networks() -> None:
    network, model = random_maskrcnn().eval(), DetectorModel(random_maskrcnn(), name="scenes:random")
    images = [random_image(240, 300), random_image(480, 598, seed=1)]
    for image, together in zip(images, model.predict(images, PROPOSE), strict=True):
        (alone,) = model.predict([image], PROPOSE)
        boxes, scores = stock_proposals(network, image)
        assert len(boxes) > 20
        for prediction in (alone, together):
            assert prediction.instances is None
            assert prediction.proposals is not None
            np.testing.assert_allclose(prediction.proposals.boxes, boxes, atol=0.01)
            np.testing.assert_allclose(prediction.proposals.scores, scores, atol=1e-3)
            assert (np.diff(prediction.proposals.scores) <= 0).all()


def test_all_tasks_share_one_forward_pass() -> None:
    model, image = DetectorModel(random_maskrcnn(), name="scenes:random", score_threshold=0.0), random_image(256, 320)
    network: Any = model.network
    runs: list[str] = []
    for part in ("backbone", "rpn", "roi_heads"):
        getattr(network, part).register_forward_hook(lambda *_, part=part: runs.append(part))
    (together,) = model.predict([image], SEGMENT | PROPOSE)
    assert runs == ["backbone", "rpn", "roi_heads"]
    segmented = predict_one(model, image, SEGMENT)
    assert together.instances is not None
    np.testing.assert_array_equal(together.instances.boxes, segmented.boxes)
    np.testing.assert_array_equal(together.instances.scores, segmented.scores)
    assert counts(together.instances) == counts(segmented)
    runs.clear()
    model.predict([image], PROPOSE)
    assert runs == ["backbone", "rpn"]


# ---- keypoints


def random_keypointrcnn() -> detection.KeypointRCNN:
    torch.manual_seed(3)
    return detection.KeypointRCNN(
        ScenesBackbone(),
        num_classes=2,
        min_size=128,
        max_size=160,
        rpn_anchor_generator=random_maskrcnn().rpn.anchor_generator,
        keypoint_head=KeypointRCNNHeads(64, (32,)),
        keypoint_predictor=KeypointRCNNPredictor(32, 17),
        box_score_thresh=0.0,
        box_detections_per_img=10,
    )


def test_keypoints_are_stocks() -> None:
    model = DetectorModel(random_keypointrcnn(), name="x:y", categories=COCO_PERSON, score_threshold=0.0)
    assert model.tasks == KEYPOINTS | PROPOSE
    images = [random_image(240, 300), random_image(480, 598, seed=1)]
    for image, together in zip(images, model.predict(images, KEYPOINTS), strict=True):
        expected = stock(random_keypointrcnn(), image)
        assert len(expected["keypoints"]) == 10
        for found in (together.instances, predict_one(model, image, KEYPOINTS)):
            assert_equal(found, expected)
            assert found is not None
            assert found.keypoints is not None
            np.testing.assert_allclose(found.keypoints[..., :2], expected["keypoints"][..., :2], atol=0.01)
            assert found.keypoints.dtype == np.float32
            assert (found.keypoints[..., 2] == 2).all()
    assert predict_one(model, images[0]).keypoints is None


def test_nothing_found_has_no_keypoints() -> None:
    model = DetectorModel(random_keypointrcnn(), name="x:y", score_threshold=0.999)
    for size in ((60, 80), (1, 1), (200, 20_000), (20_000, 1)):
        found = predict_one(model, torch.zeros(3, *size, dtype=torch.uint8), KEYPOINTS)
        assert found.keypoints is not None
        assert found.keypoints.shape == (0, 17, 3)


def test_as_many_keypoints_as_the_network_finds() -> None:
    horse = CategorySet([Category(1, "horse", keypoints=("nose", "tail"))])
    with pytest.raises(ModelError, match="finds 17 keypoints, and category 'horse' has 2"):
        DetectorModel(random_keypointrcnn(), name="x:y", categories=horse)


def test_no_gpu_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no GPU"):
        DetectorModel(random_maskrcnn(), name="scenes:random", device="cuda")
