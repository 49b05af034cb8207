"""Weights files: which forms are one and the same, and which are refused."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.operators.weights import load_weights, read_weights, state_digest
from prelabel.schemas.errors import ModelError


def small_state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in build_scenes_network().state_dict().items()}


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
    load_weights(build_scenes_network(), state, "frozen.pth")
    state["extra"] = state.pop("backbone.stem.0.0.weight")
    state["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(9)
    with pytest.raises(
        ModelError, match=r"stem.0.0.weight is missing, extra is not .*, .*bias is \(9,\) and not \(6,\)"
    ):
        load_weights(build_scenes_network(), state, "other.pth")
