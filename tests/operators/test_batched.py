"""Postprocessing of whole batches against torchvision's, which goes image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from stock import random_image
from tiny_detectors import rcnn, retinanet, ssd
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from prelabel.operators import batched, suppression
from prelabel.operators.batched import batch_postprocessing, takes_bytes
from prelabel.operators.suppression import keep_best, suppress_at_once

SIZES = [(64, 96), (70, 105), (64, 90)]


# ---- suppression


@pytest.fixture(params=["in turn", "at once"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "at once":  # what a GPU does
        monkeypatch.setattr(suppression, "_suppress_in_turn", suppress_at_once)
        monkeypatch.setattr(suppression, "_PAIRS", 2**18)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_each_image_is_suppressed_as_if_it_were_alone(threshold: float) -> None:
    random = torch.Generator().manual_seed(0)
    counts = [600, 0, 1, 1500, 1000, 1001]  # up to 1,000 torchvision rounds, beyond it does not
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    corners = torch.randint(0, 40, (len(images), 2), generator=random) * 5.0  # many overlaps are just the threshold
    boxes = torch.cat((corners, corners + torch.randint(1, 12, (len(images), 2), generator=random) * 5), 1)
    boxes += torch.rand(len(images), 1, generator=random) * (torch.arange(len(images)) % 2)[:, None] / 1000
    scores = torch.rand(len(images), generator=random)
    classes = torch.randint(0, 7, (len(images),), generator=random) ** 2
    kept = keep_best(boxes, scores, images, classes, threshold, [100] * len(counts), 91)
    assert [len(some) for some in kept] == [100, 0, 1, 100, 100, 100]
    for image, found in enumerate(kept):
        own = (images == image).nonzero()[:, 0]
        assert torch.equal(found, own[batched_nms(boxes[own], scores[own], classes[own], threshold)[:100]])


def test_a_chain_of_boxes_of_which_each_overlaps_the_next() -> None:
    left = torch.arange(101.0)
    boxes = torch.stack((left, left * 0, left + 4, left * 0 + 4), 1)
    stays = suppress_at_once(boxes, left.flip(0), torch.tensor([101]), 0.5)
    assert stays.nonzero()[:, 0].tolist() == list(range(0, 101, 2))


@pytest.mark.usefixtures("_both_ways")
def test_no_boxes_at_all() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert [len(some) for some in keep_best(torch.zeros(0, 4), torch.zeros(0), none, none, 0.5, [9, 9], 3)] == [0, 0]


# ---- networks


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "retinanet": retinanet,
    "retinanet, all": partial(retinanet, score_thresh=0.0, topk_candidates=300),
    "retinanet, none": partial(retinanet, score_thresh=0.999999),
    "ssd": partial(ssd, score_thresh=0.2),
    "ssd, all": partial(ssd, score_thresh=0.0, topk_candidates=30, detections_per_img=1000),
    "ssd, none": partial(ssd, score_thresh=0.999999),
    "faster": rcnn,
    "faster, many": partial(rcnn, box_score_thresh=0.001, box_detections_per_img=1000),
    "faster, no proposals": partial(rcnn, rpn_score_thresh=1.1),
    "mask": partial(rcnn, MaskRCNN),
}


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_what_stock_says_of_each_image(name: str) -> None:
    stock = NETWORKS[name]()
    ours = copy.deepcopy(stock)
    batch_postprocessing(ours)
    assert takes_bytes(ours)
    assert not takes_bytes(stock)
    images = [random_image(*size, seed=seed) for seed, size in enumerate(SIZES)]
    with torch.inference_mode():  # stock works on the boxes of each image by itself
        together, expected = ours(images), stock([image.float() / 255 for image in images])
    for found, stocks in zip(together, expected, strict=True):
        assert found.keys() == stocks.keys()
        for key, values in stocks.items():
            assert found[key].dtype == values.dtype
            torch.testing.assert_close(found[key], values, rtol=0, atol=1e-6 if key == "scores" else 1e-4)
    count = sum(len(found["scores"]) for found in together)
    assert (count > 30) == (not name.endswith(("none", "no proposals")))


def test_levels_pooled_together() -> None:
    network = rcnn()
    with torch.inference_mode():
        maps = network.backbone(torch.rand(2, 3, 96, 160))
        boxes = [torch.tensor([[0.0, 0, 90, 90], [5, 5, 9, 9], [0, 0, 160, 96]]), torch.tensor([[1.0, 2, 3, 4]])]
        for pooler in (network.roi_heads.box_roi_pool, MultiScaleRoIAlign(["2"], 5, 0)):
            for some in (boxes, [boxes[0][:0], boxes[1]], [boxes[0][:0]] * 2):
                expected = pooler(maps, some, [(96, 160)] * 2)
                assert torch.equal(batched.pool(pooler, maps, some, [(96, 160)] * 2), expected)


def test_anchors_are_stocks_and_made_once() -> None:
    stock, ours = retinanet(), retinanet()
    batch_postprocessing(ours)
    images, _ = stock.transform([torch.rand(3, 64, 96)] * 2)
    features = list(stock.backbone(images.tensors).values())
    found = ours.anchor_generator(images, features)
    assert all(map(torch.equal, found, stock.anchor_generator(images, features)))
    assert {id(one) for one in found} == {id(one) for one in ours.anchor_generator(images, features)}
    assert [one.dtype for one in ours.anchor_generator(images, [one.bfloat16() for one in features])] == [
        torch.float32
    ] * 2


class OwnHeads(RoIHeads):
    def postprocess_detections(self, logits: Tensor, codes: Tensor, proposals: Any, sizes: Any) -> Any:
        return [some[:1] for some in proposals], [some[:1, 0] for some in proposals], [torch.ones(1).long()] * 9


class OwnRetinaNet(RetinaNet):
    def postprocess_detections(self, *arguments: Any) -> Any:
        return [{"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1).long()}]


def test_a_subclass_keeps_its_own() -> None:
    network = retinanet(OwnRetinaNet)
    heads = rcnn()
    heads.roi_heads.__class__ = OwnHeads
    for one in (network, heads):
        batch_postprocessing(one)
        with torch.inference_mode():
            assert [len(found["boxes"]) for found in one([random_image(64, 96)])] == [1]
    foreign = nn.Sequential(nn.Conv2d(3, 3, 1))
    batch_postprocessing(foreign)
    assert not takes_bytes(foreign)


@pytest.mark.parametrize("make", [retinanet, rcnn])
def test_boxes_are_not_rounded_to_bfloat16(make: Callable[[], nn.Module]) -> None:
    """Whose neighbours beyond 128 are a pixel apart."""
    network = make()
    batch_postprocessing(network)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (found,) = network([random_image(96, 160)])
    boxes = found["boxes"]
    assert boxes.dtype == found["scores"].dtype == torch.float32
    inner = boxes[(boxes > 0) & (boxes != 96) & (boxes != 160)]
    assert (inner != inner.bfloat16()).float().mean() > 0.9
