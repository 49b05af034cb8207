"""The bundled model: its Mask R-CNN as stock torchvision runs it, and its semantic head on the same feature maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stock import assert_equal, assert_same_pixels, stock
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN

from prelabel.operators.base import Segments, Task
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.scenes import SEMANTIC, ScenesModel
from prelabel.operators.models.scenes_network import SCENES_WEIGHTS, SemanticHead, build_scenes_network
from prelabel.operators.weights import file_digest
from prelabel.pipeline.scenes import CATEGORIES, make_scene
from prelabel.schemas.categories import Category, CategorySet, numbered
from prelabel.schemas.errors import ModelError
from prelabel.schemas.rle import decode

INSTANCES = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})
SEGMENT = frozenset({Task.SEGMENT_SEMANTIC})
ALL = INSTANCES | SEGMENT | {Task.PROPOSE}
UNSEEN = 1_000_003


@pytest.fixture(scope="module")
def model() -> ScenesModel:
    loaded = load_model(ModelSpec("scenes:maskrcnn"))
    assert isinstance(loaded, ScenesModel)
    return loaded


@pytest.fixture(scope="module")
def stock_network() -> MaskRCNN:
    network = build_scenes_network().eval()
    network.load_state_dict({name: one for name, one in load_file(SCENES_WEIGHTS).items() if SEMANTIC not in name})
    return network


@pytest.fixture(scope="module")
def stock_head() -> SemanticHead:
    head, start = SemanticHead().eval(), len(SEMANTIC)
    head.load_state_dict({name[start:]: one for name, one in load_file(SCENES_WEIGHTS).items() if SEMANTIC in name})
    return head


def picture(index: int, seed: int = UNSEEN) -> Tensor:
    return torch.from_numpy(make_scene(seed, index).image).permute(2, 0, 1).contiguous()


def label_map_of(segments: Segments | None, size: tuple[int, ...]) -> np.ndarray:
    """Each pixel's category id, 0 for void."""
    assert segments is not None
    labels = np.zeros(size, int)
    for category_id, mask in zip(segments.category_ids, segments.masks, strict=True):
        labels += category_id * decode(mask.rle)
    return labels


def predict_semantic(model: ScenesModel, image: Tensor) -> np.ndarray:
    (prediction,) = model.predict([image], SEGMENT)
    assert (prediction.instances, prediction.proposals) == (None, None)
    return label_map_of(prediction.semantic, image.shape[1:])


def test_what_it_is(model: ScenesModel) -> None:
    assert model.tasks == ALL
    assert model.categories.to_coco() == CATEGORIES
    assert model.digest == file_digest(str(SCENES_WEIGHTS))
    assert SCENES_WEIGHTS.stat().st_size < 12e6


def test_things_are_stocks(model: ScenesModel, stock_network: MaskRCNN) -> None:
    for index in range(4):
        image = picture(index)
        (prediction,) = model.predict([image], ALL)
        expected = stock(stock_network, image)
        assert_equal(prediction.instances, expected)
        assert_same_pixels(prediction.instances, expected["masks"])


def stock_labels(network: MaskRCNN, head: SemanticHead, image: Tensor) -> np.ndarray:
    """The semantic labels of an image alone, its scores upsampled in full size."""
    with torch.inference_mode():
        inputs, _ = network.transform([image.float() / 255])
        height, width = inputs.image_sizes[0]
        scores = interpolate(head(network.backbone(inputs.tensors)), scale_factor=4, mode="bilinear")
        scores = interpolate(scores[:, :, :height, :width], image.shape[1:], mode="bilinear")
    return scores[0].argmax(0).numpy()


def test_labels_alone_in_a_batch_and_beside_other_tasks(
    model: ScenesModel, stock_network: MaskRCNN, stock_head: SemanticHead
) -> None:
    image = picture(0)
    images = [image, image.flip(1), image[:, : image.shape[1] - 3]]
    images = [one for one in images if model.input_size(*one.shape[1:]) == model.input_size(*image.shape[1:])]
    for tasks in (SEGMENT, ALL, SEGMENT | {Task.PROPOSE}):
        for one, prediction in zip(images, model.predict(images, tasks), strict=True):
            labels = label_map_of(prediction.semantic, one.shape[1:])
            assert (labels == stock_labels(stock_network, stock_head, one)).mean() > 0.9999  # rounding decides on ties
            assert (labels == predict_semantic(model, one)).mean() > 0.9999


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_neighbours_in_a_batch_change_no_bit_on_a_thread(model: ScenesModel) -> None:
    images = [image for image in map(picture, range(20)) if model.input_size(*image.shape[1:]) == (256, 320)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [model.predict([image], ALL)[0] for image in images]
        together = model.predict(images, ALL)
    finally:
        torch.set_num_threads(threads)
    assert len({len(one.instances) for one in alone}) > 2
    for one, other in zip(alone, together, strict=True):
        for part, names in (("instances", ("boxes", "scores", "category_ids")), ("proposals", ("boxes", "scores"))):
            for name in names:
                np.testing.assert_array_equal(getattr(getattr(one, part), name), getattr(getattr(other, part), name))
        assert [mask.rle for mask in one.instances.masks] == [mask.rle for mask in other.instances.masks]
        assert [mask.rle for mask in one.semantic.masks] == [mask.rle for mask in other.semantic.masks]


def test_it_knows_scenes_that_it_never_saw(model: ScenesModel) -> None:
    right = []
    for index in range(8):
        scene = make_scene(UNSEEN, index)
        truth = scene.stuff.astype(int) + sum(one.category_id * one.mask for one in scene.instances)
        right.append(predict_semantic(model, picture(index)) == truth)
    assert np.concatenate([one.ravel() for one in right]).mean() > 0.85


@pytest.mark.parametrize(
    ("tasks", "calls"),
    [
        (SEGMENT, {"backbone": 1, "head": 1}),
        (INSTANCES, {"backbone": 1, "rpn": 1, "roi_heads": 1}),
        (ALL, {"backbone": 1, "rpn": 1, "roi_heads": 1, "head": 1}),
    ],
)
def test_each_part_runs_once_if_at_all(model: ScenesModel, tasks: frozenset[Task], calls: dict[str, int]) -> None:
    parts: dict[str, Any] = {name: getattr(model.network, name) for name in ("backbone", "rpn", "roi_heads")}
    counted = dict.fromkeys([*parts, "head"], 0)

    def count(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda *_: counted.update({name: counted[name] + 1}))

    hooks = [count(name, module) for name, module in {**parts, "head": model.head}.items()]
    model.predict([picture(0), picture(0)], tasks)
    for hook in hooks:
        hook.remove()
    assert counted == dict.fromkeys(counted, 0) | calls


@pytest.mark.parametrize("size", [(1, 1), (200, 20_000), (70, 100)])
@pytest.mark.parametrize("tasks", [SEGMENT, ALL])
def test_small_long_and_gray_images(model: ScenesModel, size: tuple[int, int], tasks: frozenset[Task]) -> None:
    gray = torch.full((3, *size), 128, dtype=torch.uint8)
    (prediction,) = model.predict([gray], tasks)
    assert prediction.semantic is not None
    assert sum(mask.area for mask in prediction.semantic.masks) == size[0] * size[1]


@pytest.mark.parametrize("tasks", [SEGMENT, ALL])
def test_all_is_void_in_an_image_too_thin_to_resize(model: ScenesModel, tasks: frozenset[Task]) -> None:
    (prediction,) = model.predict([torch.zeros(3, 1, 2000, dtype=torch.uint8)], tasks)
    assert prediction.semantic is not None
    assert len(prediction.semantic) == 0


def test_categories_of_a_user() -> None:
    things = [Category(10 * k, f"thing {k}") for k in range(1, 6)]
    stuff = [Category(10 * k, f"stuff {k}", isthing=False) for k in range(6, 10)]
    model = load_model(ModelSpec("scenes:maskrcnn", categories=CategorySet([*things, *stuff])))
    image = picture(0)
    (named,), (plain,) = (
        one.predict([image], INSTANCES | SEGMENT) for one in (model, load_model(ModelSpec("scenes:maskrcnn")))
    )
    for part in ("instances", "semantic"):
        ids = getattr(named, part).category_ids
        assert len(ids) > 1
        np.testing.assert_array_equal(ids, 10 * getattr(plain, part).category_ids)
    for wrong in (things, [*things, *stuff[:3]]):
        with pytest.raises(ModelError, match="9 classes besides the background, and there are"):
            load_model(ModelSpec("scenes:maskrcnn", categories=CategorySet(wrong)))
    some = CategorySet([Category(2, "thing 2"), Category(9, "stuff 9", isthing=False)])
    (found,) = load_model(ModelSpec("scenes:maskrcnn", categories=some)).predict([image], INSTANCES | SEGMENT)
    assert found.instances is not None
    assert set(found.instances.category_ids.tolist()) <= {2}
    assert found.semantic is not None
    assert set(found.semantic.category_ids.tolist()) <= {2, 9}


def test_a_file_without_the_head_is_the_mask_rcnn_alone(tmp_path: Path, stock_network: MaskRCNN) -> None:
    save_file(stock_network.state_dict(), tmp_path / "things.safetensors")
    model = load_model(ModelSpec("scenes:maskrcnn", str(tmp_path / "things.safetensors")))
    assert model.tasks == ALL - SEGMENT
    assert model.categories == numbered(6)


def test_a_file_that_names_no_categories(tmp_path: Path) -> None:
    torch.save(load_file(SCENES_WEIGHTS), tmp_path / "weights.pth")
    model = load_model(ModelSpec("scenes:maskrcnn", str(tmp_path / "weights.pth")))
    assert [one.isthing for one in model.categories] == [True] * 5 + [False] * 4
