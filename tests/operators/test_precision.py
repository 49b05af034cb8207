"""bfloat16 where a job asks for it: other roundings, the same findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stock import random_image
from tiny_transformers import save
from torchvision import models
from torchvision.ops import box_iou

from prelabel.operators.base import Model, Prediction, Task
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.options import Options
from prelabel.pipeline.scenes import make_scene
from prelabel.schemas import rle

BF16 = Options(precision="bf16")


def both(spec: ModelSpec) -> tuple[Model, Model]:
    rounded = ModelSpec(spec.name, spec.weights, categories=spec.categories, path=spec.path, options=BF16)
    return load_model(spec), load_model(rounded)


def answer(model: Model, image: torch.Tensor) -> Prediction:
    (found,) = model.predict([image], model.tasks)
    return found


def test_scenes_are_labeled_alike() -> None:
    exact, rounded = both(ModelSpec("scenes:maskrcnn"))
    assert (exact.name, exact.tasks, exact.digest) == (rounded.name, rounded.tasks, rounded.digest)
    assert exact.input_size(100, 300) == rounded.input_size(100, 300)
    for index in range(4):
        image = torch.from_numpy(make_scene(99, index).image).permute(2, 0, 1).contiguous()
        one, other = answer(exact, image), answer(rounded, image)
        assert one.instances is not None
        assert other.instances is not None
        assert one.semantic is not None
        assert other.semantic is not None
        sure = one.instances.scores > 0.6
        same = torch.tensor(one.instances.category_ids[sure, None] == other.instances.category_ids)
        iou = box_iou(torch.tensor(one.instances.boxes[sure]), torch.tensor(other.instances.boxes)) * same
        iou, best = iou.max(1)
        assert (iou > 0.8).all()
        assert not np.array_equal(one.instances.scores[sure], other.instances.scores[best])  # it was bfloat16
        for category_id, mask in zip(one.semantic.category_ids, one.semantic.masks, strict=True):
            if mask.area > 500:
                (twin,) = (
                    m
                    for c, m in zip(other.semantic.category_ids, other.semantic.masks, strict=True)
                    if c == category_id
                )
                common = rle.area(rle.merge([mask.rle, twin.rle], intersect=True))
                assert common > 0.9 * max(mask.area, twin.area)


@pytest.mark.parametrize(
    "builder", ["lraspp_mobilenet_v3_large", "mobilenet_v3_small", "ssdlite320_mobilenet_v3_large"]
)
def test_torchvision_in_bfloat16(builder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    named = {} if builder.startswith("mobilenet") else {"weights_backbone": None}
    torch.save(models.get_model(builder, weights=None, num_classes=4, **named).state_dict(), tmp_path / "weights.pth")
    exact, rounded = both(ModelSpec(f"torchvision:{builder}", str(tmp_path / "weights.pth")))
    one, other = answer(exact, random_image(64, 80)), answer(rounded, random_image(64, 80))
    if one.labels is not None:
        assert other.labels is not None
        np.testing.assert_allclose(np.sort(one.labels.scores), np.sort(other.labels.scores), atol=0.02)
    for name in ("instances", "semantic", "labels"):
        assert (getattr(one, name) is None) == (getattr(other, name) is None)


@pytest.mark.parametrize("name", ["detr", "segformer", "mask2former"])
def test_transformers_in_bfloat16(name: str, tmp_path: Path) -> None:
    save(name, tmp_path)
    _, rounded = both(ModelSpec(f"transformers:{tmp_path}"))
    found = answer(rounded, random_image(64, 80))
    assert any(one is not None for one in (found.instances, found.semantic, found.panoptic))
    assert rounded.tasks <= set(Task)
