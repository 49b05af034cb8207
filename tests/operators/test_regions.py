"""Regions proposed without a network: where they lie, what they find, what they depend on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from prelabel.operators.base import Proposals, Task
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.regions import RATIOS, SCALES
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import ModelError

WINDOWS, SEARCH = "regions:sliding_windows", "regions:selective_search"
PROPOSE = frozenset({Task.PROPOSE})
SIZES = [(1, 1), (1, 2), (3, 2), (1, 300), (90, 120), (200, 20_000), (20_000, 200)]


def propose(name: str, *images: Tensor) -> list[Proposals]:
    found = [prediction.proposals for prediction in load_model(ModelSpec(name)).predict(images, PROPOSE)]
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


def random_image(height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def cards(height: int, width: int, gray: bool = False) -> tuple[Tensor, Tensor]:
    """Four plain rectangles on a plain ground, and their boxes."""
    image, boxes = torch.full((3, height, width), 90, dtype=torch.uint8), []
    for k, color in enumerate([(250, 30, 30), (30, 220, 60), (40, 60, 240), (240, 240, 230)]):
        x0, y0 = width * (1 + 4 * (k % 2)) // 8, height * (1 + 4 * (k // 2)) // 8
        x1, y1 = x0 + width * (1 + k) // 16, y0 + height // 4
        image[:, y0:y1, x0:x1] = torch.tensor(color if not gray else (60 * k + 20,) * 3)[:, None, None]
        boxes.append([x0, y0, x1, y1])
    return image, torch.tensor(boxes, dtype=torch.float32)


def recalled(boxes: Tensor, found: Proposals, iou: float) -> bool:
    return bool((box_iou(boxes, torch.from_numpy(found.boxes)).amax(1) > iou).all())


@pytest.mark.parametrize("name", [WINDOWS, SEARCH])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_regions_of_any_image_lie_in_it(name: str, height: int, width: int) -> None:
    if name == SEARCH:
        pytest.importorskip("cv2")
    (found,) = propose(name, random_image(height, width))
    assert 1 <= len(found) <= 3000
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, 2:] <= (width, height)).all()
    assert (found.boxes[:, 2:] - found.boxes[:, :2] > 0.999).all()
    assert len(np.unique(found.boxes, axis=0)) == len(found)
    assert found.scores[0] == 1
    assert (np.diff(found.scores) < 0).all()
    assert found.scores[-1] > 0


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1200, 900), (300, 1500)])
def test_no_box_of_a_windows_shape_is_far_from_a_window(height: int, width: int) -> None:
    (found,) = propose(WINDOWS, random_image(height, width))
    random, mean = np.random.default_rng(0), np.sqrt(height * width)
    for scale in SCALES:
        for ratio in RATIOS:
            side = min(mean * scale / np.sqrt(ratio), width), min(mean * scale * np.sqrt(ratio), height)
            x0, y0 = random.uniform(0, width - side[0], 20), random.uniform(0, height - side[1], 20)
            boxes = torch.from_numpy(np.stack([x0, y0, x0 + side[0], y0 + side[1]], 1)).float()
            assert recalled(boxes, found, 0.75**2 / (2 - 0.75**2) - 1e-4)  # half a stride off in both directions


@pytest.mark.parametrize(("height", "width", "gray"), [(120, 160, False), (120, 160, True), (1500, 2000, False)])
def test_selective_search_finds_what_stands_out(height: int, width: int, gray: bool) -> None:
    pytest.importorskip("cv2")
    image, boxes = cards(height, width, gray)
    (found,) = propose(SEARCH, image)
    assert recalled(boxes, found, 0.8)


def test_regions_depend_on_the_image_alone() -> None:
    pytest.importorskip("cv2")
    images = [cards(60, 80)[0], random_image(150, 110), random_image(60, 80)]
    together = propose(SEARCH, *images)
    for image, expected in zip(reversed(images), reversed(together), strict=True):
        (alone,) = propose(SEARCH, image)
        np.testing.assert_array_equal(alone.boxes, expected.boxes)
    assert len(together[1]) > 20


def test_what_is_wrong_takes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="did you mean regions:selective_search"):
        load_model(ModelSpec("regions:selective"))
    with pytest.raises(ModelError, match="regions:sliding_windows finds no categories: leave --categories out"):
        load_model(ModelSpec("regions:sliding_windows", categories=CategorySet([])))
    with pytest.raises(ModelError, match="regions:sliding_windows has no weights: leave --weights out"):
        load_model(ModelSpec(WINDOWS, "some.pth"))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModelError, match=r"pip install 'prelabel\[selective-search\]'"):
        load_model(ModelSpec(SEARCH))


def test_an_opencv_without_contrib_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pytest.importorskip("cv2"), "ximgproc")
    with pytest.raises(ModelError, match="lacks selective search: pip uninstall"):
        load_model(ModelSpec(SEARCH))
