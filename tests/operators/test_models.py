"""Models against stock torchvision: the same network, one image at a time, masks pasted and encoded in full size."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.io import read_image
from torchvision.models import WeightsEnum, detection, get_model_builder, get_model_weights, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from prelabel.operators.base import Instances, Model, Task
from prelabel.operators.detector import DetectorModel, padded_size
from prelabel.operators.models import FAMILIES, Family, ModelSpec, Offer, available, load_model
from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, build_scenes_network
from prelabel.operators.models.torchvision import ZERO_EPSILON, TorchvisionFamily
from prelabel.operators.weights import file_digest
from prelabel.pipeline.scenes import make_scene
from prelabel.schemas.categories import COCO, Category, CategorySet
from prelabel.schemas.errors import ModelError

DETECT = frozenset({Task.DETECT})
SEGMENT = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})
BUILDERS = list_models(module=detection)
BLOOD_CELLS = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"


def stock(network: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
    """What the network itself says of this image alone."""
    with torch.inference_mode():
        (found,) = network.eval()([image.float() / 255])
    return {name: value.numpy() for name, value in found.items()}


def assert_equal(found: Instances | None, expected: dict[str, np.ndarray]) -> None:
    assert found is not None
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.01)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-3)
    np.testing.assert_array_equal(found.category_ids, expected["labels"])


def counts(found: Instances | None) -> list[str]:
    assert found is not None
    assert found.masks is not None
    return [mask.rle.counts for mask in found.masks]


def stock_counts(masks: np.ndarray) -> list[str]:
    return [coco_mask.encode(np.asfortranarray(mask[0] > 0.5))["counts"].decode() for mask in masks]


def predict_one(model: Model, image: Tensor, tasks: frozenset[Task] = DETECT) -> Instances:
    (prediction,) = model.predict([image], tasks)
    assert prediction.instances is not None
    return prediction.instances


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Blurred noise: something at each scale."""
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)


def random_maskrcnn() -> detection.MaskRCNN:
    torch.manual_seed(3)
    network = build_scenes_network()
    network.roi_heads.score_thresh = 0.0
    return network


@pytest.fixture(scope="session")
def blood_cells(shared_data: Path) -> tuple[str, list[Tensor]]:
    images = sorted((shared_data / "blood_cells/images").iterdir())[:10]
    weights = shared_data / "weights/blood_cells_fasterrcnn_mobilenet_v3_large_320_fpn.pth"
    return str(weights), [read_image(str(image)) for image in images]


# ---- a user's file in a torchvision builder


@pytest.fixture(scope="session")
def stock_blood_cells(blood_cells: tuple[str, list[Tensor]]) -> nn.Module:
    network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    network.load_state_dict({name: t.float() for name, t in torch.load(blood_cells[0], weights_only=True).items()})
    return network


def test_a_users_file_alone_and_in_a_batch(blood_cells: tuple[str, list[Tensor]], stock_blood_cells: nn.Module) -> None:
    weights, images = blood_cells
    model = load_model(ModelSpec(BLOOD_CELLS, weights))
    expected = [stock(stock_blood_cells, image) for image in images]
    assert sum(len(found["scores"]) for found in expected) > 100
    batch = [prediction.instances for prediction in model.predict(images, DETECT)]
    for image, together, one in zip(images, batch, expected, strict=True):
        assert_equal(predict_one(model, image), one)
        assert_equal(together, one)
    assert model.tasks == {Task.DETECT}
    assert model.categories.names == ("class 1", "class 2", "class 3")
    assert model.digest == file_digest(weights)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05, 0.6])
def test_a_threshold_is_the_networks_own(
    blood_cells: tuple[str, list[Tensor]], stock_blood_cells: Any, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, images = blood_cells
    model = load_model(ModelSpec(BLOOD_CELLS, weights, score_threshold=threshold))
    monkeypatch.setattr(stock_blood_cells.roi_heads, "score_thresh", threshold)
    assert_equal(predict_one(model, images[0]), stock(stock_blood_cells, images[0]))


def test_categories_of_a_user(blood_cells: tuple[str, list[Tensor]]) -> None:
    weights, images = blood_cells
    plain = predict_one(load_model(ModelSpec(BLOOD_CELLS, weights)), images[0])
    cells = CategorySet([Category(10, "RBC"), Category(20, "WBC"), Category(30, "Platelets")])
    named = predict_one(load_model(ModelSpec(BLOOD_CELLS, weights, cells)), images[0])
    np.testing.assert_array_equal(named.category_ids, plain.category_ids * 10)
    with pytest.raises(ModelError, match="3 classes besides the background, and there are 80 categories"):
        load_model(ModelSpec(BLOOD_CELLS, weights, COCO))


def test_each_builder_has_as_many_classes_as_its_file(tmp_path: Path) -> None:
    for name in BUILDERS:
        load = load_model(ModelSpec(f"torchvision:{name}", hollow_file(tmp_path, name, num_classes=6)))
        assert len(load.categories) == 5, name
        assert (Task.SEGMENT_INSTANCES in load.tasks) == name.startswith("maskrcnn")


def hollow_file(folder: Path, name: str, **sizes: int) -> str:
    """A checkpoint of that builder: zeros which take no space."""
    with torch.device("meta"):
        network = get_model_builder(name)(weights=None, weights_backbone=None, **sizes)
    zeros = {key: torch.zeros((), dtype=t.dtype).expand(t.shape) for key, t in network.state_dict().items()}
    torch.save(zeros, folder / f"{name}.pth")
    return str(folder / f"{name}.pth")


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_one_shot_detectors(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = load_model(ModelSpec(f"torchvision:{name}", str(tmp_path / "weights.pth"), score_threshold=0.001))
    assert isinstance(model, DetectorModel)
    network.score_thresh = 0.001
    for one in (network, model.network):
        one.transform.min_size, one.transform.max_size = (96,), 160
    image = random_image(90, 130)
    expected = stock(network, image)
    known = expected["labels"] > 0  # these have a score for the background as well
    assert known.sum() > 10
    assert_equal(predict_one(model, image), {key: value[known] for key, value in expected.items()})


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


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (5000, 1)])
def test_degenerate_images(size: tuple[int, int]) -> None:
    model = DetectorModel(random_maskrcnn(), name="scenes:random", score_threshold=0.0)
    found = predict_one(model, torch.zeros(3, *size, dtype=torch.uint8), SEGMENT)
    assert found.masks is not None
    assert len(found.masks) == len(found) == len(found.boxes) == len(found.category_ids)
    assert {mask.rle.size for mask in found.masks} <= {size}


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


# ---- torchvision's own weights


def test_weights_trained_without_epsilon_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BUILDERS:
        builder = get_model_builder(name)
        for weights in get_model_weights(name):
            with torch.device("meta"):
                blank = builder(weights=None, weights_backbone=None, num_classes=len(weights.meta["categories"]))
                monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, blank=blank, **_: blank.state_dict())
                network = builder(weights=weights)
            zero = any(module.eps == 0 for module in network.modules() if isinstance(module, FrozenBatchNorm2d))
            assert zero == (str(weights) in ZERO_EPSILON), weights


def stand_in(named: WeightsEnum, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the file pass for torchvision's, in torch.hub's cache."""
    cached = file.parent / "checkpoints" / f"stand-in-{file_digest(str(file))[:8]}.pth"
    cached.parent.mkdir()
    file.rename(cached)
    monkeypatch.setattr(named.value, "url", f"https://nowhere.example/{cached.name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(file.parent))
    return cached


def test_named_weights_are_stocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    for name in state:
        if name.endswith("running_var"):  # small, so that the epsilon shows
            state[name] = torch.full_like(state[name], 1e-4)
            state[name.replace("running_var", "weight")] *= 1e-2
    torch.save(state, tmp_path / "new.pth")
    named = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    file = stand_in(named, tmp_path / "new.pth", monkeypatch)
    for given in (None, "COCO_V1", str(named), str(file)):
        spec = ModelSpec("torchvision:fasterrcnn_resnet50_fpn", given, score_threshold=0.0)
        assert TorchvisionFamily().weights_path(spec) == str(file)
    model, network = load_model(spec), detection.fasterrcnn_resnet50_fpn(weights=named, box_score_thresh=0.0)
    assert isinstance(model, DetectorModel)
    assert model.categories == COCO
    for one in (network, model.network):
        one.transform.min_size = (96,)
    image = random_image(60, 80)
    expected = stock(network, image)
    known = np.isin(expected["labels"], COCO.ids)
    assert_equal(predict_one(model, image), {name: value[known] for name, value in expected.items()})


def test_the_categories_of_named_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = hollow_file(tmp_path, "keypointrcnn_resnet50_fpn", num_keypoints=5)
    stand_in(detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1, Path(file), monkeypatch)
    model = load_model(ModelSpec("torchvision:keypointrcnn_resnet50_fpn"))
    assert [(category.id, category.name) for category in model.categories] == [(1, "person")]


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    name = "torchvision:maskrcnn_resnet50_fpn_v2"
    with pytest.raises(ModelError, match=rf"no network.*put the file at {tmp_path}.*--weights"):
        load_model(ModelSpec(name))
    with pytest.raises(ModelError, match="no weights 'COCO_V7': give one of COCO_V1, DEFAULT, or a file"):
        load_model(ModelSpec(name, "COCO_V7"))
    (tmp_path / "checkpoints/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="damaged: remove the file"):
        load_model(ModelSpec(name))


# ---- the registry


def test_the_bundled_model() -> None:
    model = load_model(ModelSpec("scenes:maskrcnn"))
    assert model.tasks == SEGMENT
    assert model.categories.ids == (1, 2, 3, 4, 5)
    assert model.digest == file_digest(str(SCENES_WEIGHTS))
    network = build_scenes_network()
    network.load_state_dict(load_file(SCENES_WEIGHTS))
    for index in range(6):
        image = torch.from_numpy(make_scene(1, index).image).permute(2, 0, 1).contiguous()
        found, expected = predict_one(model, image, SEGMENT), stock(network, image)
        assert_equal(found, expected)
        assert counts(found) == stock_counts(expected["masks"])


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("maskrcnn_resnet50_fpn_v2", "torchvision:maskrcnn_resnet50_fpn_v2"),
        ("torchvison:ssd300_vgg16", "torchvision:ssd300_vgg16"),
        ("torchvision:fcos_resnet50", "torchvision:fcos_resnet50_fpn"),
        ("scenes:fasterrcnn", "scenes:maskrcnn"),
        ("nothing like it", "`prelabel models` lists all"),
    ],
)
def test_unknown_names_get_a_guess(name: str, guess: str) -> None:
    with pytest.raises(ModelError, match=guess):
        load_model(ModelSpec(name))


class NeedsMore(Family):
    def offers(self) -> list[Offer]:
        return [Offer("x", ("detect",), "", extra="more")]

    def load(self, spec: ModelSpec) -> Model:
        return import_module("not_installed").build()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "more", f"{__name__}:NeedsMore")
    monkeypatch.setattr("prelabel.operators.models.EXTRAS", {"not_installed": "more"})
    with pytest.raises(ModelError, match=r"more:x needs not_installed: pip install 'prelabel\[more\]'"):
        load_model(ModelSpec("more:x"))
    assert available()["more"] == NeedsMore().offers()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_says_what_there_is(family: str) -> None:
    offers = available()[family]
    assert offers
    assert all(set(offer.tasks) <= set(Task) for offer in offers)


def test_no_gpu_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no GPU"):
        DetectorModel(random_maskrcnn(), name="scenes:random", device="cuda")
