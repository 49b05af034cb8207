"""Weights files: read without running what is in them, named by their content, checked against the network."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prelabel.schemas.errors import ModelError

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
"""Of the files that `read_weights` reads."""

_NESTED = ("model", "state_dict", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_EXPANDED = 2**31
"""Bytes that tensors may have beyond twice their file: one number in it can be a tensor of any size."""
_COUNTER = "num_batches_tracked"  # has no part in a prediction; a frozen batch norm leaves it out


def file_digest(path: str) -> str:
    """SHA-256 of the file, hexadecimal. Raises ModelError where it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"weights {path}: {error.strerror}: give a .safetensors or .pth file with --weights") from None
    return digest.hexdigest()


def state_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the names' order, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: str) -> dict[str, Tensor]:
    """A network's tensors by name, floating point ones as float32, from a file that can't run anything.

    A state_dict inside of a checkpoint is found under "model", "state_dict" or "model_state_dict"; the prefixes of
    DataParallel and torch.compile are taken off.

    Raises:
        ModelError: the file is absent or damaged, holds pickled code or a program, or no state_dict
    """
    content = _read(path)
    most = 2 * os.path.getsize(path) + _EXPANDED
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not _is_state_dict(content):
        raise ModelError(f"weights {path}: there is no state_dict in it: save the network's state_dict() alone")
    odd = next((name for name, tensor in content.items() if not _is_plain(tensor)), None)
    if odd is not None or sum(tensor.nbytes for tensor in content.values()) > most:
        what = f"{odd:.99} is no dense tensor" if odd is not None else "its tensors are larger than the file"
        raise ModelError(f"weights {path}: {what}: save the state_dict() of a plain network")
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def load_weights(network: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """Puts tensors from the file `path` into the network. Raises ModelError where names or shapes differ.

    Names that a module of torchvision had in former versions, as its older files have them, are right as well.
    """
    state = OrderedDict(tensors)
    # without a version, which a file may lack, modules take old names and new; only MNASNet, as a whole, insists on it
    state._metadata = {"": {"version": network._version}}  # type: ignore[attr-defined]
    try:
        differ = [name for names in network.load_state_dict(state, strict=False) for name in names]
    except RuntimeError:  # a shape
        differ = ["shape"]
    own = network.state_dict()
    differ += [name for name, tensor in tensors.items() if name in own and _differs(own[name], tensor)]
    if any(not name.endswith(_COUNTER) for name in differ):
        raise ModelError(f"weights {path} are another network's: {_differences(network, tensors)}: check --model")


def _differences(network: nn.Module, tensors: dict[str, Tensor]) -> str:
    """The first three."""
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_COUNTER)}
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    differ = [f"{name} is missing" for name in own if name not in given]
    differ += [f"{name} is not the network's" for name in given if name not in own]
    differ += [
        f"{name} is {_how(given[name], own[name])} and not {_how(own[name], given[name])}"
        for name in own
        if name in given and _differs(own[name], given[name])
    ]
    return ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")


def _differs(own: Tensor, given: Tensor) -> bool:
    """Whether copying would fail, or make other numbers of whole ones."""
    return own.shape != given.shape or own.is_floating_point() != given.is_floating_point()


def _how(tensor: Tensor, other: Tensor) -> str:
    """What tells it from the other."""
    return str(tuple(tensor.shape) if tensor.shape != other.shape else tensor.dtype)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_complex())
    )


def _read(path: str) -> Any:
    if not Path(path).is_file():
        raise ModelError(f"weights {path}: no such file: give a .safetensors or .pth file with --weights")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return _unpickle(path)
    except pickle.UnpicklingError:
        raise ModelError(
            f"weights {path}: pickled code is refused: save the network's state_dict(), or use safetensors"
        ) from None
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  on malformed files the readers raise anything
        reason = f"{str(error).partition(chr(10))[0] or type(error).__name__:.120}"
        raise ModelError(f"weights {path}: not a weights file, or damaged ({reason}): save or copy it again") from None


def _unpickle(path: str) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            compressed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        if "constants.pkl" in names or "data.pkl" not in names:
            raise ModelError(f"weights {path}: a program is refused (TorchScript, torch.export): save the state_dict()")
        if compressed:
            raise ModelError(f"weights {path}: compressed, which torch.save never does: save the state_dict() again")
    # torchvision's own training scripts leave their command line in the checkpoint: a class without code
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols that a hostile file may say
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
