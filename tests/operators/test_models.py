"""Models as they are named: torchvision's builders with a user's file or their own weights, and the registry."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from stock import DETECT, assert_equal, predict_one, random_image, stock
from torch import Tensor, nn
from torchvision import models
from torchvision.io import read_image
from torchvision.models import WeightsEnum, detection, get_model_builder, get_model_weights, list_models, segmentation
from torchvision.ops import FrozenBatchNorm2d

from prelabel.operators.base import Model, Task
from prelabel.operators.classifier import ClassifierModel
from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import FAMILIES, Family, ModelSpec, Offer, available, load_model
from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.operators.models.torchvision import TorchvisionFamily
from prelabel.operators.models.torchvision_networks import ZERO_EPSILON
from prelabel.operators.segmenter import SegmenterModel
from prelabel.operators.weights import file_digest, load_weights
from prelabel.schemas.categories import COCO, COCO_PERSON, VOC, Category, CategorySet
from prelabel.schemas.errors import ModelError

DETECTORS = list_models(module=detection)
SEGMENTERS = list_models(module=segmentation)
CLASSIFIERS = [  # the smallest of each architecture
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
]
BLOOD_CELLS = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"


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
    assert model.tasks == {Task.PROPOSE, Task.DETECT}
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


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS, *CLASSIFIERS])
def test_each_builder_has_as_many_classes_as_its_file(name: str, tmp_path: Path) -> None:
    model = load_model(ModelSpec(f"torchvision:{name}", hollow_file(tmp_path, name, num_classes=6)))
    assert len(model.categories) == (6 if name in CLASSIFIERS else 5)
    offers = {offer.name: set(offer.tasks) for offer in TorchvisionFamily().offers()}
    assert model.tasks == offers[name]


def test_all_builders_are_offered() -> None:
    names = TorchvisionFamily().names()
    assert {*DETECTORS, *SEGMENTERS, *list_models(module=models)} == {*names}
    assert len(set(names)) == len(names)


def test_the_size_that_a_vision_transformer_was_trained_at(tmp_path: Path) -> None:
    model = load_model(ModelSpec("torchvision:vit_b_32", hollow_file(tmp_path, "vit_b_32", image_size=96)))
    assert model.input_size(480, 640) == (96, 96)


def test_a_file_of_another_architecture(tmp_path: Path) -> None:
    file = hollow_file(tmp_path, "squeezenet1_1")
    for name in ("alexnet", "lraspp_mobilenet_v3_large", "ssd300_vgg16"):
        with pytest.raises(ModelError, match=r"weights .* are another network's: .* more: check --model"):
            load_model(ModelSpec(f"torchvision:{name}", file))
    with pytest.raises(ModelError, match="has 1000 classes, and there are 80 categories"):
        load_model(ModelSpec("torchvision:squeezenet1_1", file, COCO))


def hollow_file(folder: Path, name: str, **sizes: int) -> str:
    """A checkpoint of that builder: zeros which take no space."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # which computes its widths
        network = get_model_builder(name)(weights=None, **sizes) if name in CLASSIFIERS else blank(name, **sizes)
    zeros = {key: torch.zeros((), dtype=t.dtype).expand(t.shape) for key, t in network.state_dict().items()}
    torch.save(zeros, folder / f"{name}.pth")
    return str(folder / f"{name}.pth")


def blank(name: str, **sizes: int) -> nn.Module:
    return get_model_builder(name)(weights=None, weights_backbone=None, **sizes)


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_one_shot_detectors(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = blank(name, num_classes=7)
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


# ---- torchvision's own weights


def test_weights_trained_without_epsilon_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DETECTORS:
        for weights in get_model_weights(name):
            with torch.device("meta"):
                state = blank(name, num_classes=len(weights.meta["categories"])).state_dict()
                monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, state=state, **_: state)
                network = get_model_builder(name)(weights=weights)
            zero = any(module.eps == 0 for module in network.modules() if isinstance(module, FrozenBatchNorm2d))
            assert zero == (str(weights) in ZERO_EPSILON), weights


FORMER_NAMES = {
    r"rpn\.head\.conv\.0\.0\.": "rpn.head.conv.",
    r"mask_head\.0\.0\.": "mask_head.mask_fcn1.",
    r"((?:inner|layer)_blocks\.\d)\.0\.": r"\1.",
}


def test_older_files_have_other_names() -> None:
    network, same = build_scenes_network(), build_scenes_network()
    older = network.state_dict()
    for new, former in FORMER_NAMES.items():
        older = {re.sub(new, former, name): tensor for name, tensor in older.items()}
    assert len(older.keys() - same.state_dict().keys()) == 2 + 2 + 16
    load_weights(same, older, "older.pth")
    torch.testing.assert_close(same.state_dict(), network.state_dict(), rtol=0, atol=0)


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


@pytest.mark.parametrize(
    ("named", "categories"),
    [
        (detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1, COCO_PERSON),
        (segmentation.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1, VOC),
    ],
)
def test_the_categories_of_named_weights(
    named: WeightsEnum, categories: CategorySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(named).partition("_Weights")[0].lower()
    stand_in(named, Path(hollow_file(tmp_path, name)), monkeypatch)
    assert load_model(ModelSpec(f"torchvision:{name}")).categories == categories


def test_the_head_for_training_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = segmentation.FCN_ResNet50_Weights.DEFAULT
    stand_in(named, Path(hollow_file(tmp_path, "fcn_resnet50", aux_loss=True)), monkeypatch)
    model = load_model(ModelSpec("torchvision:fcn_resnet50"))
    assert isinstance(model, SegmenterModel)
    assert not any(name.startswith("aux_classifier") for name in model.network.state_dict())


@pytest.mark.parametrize("name", ["googlenet", "densenet121"])
def test_named_classifiers_are_stocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    own = {"init_weights": False} if name == "googlenet" else {}
    state = get_model_builder(name)(weights=None, **own).state_dict()
    state = {  # DenseNet's file is older than its names, and than that counter
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "new.pth")
    named = get_model_weights(name).DEFAULT
    stand_in(named, tmp_path / "new.pth", monkeypatch)
    model, network = load_model(ModelSpec(f"torchvision:{name}")), get_model_builder(name)(weights=named).eval()
    assert isinstance(model, ClassifierModel)
    assert model.categories.ids == tuple(range(1000))
    assert list(model.categories.names) == named.meta["categories"]
    image = random_image(300, 400)
    with torch.inference_mode():
        expected = network(named.transforms()(image)[None]).softmax(1)
    torch.testing.assert_close(model.probabilities([image]), expected, rtol=1e-4, atol=1e-6)


def test_weights_without_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "features.pth")
    stand_in(models.VGG16_Weights.IMAGENET1K_FEATURES, tmp_path / "features.pth", monkeypatch)
    with pytest.raises(ModelError, match="for features and not for classes"):
        load_model(ModelSpec("torchvision:vgg16", "IMAGENET1K_FEATURES"))


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
