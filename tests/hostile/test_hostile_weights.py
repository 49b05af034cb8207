"""Weights from strangers: nothing in them runs, and one line says what is wrong with which tensor."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.scenes_network import build_scenes_network
from prelabel.operators.weights import file_digest, read_weights
from prelabel.schemas.errors import ModelError

BIAS = "roi_heads.box_predictor.cls_score.bias"


class Code:
    """Leaves a file behind, if it is ever run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in build_scenes_network().state_dict().items()}


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def compressed(data: bytes) -> bytes:
    """The same archive with its entries compressed, as a bomb would be."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)), file)
    return file.getvalue()


def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),)), file)
    return file.getvalue()


def old_tar(mark: Path) -> bytes:
    """The form of torch 0.1, whose reader unpacks it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(Code(mark))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "code.pth": (lambda mark: saved({"state_dict": Code(mark)}), "pickled code is refused"),
    "code in a tensor's place.pth": (lambda mark: saved({"w": Code(mark)}), "pickled code is refused"),
    "old code.pth": (
        lambda mark: saved({"w": Code(mark)}, _use_new_zipfile_serialization=False), "pickled code is refused",
    ),
    "bare pickle.pth": (lambda mark: pickle.dumps(Code(mark)), "pickled code is refused"),
    "pickle.safetensors": (lambda mark: pickle.dumps(Code(mark)), "damaged"),
    "pickle.bin": (lambda mark: b"\x80\x02cos\nsystem\n(S'id'\ntR.", "pickled code is refused"),
    "old tar.tar": (old_tar, "damaged|refused"),
    "script.pt": (lambda mark: scripted(), "a program is refused"),
    "exported.pt2": (lambda mark: exported(), "a program is refused"),
    "compressed.pth": (lambda mark: compressed(saved(state())), "compressed, which torch.save never does"),
    "expanded.pth": (lambda mark: saved({"w": torch.zeros(1).expand(2**40)}), "larger than the file"),
    "sparse.pth": (lambda mark: saved({"w": torch.eye(3).to_sparse()}), "w is no dense tensor|damaged|refused"),
    "meta.pth": (lambda mark: saved({"w": torch.empty(2**40, device="meta")}), "w is no dense tensor"),
    "complex.pth": (lambda mark: saved({"w": torch.zeros(1, dtype=torch.complex64)}), "w is no dense tensor"),
    "numbers.pth": (lambda mark: saved({1: torch.zeros(1)}), "no state_dict"),
    "nothing.pth": (lambda mark: saved({}), "no state_dict"),
    "a list.pth": (lambda mark: saved([torch.zeros(1)]), "no state_dict"),
    "zeros.pth": (lambda mark: bytes(1_000), "damaged"),
    "header.safetensors": (lambda mark: b"\xff" * 8 + b"{}", "damaged"),
    "offsets.safetensors": (lambda mark: save({"w": torch.zeros(9)}).replace(b"[0,36]", b"[9,36]"), "damaged"),
    "cut.safetensors": (lambda mark: save(state())[:-1_000], "damaged"),
    "cut.pth": (lambda mark: saved(state())[:-1_000], "damaged"),
    "cut in half.pth": (lambda mark: saved(state())[:200_000], "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[name]
    (tmp_path / name).write_bytes(make(tmp_path / "mark"))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ModelError, match=f"{name}: .*({reason})") as caught:
        read_weights(str(tmp_path / name))
    assert len(str(caught.value)) < 500
    assert sorted(os.listdir(tmp_path)) == before == [name]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({BIAS: torch.zeros(9)}, rf"{BIAS} is \(9,\) and not \(6,\)"),
        ({BIAS: torch.zeros(6, dtype=torch.int64)}, rf"{BIAS} is torch.int64 and not torch.float32"),
        ({BIAS: None}, f"{BIAS} is missing"),
        ({"other": torch.zeros(1)}, "other is not the network's"),
    ],
)
def test_the_tensor_that_does_not_fit_is_named(suffix: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in (state() | change).items() if tensor is not None}
    path = str(tmp_path / f"w.{suffix}")
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        source = load_metadata()
        save_file(tensors, path, metadata=source)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(ModelSpec("scenes:maskrcnn", weights=path))
    assert "\n" not in str(caught.value)


def load_metadata() -> dict[str, str]:
    """What the bundled weights say of themselves."""
    from safetensors import safe_open

    from prelabel.operators.models.scenes import SCENES_WEIGHTS

    with safe_open(SCENES_WEIGHTS, "pt") as file:
        return dict(file.metadata())


def test_weights_are_pinned_by_their_hash_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prelabel.operators.models.scenes import SCENES_WEIGHTS

    right = file_digest(str(SCENES_WEIGHTS))
    spec = ModelSpec("scenes:maskrcnn", weights_sha256=right.upper())
    assert load_model(spec).digest == right
    (tmp_path / "other.pth").write_bytes(saved(Code(tmp_path / "mark")))
    monkeypatch.setattr("prelabel.operators.models.scenes.read_weights", None)  # is not come to
    with pytest.raises(ModelError, match=rf"other.pth have the SHA-256 \w+, and not {right} as --weights-sha256 says"):
        load_model(ModelSpec("scenes:maskrcnn", weights=str(tmp_path / "other.pth"), weights_sha256=right))
    with pytest.raises(ModelError, match="--weights-sha256 is of a file"):
        load_model(ModelSpec("regions:sliding_windows", weights_sha256=right))
