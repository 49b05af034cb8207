"""Tiled models against the same models on whole images, wherever a model can tell both ways alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shapes import SEGMENT, Shapes, mask_runs, paint
from torch import Tensor
from torchvision.io import read_image
from torchvision.ops import box_iou, nms

from prelabel.operators.base import ImageLabels, Instances, Model, Prediction, Proposals, Segments, Task
from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.operators.options import Options
from prelabel.operators.tiled import TiledModel
from prelabel.schemas.errors import ModelError

DETECT = frozenset({Task.DETECT})
SEMANTIC = frozenset({Task.SEGMENT_SEMANTIC})
BLOOD_CELLS = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"


def predict_one(model: Model, image: Tensor, tasks: frozenset[Task]) -> Prediction:
    (prediction,) = model.predict([image], tasks)
    return prediction


def instances_of(prediction: Prediction) -> Instances:
    assert prediction.instances is not None
    return prediction.instances


def assert_equal(found: Any, expected: Any) -> None:
    """Predictions, or parts of them, are the same to the last bit."""
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, strict=True)
    elif isinstance(expected, Prediction | Instances | Proposals | Segments | ImageLabels):
        for name, value in vars(expected).items():
            assert_equal(getattr(found, name), value)
    else:
        assert found == expected


paintings = {
    "height": st.integers(1, 80),
    "width": st.integers(1, 80),
    "shapes": st.integers(0, 12),
    "seed": st.integers(0, 2**32),
}
tiles, overlaps = st.integers(20, 48), st.floats(0.2, 0.6)


# ---- as the model on the whole image


@settings(deadline=None)
@given(st.fixed_dictionaries(paintings), tiles, overlaps)
def test_masks_are_those_of_the_whole_image(painting: dict[str, int], tile: int, overlap: float) -> None:
    image, tasks = paint(**painting), SEGMENT | SEMANTIC | {Task.CLASSIFY}
    tiled = TiledModel(Shapes(), tile, overlap)
    assert_equal(predict_one(tiled, image, tasks), predict_one(Shapes(), image, tasks))


@settings(deadline=None)
@given(st.fixed_dictionaries(paintings), tiles, overlaps)
def test_boxes_are_those_of_the_whole_image(painting: dict[str, int], tile: int, overlap: float) -> None:
    image = paint(**painting, kinds=1)  # what a box shows of another shape, cut, is not what it shows of the whole
    tiled = TiledModel(Shapes(), tile, overlap)
    assert_equal(predict_one(tiled, image, DETECT), predict_one(Shapes(), image, DETECT))


@settings(deadline=None, max_examples=30)
@given(st.fixed_dictionaries(paintings), tiles, st.sampled_from([0.0, 0.03, 0.8]))
def test_segments_are_those_of_the_whole_image_at_any_overlap(
    painting: dict[str, int], tile: int, overlap: float
) -> None:
    image = paint(**painting)
    tiled = TiledModel(Shapes(), tile, overlap)
    assert_equal(predict_one(tiled, image, SEMANTIC), predict_one(Shapes(), image, SEMANTIC))


@pytest.mark.parametrize("size", [(200, 20_000), (20_000, 200), (1, 5000)])
def test_panoramas(size: tuple[int, int]) -> None:
    image, tasks = paint(*size, shapes=40, seed=0), SEGMENT | SEMANTIC
    expected = predict_one(Shapes(), image, tasks)
    assert len(instances_of(expected)) > 5
    assert_equal(predict_one(TiledModel(Shapes(), 1024, 0.25), image, tasks), expected)


@pytest.mark.parametrize("size", [(100, 130), (1, 1)])
def test_nothing_to_find(size: tuple[int, int]) -> None:
    image, tasks = torch.zeros(3, *size, dtype=torch.uint8), Shapes.tasks
    found = predict_one(TiledModel(Shapes(), 32, 0.25), image, tasks)
    assert_equal(found, predict_one(Shapes(), image, tasks))
    assert instances_of(found).masks == []
    assert found.proposals is not None
    assert found.proposals.boxes.shape == (0, 4)


class Counted(Shapes):
    """Remembers the shapes of what it was shown, a batch after the other."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[int, ...]]] = []

    def predict(self, images: Sequence[Tensor], *arguments: Any) -> list[Prediction]:
        self.seen.append([tuple(image.shape[1:]) for image in images])
        return super().predict(images, *arguments)


def test_an_image_within_the_tile_is_shown_as_it_is() -> None:
    inner, images = Counted(), [paint(64, 50, 9, seed) for seed in range(3)]
    tiled = TiledModel(inner, 64, 0.5)
    assert tiled.input_size(64, 50) == inner.input_size(64, 50)
    found = tiled.predict(images, inner.tasks)
    assert inner.seen == [[(64, 50)] * 3]
    for one, image in zip(found, images, strict=True):
        assert_equal(one, predict_one(Shapes(), image, inner.tasks))


def test_an_image_gets_the_same_labels_alone_and_among_others() -> None:
    tiled = TiledModel(Shapes(), 32, 0.3)
    images = [paint(*size, 12, seed) for seed, size in enumerate([(90, 70), (20, 32), (90, 70), (20, 32)])]
    assert tiled.input_size(90, 70) != tiled.input_size(20, 32)
    for one, image in zip(tiled.predict(images, Shapes.tasks), images, strict=True):
        assert_equal(one, predict_one(tiled, image, Shapes.tasks))


def test_windows_are_even_and_cover_the_image() -> None:
    inner = Counted()
    TiledModel(inner, 100, 0.25).predict([torch.zeros(3, 60, 1000, dtype=torch.uint8)], SEGMENT)
    assert inner.seen == [[(60, 100)] * 8, [(60, 100)] * 5]  # 75 apart at most, which 12 gaps are over 900 pixels


# ---- one object or two


class Scripted(Shapes):
    """Says of each window, row by row, what it was told to."""

    tasks = frozenset(set(Task) - {Task.FUSE_PANOPTIC})

    def __init__(self, *answers: Prediction) -> None:
        self.answers = iter(answers)

    def predict(self, images: Sequence[Tensor], *_: Any) -> list[Prediction]:
        return [next(self.answers) for _ in images]


def two_windows(*windows: list[tuple[list[int], float, int]], points: bool = False) -> Instances:
    """What is made of boxes, scores and categories in the windows 0-100 and 60-160 of an image 160 wide, 50 high."""
    answers = []
    for window in windows:
        boxes, scores, ids = ([row[k] for row in window] for k in range(3))
        array = np.array(boxes, np.float32).reshape(-1, 4)
        visible = np.array([[[*box[:2], 2], [0, 0, 0]] for box in boxes], np.float32).reshape(-1, 2, 3)
        columns = array, np.array(scores, np.float32), np.array(ids, np.int32)
        answers.append(Prediction(Instances(*columns, None, visible if points else None)))
    image = torch.zeros(3, 50, 160, dtype=torch.uint8)
    return instances_of(predict_one(TiledModel(Scripted(*answers), 100, 0.4), image, DETECT))


def as_rows(found: Instances) -> list[tuple[list[float], float, int]]:
    columns = found.boxes.tolist(), found.scores.round(3).tolist(), found.category_ids.tolist()
    return [(box, pytest.approx(score), one) for box, score, one in zip(*columns, strict=True)]


RULES = {
    "seen whole twice": ([([65, 5, 90, 30], 0.6, 1)], [([6, 4, 31, 30], 0.7, 1)], [([66, 4, 91, 30], 0.7, 1)]),
    "cut here, whole there": ([([80, 5, 100, 30], 0.9, 1)], [([19, 5, 60, 31], 0.7, 1)], [([79, 5, 120, 31], 0.7, 1)]),
    "cut nearly at the border": (
        [([80, 5, 99, 30], 0.9, 1)],
        [([20, 5, 60, 30], 0.7, 1)],
        [([80, 5, 120, 30], 0.7, 1)],
    ),
    "cut here and there": ([([20, 5, 100, 30], 0.6, 1)], [([0, 6, 60, 32], 0.7, 1)], [([20, 5, 120, 32], 0.7, 1)]),
    "cut, and here only a part": (
        [([20, 5, 100, 14], 0.6, 1)],
        [([0, 5, 60, 30], 0.7, 1)],
        [([20, 5, 120, 30], 0.7, 1)],
    ),
    "of two categories": (
        [([65, 5, 90, 30], 0.6, 1)],
        [([5, 5, 30, 30], 0.7, 2)],
        [([65, 5, 90, 30], 0.7, 2), ([65, 5, 90, 30], 0.6, 1)],
    ),
    "told apart by one window": (
        [([65, 5, 90, 30], 0.6, 1), ([66, 5, 90, 30], 0.5, 1)],
        [],
        [([65, 5, 90, 30], 0.6, 1), ([66, 5, 90, 30], 0.5, 1)],
    ),
    "small within large": (
        [([10, 0, 100, 50], 0.6, 1)],
        [([10, 5, 20, 15], 0.7, 1), ([0, 0, 80, 50], 0.5, 1)],
        [([70, 5, 80, 15], 0.7, 1), ([10, 0, 140, 50], 0.6, 1)],
    ),
    "neighbors": (
        [([65, 5, 80, 30], 0.6, 1)],
        [([19, 5, 40, 30], 0.7, 1)],
        [([79, 5, 100, 30], 0.7, 1), ([65, 5, 80, 30], 0.6, 1)],
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_what_two_windows_see(name: str) -> None:
    left, right, expected = RULES[name]
    assert as_rows(two_windows(left, right)) == expected


def test_keypoints_are_those_of_the_best() -> None:
    found = two_windows([([20, 5, 100, 30], 0.6, 1)], [([0, 6, 60, 32], 0.7, 1)], points=True)
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[60, 6, 2], [0, 0, 0]]]
    assert two_windows([], [], points=True).keypoints is not None


def test_what_only_touches_a_seam_stays() -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[:, 5:10, 15:25] = 9
    found = instances_of(predict_one(TiledModel(Shapes(), 20, 0.0), image, SEGMENT))
    assert found.boxes.tolist() == [[15, 5, 20, 10], [20, 5, 25, 10]]


def test_the_nearer_window_decides_on_segments() -> None:
    full = [mask_runs(np.ones((50, 100), bool))]
    answers = [Prediction(semantic=Segments(np.array([one], np.int32), full)) for one in (2, 1)]
    image = torch.zeros(3, 50, 160, dtype=torch.uint8)
    found = predict_one(TiledModel(Scripted(*answers), 100, 0.4), image, SEMANTIC).semantic
    assert found is not None
    assert found.scores is None
    assert found.category_ids.tolist() == [1, 2]
    assert [mask.bbox for mask in found.masks] == [(80, 0, 80, 50), (0, 0, 80, 50)]


def test_proposals_are_suppressed_as_torchvision_does() -> None:
    generator = torch.Generator().manual_seed(0)
    answers, boxes, scores = [], [], []
    for left in (0, 60, 120):
        corners = torch.rand(400, 2, generator=generator) * torch.tensor([60.0, 20.0])
        box = torch.cat([corners, corners + 10 + torch.rand(400, 2, generator=generator) * 20], 1)
        score = torch.rand(400, generator=generator)
        kept = nms(box, score, 0.7)
        answers.append(Prediction(proposals=Proposals(box[kept].numpy(), score[kept].numpy())))
        boxes.append(box[kept] + torch.tensor([left, 0, left, 0]))
        scores.append(score[kept])
    together, objectness = torch.cat(boxes), torch.cat(scores)
    kept = nms(together, objectness, 0.7)
    assert 500 < len(kept) < len(together)
    image = torch.zeros(3, 50, 220, dtype=torch.uint8)
    found = predict_one(TiledModel(Scripted(*answers), 100, 0.4), image, frozenset({Task.PROPOSE})).proposals
    assert_equal(found, Proposals(together[kept].numpy(), objectness[kept].numpy()))


# ---- what can go wrong


class Small(Shapes):
    """Has memory for so many images at once."""

    def __init__(self, room: int) -> None:
        self.room = room

    def predict(self, images: Sequence[Tensor], *arguments: Any) -> list[Prediction]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError
        return super().predict(images, *arguments)


def test_fewer_windows_at_once_where_memory_runs_out() -> None:
    image = paint(90, 70, 12, seed=5)
    for room in (1, 3):
        found = predict_one(TiledModel(Small(room), 24, 0.3), image, SEGMENT)
        assert_equal(found, predict_one(Shapes(), image, SEGMENT))
    with pytest.raises(torch.OutOfMemoryError):
        TiledModel(Small(0), 24, 0.3).predict([image], SEGMENT)


class OnlyFuses(Shapes):
    tasks = frozenset({Task.FUSE_PANOPTIC})


def test_what_makes_no_sense_is_refused_when_a_model_is_loaded() -> None:
    for tile, overlap, message in [
        (15, 0.25, "tile is 15: give at least 16 pixels"),
        (64, 0.9, "tile_overlap is 0.9: give at least 0 and less than 0.9"),
        (64, float("nan"), "tile_overlap is nan"),
    ]:
        with pytest.raises(ModelError, match=message):
            load_model(ModelSpec("scenes:maskrcnn", options=Options(tile=tile, tile_overlap=overlap)))
    with pytest.raises(ModelError, match="test:shapes can only fuse_panoptic, which can't be tiled: leave tile out"):
        TiledModel(OnlyFuses(), 64, 0.25)


def test_a_tiled_model_passes_for_the_one_it_wraps() -> None:
    spec = ModelSpec("scenes:maskrcnn")
    plain, tiled = load_model(spec), load_model(replace(spec, options=Options(tile=256)))
    assert (tiled.name, tiled.digest, tiled.categories) == (plain.name, plain.digest, plain.categories)
    assert tiled.tasks == plain.tasks - {Task.FUSE_PANOPTIC}


# ---- networks


def test_a_network_of_random_weights() -> None:
    torch.manual_seed(3)
    tiled = TiledModel(DetectorModel(build_scenes_network(), name="scenes:random", score_threshold=0.0), 96, 0.25)
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0)) * 255
    image = torch.nn.functional.interpolate(noise, (130, 170), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)
    found = instances_of(predict_one(tiled, image, SEGMENT))
    assert found.masks is not None
    assert len(found) == len(found.masks) > 50
    assert {mask.rle.size for mask in found.masks} == {(130, 170)}
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [170, 130, 170, 130]).all()


def test_blood_cells_of_a_mosaic(shared_data: Path) -> None:
    weights = shared_data / "weights/blood_cells_fasterrcnn_mobilenet_v3_large_320_fpn.pth"
    spec = ModelSpec(BLOOD_CELLS, str(weights), score_threshold=0.5)
    model, tiled = load_model(spec), load_model(replace(spec, options=Options(tile=480)))
    images = [read_image(str(path)) for path in sorted((shared_data / "blood_cells/images").iterdir())[:4]]
    mosaic = torch.cat([torch.cat(images[:2], 2), torch.cat(images[2:], 2)], 1)
    found, alone = instances_of(predict_one(tiled, mosaic, DETECT)), []
    for image, (y, x) in zip(images, [(0, 0), (0, 640), (480, 0), (480, 640)], strict=True):
        alone.append(instances_of(predict_one(model, image, DETECT)).boxes + np.array([x, y, x, y], np.float32))
    boxes, expected = torch.from_numpy(found.boxes), torch.from_numpy(np.concatenate(alone))
    again = (box_iou(expected, boxes) > 0.5).any(1).float().mean()
    assert again > 0.85
    assert 0.9 < len(boxes) / len(expected) < 1.3  # the seams of the mosaic cut cells in a way of their own
    alike = (box_iou(boxes, boxes) > 0.7).numpy() & (found.category_ids[:, None] == found.category_ids)
    assert alike.sum() == len(found)
    untiled = instances_of(predict_one(model, mosaic, DETECT))
    assert len(untiled) < 0.5 * len(expected)  # what tiles are for
