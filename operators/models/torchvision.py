"""torchvision: every detection builder that torchvision registers, with its own weights or a file of yours.

A file's network is `builder(weights=None, weights_backbone=None, num_classes=N)` in evaluation mode, N read off the
file. Torchvision's own files are known by their SHA-256 wherever they lie, and get what their builder would have
added: the first ResNet-50 networks were trained with a batch norm epsilon of 0. A checkpoint that was fine-tuned from
one of those holds no trace of that and is taken with the builder's 1e-5; where it matters, write a `python:` factory.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, detection, get_model_builder, get_model_weights, list_models

from prelabel.operators.detector import DetectorModel, num_classes
from prelabel.operators.models import Family, ModelSpec, Offer, unknown_model
from prelabel.operators.weights import SUFFIXES, file_digest, load_weights, read_weights
from prelabel.schemas.categories import COCO, Category, CategorySet
from prelabel.schemas.errors import ModelError

ZERO_EPSILON = frozenset(
    {
        "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
        "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
        "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    }
)
"""Weights whose builder calls `overwrite_eps(model, 0.0)`, see pytorch/vision#2933."""

_COCO_CLASSES = 91


class TorchvisionFamily(Family):
    """`torchvision:BUILDER`; the weights are an entry of the builder's enum (`DEFAULT`) or a file."""

    def offers(self) -> list[Offer]:
        """The detection builders."""
        return [Offer(name, _tasks(name), "COCO") for name in list_models(module=detection)]

    def weights_path(self, spec: ModelSpec) -> str:
        """The file, or where torch.hub keeps the named weights, downloaded if they are not there yet."""
        if spec.rest not in self.names():
            raise unknown_model(spec.name)
        given = spec.weights or "DEFAULT"
        if Path(given).suffix in SUFFIXES or os.sep in given:
            return given
        return _cached(_named(spec, given))

    def load(self, spec: ModelSpec) -> DetectorModel:
        """The builder's network with as many classes as the weights have."""
        path = self.weights_path(spec)
        digest = file_digest(path)
        official = next((w for w in get_model_weights(spec.rest) if digest.startswith(_hash(w.url))), None)
        if official is None and path != spec.weights:
            raise ModelError(f"weights {path} are damaged: remove the file, and it is downloaded again")
        network = _build(get_model_builder(spec.rest), read_weights(path), path)
        if str(official) in ZERO_EPSILON:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
        return DetectorModel(
            network,
            name=spec.name,
            categories=spec.categories or _categories(network, official),
            score_threshold=spec.score_threshold,
            device=spec.device,
            digest=digest,
        )


def _tasks(name: str) -> tuple[str, ...]:
    return ("detect", "segment_instances") if name.startswith("maskrcnn") else ("detect",)


def _named(spec: ModelSpec, name: str) -> WeightsEnum:
    """The builder's weights of that name, with or without the name of their enum."""
    enum = get_model_weights(spec.rest)
    try:
        return enum[name.removeprefix(f"{enum.__name__}.")]
    except KeyError:
        names = ", ".join(sorted(enum.__members__))
        raise ModelError(f"{spec.name} has no weights {name!r}: give one of {names}, or a file") from None


def _hash(url: str) -> str:
    """The first digits of the file's SHA-256, which torchvision puts at the end of its name."""
    return url.rpartition("-")[2].partition(".")[0]


def _cached(weights: WeightsEnum) -> str:
    """Where torch.hub keeps the file, downloaded and compared with its hash if it is not there yet."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), _hash(weights.url), progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network or no space; another hash
        raise ModelError(
            f"weights {weights}: {weights.url} can't be downloaded ({error}): put the file at {path}, or give another "
            "one with --weights"
        ) from None
    return str(path)


def _build(builder: Callable[..., nn.Module], tensors: dict[str, Tensor], path: str) -> nn.Module:
    """The network that the tensors fit, with them in it."""
    sizes = {
        parameter: _solve(builder, parameter, tensors)
        for parameter in ("num_classes", "num_keypoints")
        if parameter in inspect.signature(builder).parameters
    }
    network = builder(weights=None, weights_backbone=None, **sizes)
    load_weights(network, tensors, path)
    return network


def _solve(builder: Callable[..., nn.Module], parameter: str, tensors: dict[str, Tensor]) -> int:
    """The value of a builder's parameter with which its shapes are those of the tensors.

    Shapes are linear in it, so two networks without storage show them all. Where the tensors don't agree on a value
    they are another network's, which loading them will say.
    """
    with torch.device("meta"):
        two, three = (builder(weights=None, weights_backbone=None, **{parameter: n}).state_dict() for n in (2, 3))
    values = {
        2 + (size - at_two) / (at_three - at_two)
        for name in two.keys() & tensors.keys()
        for size, at_two, at_three in zip(tensors[name].shape, two[name].shape, three[name].shape, strict=False)
        if at_two != at_three
    }
    value = values.pop() if len(values) == 1 else 2
    return int(value) if value >= 1 and value == int(value) else 2


def _categories(network: nn.Module, official: WeightsEnum | None) -> CategorySet | None:
    """What the weights are known to find; None: nobody knows."""
    if num_classes(network) == _COCO_CLASSES:
        return COCO
    if official is None:
        return None
    names: list[Any] = official.meta["categories"]
    return CategorySet(Category(label, name) for label, name in enumerate(names) if label > 0)
