"""Models against stock torchvision: the same network, one image at a time, masks pasted and encoded in full size."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.io import read_image
from torchvision.models import WeightsEnum, detection, get_model_builder, get_model_weights, list_models
from torchvision.ops import FrozenBatchNorm2d

from prelabel.operators.base import Instances, Model, Task
from prelabel.operators.detector import DetectorModel, padded_size
from prelabel.operators.models import FAMILIES, ModelSpec, available, describe, load_model, weights_path
from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, build_scenes_network
from prelabel.operators.models.torchvision import ZERO_EPSILON
from prelabel.operators.weights import file_digest, load_weights, read_weights, state_digest
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
    assert describe(model).tasks == ("detect",)
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


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ssdlite320_mobilenet_v3_large", {}),
        ("fcos_resnet50_fpn", {}),
        ("retinanet_resnet50_fpn", {}),
        ("keypointrcnn_resnet50_fpn", {"num_keypoints": 5}),
    ],
)
def test_architectures(name: str, sizes: dict[str, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=7, **sizes)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = load_model(ModelSpec(f"torchvision:{name}", str(tmp_path / "weights.pth"), score_threshold=0.001))
    assert isinstance(model, DetectorModel)
    getattr(network, "roi_heads", network).score_thresh = 0.001
    for one in (network, model.network):
        one.transform.min_size, one.transform.max_size = (96,), 160
    image = random_image(90, 130)
    expected = stock(network, image)
    known = expected["labels"] > 0  # the one-stage networks have a score for the background as well
    assert known.sum() > 10
    assert_equal(predict_one(model, image), {key: value[known] for key, value in expected.items() if key != "masks"})


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


# ---- weights files


def small_state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in random_maskrcnn().state_dict().items()}


def test_a_files_form_makes_no_difference(tmp_path: Path) -> None:
    state = small_state()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    forms: dict[str, Any] = {
        "plain": state,
        "reference": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.02)},
        "lightning": {"state_dict": state},
        "parallel": {f"module.{name}": tensor for name, tensor in state.items()},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / f"{name}.pth")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(half, tmp_path / "half.bin")
    digests = {file.name: state_digest(read_weights(str(file))) for file in sorted(tmp_path.iterdir())}
    rounded = state_digest({name: t.float() if t.is_floating_point() else t for name, t in half.items()})
    assert digests.pop("half.bin") == rounded
    assert set(digests.values()) == {state_digest(state)}


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nowhere/at/all",)


def test_files_that_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Code()}, tmp_path / "code.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(tmp_path / "script.pt")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no such luck")
    (tmp_path / "half.pth").write_bytes((tmp_path / "module.pth").read_bytes()[:-200])
    reasons = {
        "code.pth": "pickled code is refused",
        "module.pth": "pickled code is refused",
        "script.pt": "a program is refused",
        "nothing.pth": "no state_dict",
        "empty.pth": "damaged",
        "text.safetensors": "damaged",
        "half.pth": "damaged",
        "absent.pth": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=f"{name}: .*{reason}") as caught:
            read_weights(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_another_networks_weights_are_named() -> None:
    state = {name: tensor for name, tensor in small_state().items() if not name.endswith("num_batches_tracked")}
    load_weights(random_maskrcnn(), state, "frozen.pth")
    state["extra"] = state.pop("backbone.stem.0.0.weight")
    state["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(9)
    with pytest.raises(
        ModelError, match=r"stem.0.0.weight is missing, extra is not .*, .*bias is \(9,\) and not \(6,\)"
    ):
        load_weights(random_maskrcnn(), state, "other.pth")


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


def test_named_weights_are_stocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torchvision's file, in torch.hub's cache, whose batch norms show the epsilon."""
    torch.manual_seed(0)
    state = detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    state |= {name: torch.full_like(t, 1e-4) for name, t in state.items() if name.endswith("running_var")}
    state |= {
        name: torch.full_like(t, 1e-2)
        for name, t in state.items()
        if name.startswith("backbone.body.") and t.ndim == 1 and name.endswith("weight")
    }
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    torch.save(state, cache / "new.pth")
    named = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
    file = cache / f"stand-in-{file_digest(str(cache / 'new.pth'))[:8]}.pth"
    (cache / "new.pth").rename(file)
    monkeypatch.setattr(named.value, "url", f"https://nowhere.example/{file.name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = detection.keypointrcnn_resnet50_fpn(weights=named)
    network.roi_heads.score_thresh = 0.0
    image = random_image(60, 80)
    for given in (None, "COCO_V1", str(named), str(file)):
        spec = ModelSpec("torchvision:keypointrcnn_resnet50_fpn", given, score_threshold=0.0)
        assert weights_path(spec) == str(file)
    model = load_model(spec)
    assert model.categories.names == ("person",)
    assert isinstance(model, DetectorModel)
    for one in (network, model.network):
        one.transform.min_size = (96,)
    assert_equal(predict_one(model, image), stock(network, image))


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


# ---- a factory of the user's own

FACTORIES = """
import torch
from prelabel.operators.base import Model
from prelabel.operators.models.scenes_network import build_scenes_network

class Ready(Model):
    tasks, categories = frozenset(), ()
    def input_size(self, height, width): return height, width
    def predict(self, images, tasks): return []

def network():
    torch.manual_seed(3)
    return build_scenes_network()

def model(): return Ready()
def text(): return "a text"
def linear(): return torch.nn.Linear(1, 1)
def broken():
    return {}["missing"]
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    (tmp_path / "my_mistake.py").write_text("\nimport not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path)


def test_a_factory(factories: str, tmp_path: Path) -> None:
    model = load_model(ModelSpec("python:my_factories:network", score_threshold=0.0, path=factories))
    image = random_image(100, 100)
    expected = stock(random_maskrcnn(), image)
    found = predict_one(model, image, SEGMENT)
    assert_equal(found, expected)
    assert counts(found) == stock_counts(expected["masks"])
    assert model.digest == state_digest(random_maskrcnn().state_dict())
    assert load_model(ModelSpec("python:my_factories:model", path=factories)).name == "python:my_factories:model"
    other = {name: tensor * 2 for name, tensor in small_state().items()}
    save_file(other, tmp_path / "other.safetensors")
    spec = ModelSpec("python:my_factories:network", str(tmp_path / "other.safetensors"), path=factories)
    assert load_model(spec).digest == state_digest(other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_factories", "write python:MODULE:FACTORY"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("my_mistake:f", r"importing my_mistake failed: ModuleNotFoundError: No module.*my_mistake.py:2\)"),
        ("my_factories:absent", "has no function 'absent'"),
        ("my_factories:text", "returned builtins.str: return a torch.nn.Module"),
        ("my_factories:linear", "fails on a list of one"),
        ("my_factories:broken", r"failed: KeyError: 'missing' \(.*my_factories.py:\d+\)"),
    ],
)
def test_a_factorys_mistakes_take_one_line(name: str, message: str, factories: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelSpec(f"python:{name}", path=factories, categories=COCO))
    assert "\n" not in str(caught.value)


def test_a_ready_model_takes_no_options(factories: str) -> None:
    with pytest.raises(ModelError, match="leave --score-threshold out"):
        load_model(ModelSpec("python:my_factories:model", score_threshold=0.5, path=factories))


# ---- the registry


def test_the_bundled_model() -> None:
    if not SCENES_WEIGHTS.exists():
        pytest.skip("the bundled weights are not trained yet")
    model = load_model(ModelSpec("scenes:maskrcnn"))
    assert model.tasks == SEGMENT
    assert model.categories.ids == (1, 2, 3, 4, 5)
    assert model.digest == file_digest(str(SCENES_WEIGHTS))


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


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "other", "not_installed.family:Family")
    monkeypatch.setattr("prelabel.operators.models.EXTRAS", {"not_installed": "other"})
    with pytest.raises(ModelError, match=r"other:x needs not_installed: pip install 'prelabel\[other\]'"):
        load_model(ModelSpec("other:x"))
    assert available()["other"] == []


def test_each_family_says_what_there_is() -> None:
    names: dict[str, Sequence[str]] = dict(available())
    assert names.keys() == FAMILIES.keys()
    assert all(names.values())
    assert list(names["torchvision"]) == BUILDERS


def test_no_gpu_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no GPU"):
        DetectorModel(random_maskrcnn(), name="scenes:random", device="cuda")
