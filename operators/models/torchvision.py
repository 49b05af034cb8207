"""torchvision: its builders of detectors, segmenters and classifiers, with their own weights or a file of yours.

A file's network is `builder(weights=None, weights_backbone=None, num_classes=N)` in evaluation mode, N read off the
file. Torchvision's own files are known by their SHA-256 wherever they lie, and get what their builder would have
added: the first ResNet-50 detectors were trained with a batch norm epsilon of 0, GoogLeNet and Inception v3 with
another normalization of their input. A checkpoint that was fine-tuned from one of those holds no trace of that and is
taken with the builder's defaults; where it matters, write a `python:` factory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from prelabel.operators.base import Model
from prelabel.operators.classifier import ClassifierModel
from prelabel.operators.detector import DetectorModel, num_classes
from prelabel.operators.models import Family, ModelSpec, Offer, unknown_model
from prelabel.operators.models.torchvision_networks import CLASSIFIERS, DETECTORS, SEGMENTERS, build_network
from prelabel.operators.segmenter import SegmenterModel
from prelabel.operators.weights import SUFFIXES, file_digest, read_weights
from prelabel.schemas.categories import COCO, COCO_PERSON, VOC, Category, CategorySet
from prelabel.schemas.errors import ModelError

_DETECTOR_TASKS = {
    "fasterrcnn": ("propose", "detect"),
    "maskrcnn": ("propose", "detect", "segment_instances"),
    "keypointrcnn": ("propose", "detect", "detect_keypoints"),
}
"""Those of the first part of a builder's name; the other detectors look once, and detect."""
_COCO_CLASSES = 91


class TorchvisionFamily(Family):
    """`torchvision:BUILDER`; the weights are an entry of the builder's enum (`DEFAULT`) or a file."""

    def offers(self) -> list[Offer]:
        """The builders of detectors, of semantic segmenters, and of classifiers."""
        return [
            *(Offer(name, _detector_tasks(name), _detector_categories(name)) for name in DETECTORS),
            *(Offer(name, ("segment_semantic",), "VOC") for name in SEGMENTERS),
            *(Offer(name, ("classify",), "ImageNet") for name in CLASSIFIERS),
        ]

    def weights_path(self, spec: ModelSpec) -> str:
        """The file, or where torch.hub keeps the named weights, downloaded if they are not there yet."""
        if spec.rest not in self.names():
            raise unknown_model(spec.name)
        given = spec.weights or "DEFAULT"
        if Path(given).suffix in SUFFIXES or os.sep in given:
            return given
        return _cached(_named(spec, given))

    def load(self, spec: ModelSpec) -> Model:
        """The builder's network with as many classes as the weights have."""
        path = self.weights_path(spec)
        digest = file_digest(path)
        official = _official(spec, path, digest)
        network = build_network(spec.rest, read_weights(path), path, official)
        categories = spec.categories or _categories(network, official)
        said: dict[str, Any] = {"name": spec.name, "categories": categories, "device": spec.device, "digest": digest}
        if spec.rest in SEGMENTERS:
            return SegmenterModel(network, **said)
        said["score_threshold"] = spec.score_threshold
        if spec.rest in CLASSIFIERS:
            return ClassifierModel(network, preset=_preset(spec.rest, network, official), **said)
        return DetectorModel(network, **said)


def _detector_tasks(name: str) -> tuple[str, ...]:
    return _DETECTOR_TASKS.get(name.partition("_")[0], ("detect",))


def _detector_categories(name: str) -> str:
    return "COCO person keypoints" if name.startswith("keypointrcnn") else "COCO"


def _named(spec: ModelSpec, name: str) -> WeightsEnum:
    """The builder's weights of that name, with or without the name of their enum."""
    enum = get_model_weights(spec.rest)
    try:
        return enum[name.removeprefix(f"{enum.__name__}.")]
    except KeyError:
        names = ", ".join(sorted(enum.__members__))
        raise ModelError(f"{spec.name} has no weights {name!r}: give one of {names}, or a file") from None


def _official(spec: ModelSpec, path: str, digest: str) -> WeightsEnum | None:
    """Which of torchvision's weights the file holds, if any; ModelError where it should and doesn't."""
    official = next((w for w in get_model_weights(spec.rest) if digest.startswith(_hash(w.url))), None)
    if official is None and path != spec.weights:
        raise ModelError(f"weights {path} are damaged: remove the file, and it is downloaded again")
    if official is not None and official.meta["categories"] is None:
        raise ModelError(f"weights {official} are for features and not for classes: give other ones with --weights")
    return official


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


def _categories(network: nn.Module, official: WeightsEnum | None) -> CategorySet | None:
    """What the weights are known to find; None: nobody knows."""
    if num_classes(network) == _COCO_CLASSES:
        return COCO
    if official is None:
        return None
    names = official.meta["categories"]
    if "keypoint_names" in official.meta:
        return COCO_PERSON
    if names[0] == "__background__":
        return VOC
    return CategorySet(Category(label, name) for label, name in enumerate(names))


def _preset(name: str, network: Any, official: WeightsEnum | None) -> nn.Module:
    """What makes a classifier's input, at the size of a vision transformer that was trained at another one."""
    transforms = (official or get_model_weights(name).DEFAULT).transforms
    preset: Any = transforms()
    size = getattr(network, "image_size", preset.crop_size[0])
    made: nn.Module = preset if preset.crop_size == [size] else transforms(crop_size=size, resize_size=size)
    return made
