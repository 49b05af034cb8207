"""A user's own factory: its model is any other's, its mistakes take one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prelabel.operators.base import Task
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.schemas.categories import COCO
from prelabel.schemas.errors import ModelError

FACTORY_NAMES = ("semantic", "other_semantic")
SEGMENT = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})
FACTORIES = """
import torch
from prelabel.operators.base import Model
from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.operators.segmenter import SegmenterModel
from prelabel.schemas.categories import Category, CategorySet

class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Conv2d(3, 2, 1)
    def forward(self, images): return {"out": self.scores(images)}

class Ready(Model):
    tasks, categories, digest = frozenset(), (), "its own"
    def input_size(self, height, width): return height, width
    def predict(self, images, tasks): return []

def network():
    torch.manual_seed(3)
    return build_scenes_network()

ready = Ready()
def model(): return ready
def semantic(seed=0):
    torch.manual_seed(seed)
    categories = CategorySet([Category(1, "ground"), Category(2, "sky", isthing=False)])
    return SegmenterModel(Heads(), name="", categories=categories)
def other_semantic(): return semantic(1)
def text(): return "a text"
def linear(): return torch.nn.Linear(1, 1)
def broken():
    return {}["missing"]
def script():
    raise SystemExit(2)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    (tmp_path / "my_mistake.py").write_text("\nimport not_installed\n")
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit('no --lr given')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path)


def same_network() -> Any:
    """What the factory makes, built here."""
    torch.manual_seed(3)
    return build_scenes_network().eval()


def test_a_factorys_network_is_run_as_it_is(factories: str) -> None:
    model = load_model(ModelSpec("python:my_factories:network", score_threshold=0.0, path=factories))
    assert model.tasks == SEGMENT | {Task.PROPOSE}
    network, image = same_network(), torch.randint(256, (3, 100, 120), dtype=torch.uint8)
    network.roi_heads.score_thresh = 0.0
    with torch.inference_mode():
        (expected,) = network([image.float() / 255])
    (prediction,) = model.predict([image], SEGMENT)
    found = prediction.instances
    assert found is not None
    assert found.masks is not None
    np.testing.assert_allclose(found.boxes, expected["boxes"].numpy(), atol=0.01)
    np.testing.assert_allclose(found.scores, expected["scores"].numpy(), atol=1e-3)
    assert [mask.area for mask in found.masks] == (expected["masks"] > 0.5).sum((1, 2, 3)).tolist()


def test_a_digest_tells_weights_apart(factories: str, tmp_path: Path) -> None:
    spec = ModelSpec("python:my_factories:network", path=factories)
    assert load_model(spec).digest == load_model(spec).digest
    for name, factor in (("same", 1), ("other", 2)):
        tensors = {key: tensor * factor for key, tensor in same_network().state_dict().items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        loaded = load_model(replace(spec, weights=f"{tmp_path}/{name}.safetensors"))
        assert (loaded.digest == load_model(spec).digest) == (name == "same")


@pytest.mark.parametrize("factory", ["network", "model"])
def test_a_digest_tells_an_edited_module_apart(
    factories: str, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for text in (FACTORIES, FACTORIES, f"{FACTORIES}# edited", FACTORIES.replace("its own", "another")):
        (tmp_path / "my_factories.py").write_text(text)
        monkeypatch.delitem(sys.modules, "my_factories", raising=False)
        digests.append(load_model(ModelSpec(f"python:my_factories:{factory}", path=factories)).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


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
        ("my_factories:script", r"failed: SystemExit: 2 \(.*my_factories.py:\d+\)"),
        ("my_script:f", r"importing my_script failed: SystemExit: no --lr given \(.*my_script.py:2\)"),
    ],
)
def test_a_factorys_mistakes_take_one_line(name: str, message: str, factories: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelSpec(f"python:{name}", path=factories, categories=COCO))
    assert "\n" not in str(caught.value)


def test_a_ready_model_is_taken_as_it_is(factories: str) -> None:
    first, again = (load_model(ModelSpec("python:my_factories:model", path=factories)) for _ in range(2))
    assert first.name == "python:my_factories:model"
    assert first.digest == again.digest
    with pytest.raises(ModelError, match="leave --score-threshold out"):
        load_model(ModelSpec("python:my_factories:model", score_threshold=0.5, path=factories))


def test_a_factory_may_wrap_a_semantic_network(factories: str) -> None:
    model, other = (load_model(ModelSpec(f"python:my_factories:{name}", path=factories)) for name in FACTORY_NAMES)
    image = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    (prediction,) = model.predict([image], model.tasks)
    assert prediction.semantic is not None
    assert sum(mask.area for mask in prediction.semantic.masks) == 40 * 50
    assert model.name == "python:my_factories:semantic"
    assert len({model.digest, other.digest}) == 2  # the tensors are in it
