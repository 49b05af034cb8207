"""R-CNN and Fast R-CNN against plain loops, and stock heads called by hand, on regions from other models."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import resize

from prelabel.operators.base import Instances, Model, Proposals, Task
from prelabel.operators.classifier import ClassifierModel
from prelabel.operators.detector import DetectorModel
from prelabel.operators.label import Asked, Labeler, make_tables
from prelabel.operators.models import FAMILIES, Family, ModelSpec, Offer, load_model
from prelabel.operators.models.rcnn import RCNNModel
from prelabel.operators.registry import assign, operators_for
from prelabel.pipeline.scenes import make_scene
from prelabel.schemas.categories import Category, CategorySet, unite
from prelabel.schemas.errors import ModelError

DETECT = frozenset({Task.DETECT})
SEGMENT = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})
KINDS = CategorySet([Category(3, "cat"), Category(0, "background"), Category(8, "dog"), Category(5, "kite")])
PRESET = ResNet18_Weights.DEFAULT.transforms(crop_size=28, resize_size=32)
SIZES = [(90, 120), (1, 1), (2, 40), (60, 6000)]


def tiny_classifier() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 5, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.Flatten(), nn.LazyLinear(4))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 28, 28))
    network[-1].weight.data *= 6  # away from 1/4 each
    return network.eval()


class TinyFamily(Family):
    """Small networks with random weights, of which nobody knows beforehand what they can do."""

    def offers(self) -> list[Offer]:
        return [Offer("NAME", (), "")]

    def load(self, spec: ModelSpec) -> Model:
        if spec.rest == "classifier":
            chosen: dict[str, Any] = {"categories": KINDS, "preset": PRESET, "score_threshold": spec.score_threshold}
            return ClassifierModel(tiny_classifier(), name=spec.name, digest="c1a551f1e2", **chosen)
        backbone = nn.Conv2d(3, 8, 3, 8)
        backbone.out_channels = 8  # type: ignore[assignment]
        return DetectorModel(RetinaNet(backbone, num_classes=2), name=spec.name)


@pytest.fixture(autouse=True)
def _tiny_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FAMILIES, "unlisted", f"{__name__}:TinyFamily")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of which such networks need no more
    yield
    torch.set_num_threads(threads)


def random_image(height: int, width: int) -> Tensor:
    noise = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(0)) * 255
    return nn.functional.interpolate(noise, (height, width), mode="nearest")[0].to(torch.uint8)


def random_regions(height: int, width: int, count: int = 40) -> Proposals:
    corners = np.random.default_rng(0).uniform(0, (width, height), (2, count, 2))
    boxes = np.concatenate([corners.min(0), corners.max(0)], 1).astype(np.float32)
    return Proposals(boxes, np.linspace(1, 0, count, dtype=np.float32))


def no_regions() -> Proposals:
    return Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def detect(
    model: Model, images: Sequence[Tensor], regions: Sequence[Proposals], tasks: frozenset[Task] = DETECT
) -> list[Instances]:
    found = [prediction.instances for prediction in model.predict(images, tasks, regions)]
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


def assert_equal(found: Instances, boxes: Any, scores: Any, category_ids: Any) -> None:
    np.testing.assert_allclose(found.boxes, np.reshape(boxes, (-1, 4)), atol=0.01)
    np.testing.assert_allclose(found.scores, scores, atol=1e-3)
    np.testing.assert_array_equal(found.category_ids, category_ids)


# ---- R-CNN


def plain_rcnn(image: Tensor, regions: Proposals, threshold: float) -> list[tuple[float, int, list[float]]]:
    """Crop by crop on an image with a wide border, then box by box; (score, category id, box), best first."""
    network, found, wide = tiny_classifier(), [], 600
    bordered = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (wide, wide), (wide, wide)), "edge"))
    for x0, y0, x1, y1 in regions.boxes.astype(np.float64).tolist():
        width, height = x1 - x0, y1 - y0
        if min(width, height) < 1:
            continue
        left, right = np.floor(x0 - width * 16 / 192), np.ceil(x1 + width * 16 / 192)
        top, bottom = np.floor(y0 - height * 16 / 192), np.ceil(y1 + height * 16 / 192)
        crop = bordered[:, int(top) + wide : int(bottom) + wide, int(left) + wide : int(right) + wide]
        with torch.inference_mode():
            scores = network(PRESET(resize(crop, [28, 28]))[None]).softmax(1)[0].tolist()
        found += [(score, kind.id, [x0, y0, x1, y1]) for score, kind in zip(scores, KINDS, strict=True)]
    kept: list[tuple[float, int, list[float]]] = []
    for score, kind_id, box in sorted(found, reverse=True):
        rivals = torch.tensor([other for _, other_id, other in kept if other_id == kind_id]).reshape(-1, 4)
        if score > threshold and kind_id != 0 and not (box_iou(torch.tensor([box]), rivals) > 0.3).any():
            kept.append((score, kind_id, box))
    return kept[:100]


def test_rcnn_is_a_loop_over_crops() -> None:
    model = load_model(ModelSpec("rcnn:unlisted:classifier", score_threshold=0.2))
    assert (model.tasks, model.takes_regions, model.digest) == (DETECT, True, "c1a551f1e2")
    assert model.categories.names == ("cat", "dog", "kite")
    images, regions = [random_image(*size) for size in SIZES], [random_regions(*size) for size in SIZES]
    images, regions = [*images, images[0][:1].expand(3, -1, -1), images[0]], [*regions, regions[0], no_regions()]
    together = detect(model, images, regions)
    for image, some, found in zip(images, regions, together, strict=True):
        expected = plain_rcnn(image, some, 0.2)
        scores, category_ids, boxes = zip(*expected, strict=True) if expected else ((), (), ())
        assert_equal(found, boxes, scores, category_ids)
        (alone,) = detect(model, [image], [some])
        assert_equal(alone, boxes, scores, category_ids)
    assert len(together[0]) > 10
    assert set(together[0].category_ids.tolist()) == {3, 5, 8}
    assert {len(found) for found in together[-1:]} == {0}
    beyond = Proposals(np.array([[-90, -90, 900, 900], [900, 0, 950, 50]], np.float32), np.ones(2, np.float32))
    (whole,) = detect(model, images[:1], [beyond])
    height, width = SIZES[0]
    assert (whole.boxes == [0, 0, width, height]).all()


def test_overlap_is_exact_far_out_in_a_panorama() -> None:
    """`batched_nms` moves the last of 900 categories by 18 million pixels, where float32 counts in twos."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 900))
    network[-1].bias.data[-1] = 20
    categories = CategorySet(Category(k, f"class {k}") for k in range(900))
    classifier = ClassifierModel(network, name="unlisted:many", categories=categories, preset=PRESET)
    image = random_image(200, 20_000)
    for apart, count in ((1.05, 1), (1.1, 2)):  # IoU 0.31 and 0.29
        boxes = np.array([[19_900, 0, 19_902, 2], [19_900 + apart, 0, 19_902 + apart, 2]], np.float32)
        (found,) = detect(
            RCNNModel(classifier, "rcnn:unlisted:many"), [image], [Proposals(boxes, np.ones(2, np.float32))]
        )
        assert found.category_ids.tolist() == [899] * count


# ---- Fast R-CNN


@pytest.fixture(scope="module")
def scenes() -> list[Tensor]:
    return [torch.from_numpy(make_scene(1, index).image).permute(2, 0, 1).contiguous() for index in range(4)]


def own_proposals(detector: DetectorModel, image: Tensor) -> Proposals:
    """What the detector's region proposal network proposes, in pixels of the image."""
    caught: list[Any] = []
    hook = detector.network.rpn.register_forward_hook(lambda _, given, made: caught.append((given[0], made[0])))
    detector.predict([image], DETECT)
    hook.remove()
    ((images, (boxes,)),) = caught
    boxes = resize_boxes(boxes, images.image_sizes[0], list(image.shape[1:])).numpy()
    return Proposals(boxes, np.linspace(1, 0, len(boxes), dtype=np.float32))


def counts(found: Instances) -> list[str]:
    assert found.masks is not None
    return [mask.rle.counts for mask in found.masks]


def test_fast_rcnn_on_the_detectors_own_regions_is_the_detector(scenes: list[Tensor]) -> None:
    detector, model = (load_model(ModelSpec(name)) for name in ("scenes:maskrcnn", "fast_rcnn:scenes:maskrcnn"))
    assert isinstance(detector, DetectorModel)
    assert (model.digest, model.categories, model.takes_regions) == (detector.digest, detector.categories, True)
    assert model.tasks == SEGMENT
    for image in scenes:
        expected = detector.predict([image], SEGMENT)[0].instances
        assert expected is not None
        (found,) = detect(model, [image], [own_proposals(detector, image)], SEGMENT)
        assert len(found) > 1
        assert_equal(found, expected.boxes, expected.scores, expected.category_ids)
        assert counts(found) == counts(expected)


def test_fast_rcnn_is_stocks_heads_on_the_regions(scenes: list[Tensor]) -> None:
    detector, model = (load_model(ModelSpec(name)) for name in ("scenes:maskrcnn", "fast_rcnn:scenes:maskrcnn"))
    assert isinstance(detector, DetectorModel)
    image, network = nn.functional.pad(scenes[0], (0, 40)), detector.network
    regions = random_regions(*image.shape[1:], count=200)
    with torch.inference_mode():
        inputs, _ = network.transform([image / 255])
        boxes = resize_boxes(torch.from_numpy(regions.boxes), list(image.shape[1:]), inputs.image_sizes[0])
        made, _ = network.roi_heads(network.backbone(inputs.tensors), [boxes], inputs.image_sizes)
        (expected,) = network.transform.postprocess(made, inputs.image_sizes, [tuple(image.shape[1:])])
    other = image.flip(1)
    for images, some in (([image], [regions]), ([other, image], [random_regions(90, 90), regions])):
        found = detect(model, images, some)[-1]
        assert len(found) > 1
        assert_equal(found, expected["boxes"], expected["scores"], expected["labels"])
    empty, full = detect(model, [image, image], [no_regions(), regions], SEGMENT)
    assert (len(empty), empty.masks) == (0, [])
    assert_equal(full, expected["boxes"], expected["scores"], expected["labels"])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (200, 20_000), (20_000, 200)])
def test_fast_rcnn_on_any_image(size: tuple[int, int]) -> None:
    model = load_model(ModelSpec("fast_rcnn:scenes:maskrcnn", score_threshold=0.0))
    for regions in (random_regions(*size), no_regions()):
        (found,) = detect(model, [random_image(*size)], [regions], SEGMENT)
        assert (found.boxes[:, 2:] <= (size[1], size[0])).all()
        assert len(counts(found)) == len(found) <= 50 * len(regions)


# ---- how they are named, and a whole job


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rcnn:fcn_resnet50", "rcnn:fcn_resnet50: torchvision:fcn_resnet50 can't classify regions: take a classifier"),
        ("rcnn:resnet51", "did you mean torchvision:resnet50"),
        ("rcnn:unlisted:retinanet", "unlisted:retinanet can't classify regions"),
        ("fast_rcnn:retinanet_resnet50_fpn", "retinanet_resnet50_fpn has no heads for regions: take a Faster, Mask or"),
        ("fast_rcnn:fasterrcnn_resnet50", "did you mean torchvision:fasterrcnn_resnet50_fpn"),
        ("fast_rcnn:unlisted:classifier", "unlisted:classifier has no heads for regions"),
        ("fast_rcnn:unlisted:retinanet", "unlisted:retinanet has no heads for regions"),
    ],
)
def test_a_model_that_does_not_fit_takes_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(ModelSpec(name))


def unit_of(images: Sequence[Tensor]) -> pa.Table:
    rows = []
    for k, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        rows.append({"image_id": k, "key": f"{k}", "uri": f"/{k}", "bytes": file.getvalue(), "shard": "/", "unit": 0})
    nothing = {"error_code": pa.nulls(len(rows), pa.string()), "error": pa.nulls(len(rows), pa.string())}
    return pa.table({name: [row[name] for row in rows] for name in rows[0]} | nothing)


def test_regions_flow_from_model_to_model(scenes: list[Tensor]) -> None:
    names = ["regions:sliding_windows", "rcnn:unlisted:classifier", "fast_rcnn:scenes:maskrcnn"]
    models = [load_model(ModelSpec(name)) for name in names]
    categories, category_ids = unite([model.categories for model in models])
    assignment = assign(models, keep_proposals=True)
    assert assignment.written == (Task.DETECT, Task.PROPOSE, Task.SEGMENT_INSTANCES)
    asked = [Asked(*one) for one in zip(models, assignment.asked, category_ids, strict=True)]
    unit = unit_of(scenes[:2])
    findings = Labeler(asked, batch_size=2, max_pixels=10**6, threads=1).look(unit)
    tables = make_tables(unit, findings, operators_for(assignment.written, categories, ModelSpec("").options))
    assert set(tables["annotations"]["model"].to_pylist()) == set(names[1:])
    assert set(tables["proposals"]["model"].to_pylist()) == {names[0]}
    for k, image in enumerate(scenes[:2]):
        regions = models[0].predict([image], frozenset({Task.PROPOSE}))[0].proposals
        assert regions is not None
        expected = [found for model in models[1:] for found in detect(model, [image], [regions])]
        rows = tables["annotations"].filter(pa.compute.equal(tables["annotations"]["image_id"], k))
        assert len(rows) == sum(len(one) for one in expected) > 2
        best = np.sort(np.concatenate([one.scores for one in expected]))[::-1]
        np.testing.assert_allclose(rows["score"].to_numpy(), best, atol=1e-3)
    with pytest.raises(ModelError, match="looks at regions only"):
        assign(models[1:])
