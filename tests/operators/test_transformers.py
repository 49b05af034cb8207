"""The networks of transformers against the library itself: its processor, the network, its `post_process_*`, one image.

The networks are tiny and random, with weights so large that several labels and queries win.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import (
    BUILDERS,
    DETECTORS,
    IDS,
    MASK_CLASSIFIERS,
    NAMES,
    PANORAMAS,
    SQUARE,
    STUFF,
    detr,
    random_image,
    save,
    segformer,
    vary,
)
from torch import Tensor
from torch.nn.functional import interpolate

from prelabel.operators import label_maps, queries
from prelabel.operators.base import Instances, Model, Segments, Task
from prelabel.operators.models import ModelSpec, available, load_model
from prelabel.operators.options import Options
from prelabel.operators.queries import upscaled_runs
from prelabel.schemas.categories import numbered
from prelabel.schemas.errors import ModelError
from prelabel.schemas.rle import decode, encode

transformers = pytest.importorskip("transformers")

DETECT = frozenset({Task.DETECT})
SEGMENT = frozenset({Task.SEGMENT_INSTANCES})
SEMANTIC = frozenset({Task.SEGMENT_SEMANTIC})
PANOPTIC = frozenset({Task.FUSE_PANOPTIC})


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        save(name, path)
        return path

    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The networks are so small that threads wait for one another."""
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)


def load(folder: Path, **more: Any) -> Any:
    model: Any = load_model(ModelSpec(f"transformers:{folder}", device="cpu", **more))
    model.network.register_forward_hook(vary)
    return model


class Library:
    """The library on its own: one image in, the outputs of one of its `post_process_*` out."""

    def __init__(self, name: str, folder: Path) -> None:
        self.network = getattr(transformers, BUILDERS[name][0]).from_pretrained(folder, dtype=torch.float32).eval()
        self.network.register_forward_hook(vary)
        self.processor = self.images = transformers.AutoImageProcessor.from_pretrained(folder)
        self.is_prompted = name == "oneformer"
        if self.is_prompted:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self.processor = transformers.OneFormerProcessor(self.images, tokenizer, task_seq_length=12)

    def __call__(self, task: str, image: Tensor, prompt: str = "", **options: Any) -> Any:
        told = {"task_inputs": [prompt]} if self.is_prompted else {}
        inputs = self.processor(images=[image], return_tensors="pt", input_data_format="channels_first", **told)
        inputs = {key: inputs[key] for key in inputs if key in signature(self.network.forward).parameters}
        with torch.inference_mode():
            outputs = self.network(**inputs)
        process = getattr(self.images, f"post_process_{task}")
        return process(outputs, target_sizes=[tuple(image.shape[1:])], **options)[0]


IMAGES = {
    "plain": random_image(90, 120),
    "odd": random_image(61, 87, 1),
    "gray": random_image(70, 70, 2)[:1].repeat(3, 1, 1),
    "one": random_image(1, 1, 4),
    "strip": random_image(60, 480, 5),
    "tall": random_image(300, 40, 6),
}


def predict(model: Model, image: Tensor, tasks: frozenset[Task]) -> Any:
    (prediction,) = model.predict([image], tasks)
    return prediction


def masks_of(found: Instances | Segments) -> list[np.ndarray]:
    assert found.masks is not None
    for mask in found.masks:
        assert mask.area == decode(mask.rle).sum() > 0
    return [decode(mask.rle) for mask in found.masks]


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


# ---- what is found, against the library


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_are_the_librarys(name: str, saved: Callable[[str], Path]) -> None:
    model, library = load(saved(name), score_threshold=0.3), Library(name, saved(name))
    for image in IMAGES.values():
        found = predict(model, image, DETECT).instances
        expected = library("object_detection", image, threshold=0.3)
        order = expected["scores"].argsort(descending=True, stable=True)
        labels = expected["labels"][order].numpy()
        wanted = ~np.isin(labels, list(STUFF)) | (name != "detr_masks")
        assert len(labels[wanted]) > 2
        np.testing.assert_array_equal(found.category_ids, IDS[labels][wanted])
        np.testing.assert_allclose(found.scores, expected["scores"][order].numpy()[wanted], atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected["boxes"][order].numpy()[wanted], atol=1e-3)
        assert found.masks is None


@pytest.mark.parametrize("name", ["segformer", *MASK_CLASSIFIERS])
def test_label_maps_are_the_librarys(name: str, saved: Callable[[str], Path]) -> None:
    model, library = load(saved(name)), Library(name, saved(name))
    for key, image in IMAGES.items():
        found = predict(model, image, SEMANTIC).semantic
        expected = library("semantic_segmentation", image, "semantic").numpy()
        assert len(found) == len(np.unique(expected))
        assert len(found) > 3 or key == "one"
        for category, mask in zip(found.category_ids, masks_of(found), strict=True):
            np.testing.assert_array_equal(mask, IDS[expected] == category)


@pytest.mark.parametrize("name", MASK_CLASSIFIERS)
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_instances_are_the_librarys(name: str, threshold: float, saved: Callable[[str], Path]) -> None:
    """Its own, less those of stuff; where they may overlap, as binary maps."""
    model, library = load(saved(name), score_threshold=threshold), Library(name, saved(name))
    apart = {} if name in ("oneformer", "detr_masks") else {"return_binary_maps": True}
    count = 0
    for image in IMAGES.values():
        found = predict(model, image, SEGMENT).instances
        expected = library("instance_segmentation", image, "instance", threshold=threshold, **apart)
        segments = [one for one in expected["segments_info"] if one["label_id"] not in STUFF]
        segments.sort(key=lambda one: -one["score"])
        maps = expected["segmentation"].numpy()
        np.testing.assert_array_equal(found.category_ids, IDS[[one["label_id"] for one in segments]])
        np.testing.assert_allclose(found.scores, [one["score"] for one in segments], atol=2e-6)
        for box, mask, one in zip(found.boxes, masks_of(found), segments, strict=True):
            np.testing.assert_array_equal(mask, maps[one["id"]] == 1 if apart else maps == one["id"])
            np.testing.assert_array_equal(box, tight_box(mask))
        count += len(found)
    assert count > (6 if name == "oneformer" else 12)


@pytest.mark.parametrize("name", MASK_CLASSIFIERS)
@pytest.mark.parametrize(("score", "overlap"), [(None, None), (0.6, 0.1)])
def test_panoptic_segments_are_the_librarys(
    name: str, score: float | None, overlap: float | None, saved: Callable[[str], Path]
) -> None:
    """Its own without fusing, whose ids are right; stuff is fused here."""
    model = load(saved(name), options=Options(panoptic_score=score, panoptic_overlap=overlap))
    library = Library(name, saved(name))
    options = {"threshold": score or 0.5, "overlap_mask_area_threshold": overlap or 0.8}
    fused = 0
    for image in IMAGES.values():
        found = predict(model, image, PANOPTIC).panoptic
        expected = library("panoptic_segmentation", image, "panoptic", label_ids_to_fuse=set(), **options)
        maps, segments = expected["segmentation"].numpy(), {}
        for one in expected["segments_info"]:
            label = one["label_id"]
            key = label if label in STUFF else -one["id"]
            mask, best = segments.get(key, (False, 0.0, 0))[:2]
            segments[key] = mask | (maps == one["id"]), max(best, one["score"]), label
        best_first = sorted(segments.values(), key=lambda one: -one[1])
        np.testing.assert_array_equal(found.category_ids, IDS[[label for _, _, label in best_first]])
        np.testing.assert_allclose(found.scores, [score for _, score, _ in best_first], atol=2e-6)
        np.testing.assert_array_equal(masks_of(found), [mask for mask, _, _ in best_first])
        fused += len(expected["segments_info"]) - len(found)
    assert fused > 0 or overlap is None


@pytest.mark.parametrize("name", BUILDERS)
def test_an_image_alone_and_among_others(name: str, saved: Callable[[str], Path]) -> None:
    model = load(saved(name), score_threshold=0.3)
    images = [IMAGES["plain"], random_image(90, 120, 7), random_image(180, 240, 8), torch.zeros_like(IMAGES["plain"])]
    assert len({model.input_size(*image.shape[1:]) for image in images}) == 1
    for image, together in zip(images, model.predict(images, model.tasks), strict=True):
        alone = predict(model, image, model.tasks)
        for part in ("instances", "semantic", "panoptic"):
            one, other = getattr(alone, part), getattr(together, part)
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_array_equal(one.category_ids, other.category_ids)
                for mask, same in zip(one.masks or [], other.masks or [], strict=True):
                    assert (decode(mask.rle) != decode(same.rle)).mean() < 1e-3
        if alone.instances is not None:
            np.testing.assert_allclose(alone.instances.boxes, together.instances.boxes, atol=0.01)
            np.testing.assert_allclose(alone.instances.scores, together.instances.scores, atol=1e-3)


def test_one_pass_serves_all_tasks_but_oneformers(saved: Callable[[str], Path]) -> None:
    for name, passes in (("mask2former", 1), ("detr_masks", 1), ("oneformer", 3)):
        model, seen = load(saved(name)), []
        model.network.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        everything = predict(model, IMAGES["plain"], model.tasks)
        assert len(seen) == passes
        for tasks in (SEGMENT, SEMANTIC, PANOPTIC):
            for part, found in vars(predict(model, IMAGES["plain"], tasks)).items():
                if found is not None:
                    np.testing.assert_array_equal(found.category_ids, getattr(everything, part).category_ids)


def test_nothing_found(saved: Callable[[str], Path]) -> None:
    for name in ("detr", "rt_detr", *MASK_CLASSIFIERS):
        model = load(saved(name), score_threshold=1.0, options=Options(panoptic_score=1.0))
        found = predict(model, IMAGES["plain"], model.tasks)
        assert found.instances.boxes.shape == (0, 4)
        assert len(found.instances) == 0
        assert found.panoptic is None or len(found.panoptic) == 0


# ---- sizes


@pytest.mark.parametrize("name", BUILDERS)
def test_images_of_any_shape(name: str, saved: Callable[[str], Path]) -> None:
    model = load(saved(name))
    processor = transformers.AutoImageProcessor.from_pretrained(saved(name))
    for image in IMAGES.values():
        pixels = processor([image], return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        assert model.input_size(*image.shape[1:]) == tuple(pixels.shape[-2:])
    sizes = [(1, 900), (900, 1), (200, 20_000)]
    assert max(side for size in sizes for side in model.input_size(*size)) <= 128
    for size in sizes if name in PANORAMAS else sizes[:2]:
        found = predict(model, random_image(*size), model.tasks)
        if found.semantic is not None:
            assert sum(mask.area for mask in found.semantic.masks) == size[0] * size[1]


def test_the_margins_are_not_cropped_off_and_no_side_is_endless(tmp_path: Path) -> None:
    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 24, 32, 40, 40], aspp_out_channels=16, id2label=NAMES
    )
    transformers.MobileViTForSemanticSegmentation(config).save_pretrained(tmp_path)
    transformers.MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.input_size(60, 90) == (64, 96)
    assert model.input_size(200, 20_000) == (32, 4096)
    found = predict(model, random_image(60, 90), SEMANTIC).semantic
    assert sum(mask.area for mask in found.masks) == 60 * 90


def test_a_strip_is_not_too_thin_for_segformer(tmp_path: Path) -> None:
    transformers.SegformerForSemanticSegmentation(segformer(id2label=NAMES)).save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.input_size(60, 90) == (64, 96)
    found = predict(model, random_image(20, 2000), SEMANTIC).semantic
    assert sum(mask.area for mask in found.masks) == 20 * 2000


def test_strips_and_small_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(0))
    candidates = queries.Candidates(values, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]))
    whole = queries.contested_masks(candidates, (50, 41), overlap=0.0, fused={1})
    monkeypatch.setattr(label_maps, "STRIP_BYTES", 1000)
    in_strips = queries.contested_masks(candidates, (50, 41), overlap=0.0, fused={1})
    assert whole.masks == in_strips.masks
    assert len(whole.masks) == 2
    for height, width in ((1, 1), (5, 4), (7, 9), (8, 23), (100, 3), (301, 77)):
        mask = values[0] > 0.5
        expected = interpolate(mask[None, None].float(), (height, width), mode="nearest")[0, 0].bool().numpy()
        assert upscaled_runs(mask.numpy(), (height, width)).rle == encode(expected)


# ---- loading


def test_weights_of_a_file(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved("detr")
    torch.manual_seed(1)
    network = transformers.DetrForObjectDetection(detr(id2label=NAMES)).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "mine.pth")
    model = load(folder, weights=str(tmp_path / "mine.pth"))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor)
    digests = {load(folder).digest, load(folder).digest, model.digest}
    assert len(digests) == 2
    with pytest.raises(ModelError, match=r"mine\.pth are another network's: \d+ tensors"):
        load(saved("yolos"), weights=str(tmp_path / "mine.pth"))


def test_a_pickle_is_read_as_a_state_dict_alone(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for file in saved("detr").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    network = transformers.DetrForObjectDetection(detr(id2label=NAMES))
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    assert load(tmp_path).tasks == DETECT
    torch.save(network, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be loaded"):
        load(tmp_path)


def test_what_can_not_be_loaded(saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no config\.json in that directory"):
        load(tmp_path)
    config = json.loads((saved("detr") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"weights .* can't be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["DetrModel"]}))
    with pytest.raises(ModelError, match="is a DetrModel: take one for object detection"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="AutoConfig can't read it"):
        load(tmp_path)
    with pytest.raises(ModelError, match="5 labels, and there are 2 categories"):
        load(saved("detr"), categories=numbered(3))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download nobody/has-this --local-dir DIRECTORY"):
        load_model(ModelSpec("transformers:nobody/has-this"))
    with pytest.raises(ModelError, match="there is no such directory"):
        load_model(ModelSpec("transformers:./not/here"))


def test_weights_of_another_network(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for file in saved("detr").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_queries": 7}))
    with pytest.raises(ModelError, match="check --model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    transformers.ViTImageProcessor(size=SQUARE).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"fails on a black image .*: check that ViTImageProcessor is its network's own"
    ):
        load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ModelError, match="AutoImageProcessor can't read it"):
        load(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="AutoImageProcessor can't read it"):
        load(tmp_path)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = available()["transformers"]
    assert {offer.extra for offer in offers} == {"transformers"}
    assert offers[0].name == "DIRECTORY"
    stock = builtins.__import__

    def nothing_there(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return stock(name, *rest)

    monkeypatch.setattr(builtins, "__import__", nothing_there)
    assert available()["transformers"] == offers
    with pytest.raises(ModelError, match=r"needs transformers: pip install 'prelabel\[transformers\]'"):
        load_model(ModelSpec("transformers:facebook/detr-resnet-50"))
