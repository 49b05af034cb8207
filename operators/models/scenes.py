"""scenes: the bundled demo network, for the generated scenes; needs no download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from prelabel.operators.base import Prediction, Proposals, Segments, Task
from prelabel.operators.detector import DetectorModel
from prelabel.operators.label_maps import semantic_segments, upsampled_argmax
from prelabel.operators.models import Family, ModelSpec, Offer, unknown_model
from prelabel.operators.models.scenes_network import (
    NUM_CLASSES,
    NUM_SEMANTIC_CLASSES,
    SCENES_WEIGHTS,
    SemanticHead,
    build_scenes_network,
)
from prelabel.operators.weights import file_digest, load_weights, read_weights
from prelabel.schemas.categories import CategorySet, label_map, numbered

SEMANTIC = "semantic."
"""Prefix of the semantic head's tensors in the weights; the others are the Mask R-CNN's."""


class ScenesFamily(Family):
    """`scenes:maskrcnn`; the weights beside this file, or a file of yours for the same network."""

    def offers(self) -> list[Offer]:
        """The only one."""
        tasks = ("propose", "detect", "segment_instances", "segment_semantic", "fuse_panoptic")
        return [Offer("maskrcnn", tasks, "the scenes'")]

    def weights_path(self, spec: ModelSpec) -> str:
        """The file."""
        return spec.weights or str(SCENES_WEIGHTS)

    def load(self, spec: ModelSpec) -> DetectorModel:
        """The network; what it finds is said in the metadata of its weights."""
        if spec.rest not in self.names():
            raise unknown_model(spec.name)
        path = self.weights_path(spec)
        tensors = read_weights(path)
        semantic = {name.removeprefix(SEMANTIC): tensors.pop(name) for name in [*tensors] if name.startswith(SEMANTIC)}
        options: dict[str, Any] = {
            "name": spec.name,
            "categories": spec.categories or _categories(path),
            "score_threshold": spec.score_threshold,
            "device": spec.device,
            "digest": file_digest(path),
        }
        network, head = build_scenes_network(), SemanticHead()
        load_weights(network, tensors, path)
        if not semantic:  # a Mask R-CNN alone, as tools/train_scenes.py leaves it
            return DetectorModel(network, **options)
        load_weights(head, semantic, path)
        return ScenesModel(network, head, **options)


class ScenesModel(DetectorModel):
    """A Mask R-CNN whose feature maps serve a semantic head as well: the backbone sees each image once."""

    network: MaskRCNN

    def __init__(
        self, network: MaskRCNN, head: SemanticHead, *, name: str, categories: CategorySet | None = None, **options: Any
    ) -> None:
        """Takes both over.

        Args:
            network: finds the things
            head: for things and stuff
            name: as `family:name`
            categories: the five things, then the four kinds of stuff; None: numbered
            options: see `DetectorModel`
        """
        super().__init__(network, name=name, **options)
        self.tasks |= {Task.SEGMENT_SEMANTIC}
        self.categories = categories or _numbered()
        self._semantic_ids = label_map(self.categories, NUM_SEMANTIC_CLASSES)
        self._category_ids = self._semantic_ids[:NUM_CLASSES]
        self.head = head.eval().requires_grad_(False).to(self.device)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order; of an image too thin for the network's resize all is void."""
        if Task.SEGMENT_SEMANTIC not in tasks:
            return super().predict(images, tasks)
        others = tasks - {Task.SEGMENT_SEMANTIC}
        with _calls_of(self.network.rpn) as calls:
            predictions = super().predict(images, others) if others else [Prediction() for _ in images]
        seen = calls if others else self._look(images)
        void = Segments(np.zeros(0, np.int32), [])
        semantic = self._semantic(images, *seen[0][:2]) if seen else [void] * len(images)
        return [replace(one, semantic=segments) for one, segments in zip(predictions, semantic, strict=True)]

    def _look(self, images: Sequence[Tensor]) -> list[tuple[Any, ...]]:
        """The network's `ImageList` and feature maps alone, unless an image is too thin for its resize."""
        if any(0 in self.input_size(*image.shape[1:]) for image in images):
            return []
        with torch.inference_mode():
            inputs, _ = self.network.transform([self._to_input(image) for image in images])
            return [(inputs, self.network.backbone(inputs.tensors))]

    def _semantic(self, images: Sequence[Tensor], inputs: ImageList, maps: dict[str, Tensor]) -> list[Segments]:
        """The scores at the inputs' size, without the padding, at each image's own size."""
        with torch.inference_mode():
            scores = interpolate(self.head(maps), inputs.tensors.shape[-2:], mode="bilinear", align_corners=False)
            labels = [
                upsampled_argmax(one[:, :height, :width], (image.shape[1], image.shape[2]))
                for image, one, (height, width) in zip(images, scores, inputs.image_sizes, strict=True)
            ]
        return [semantic_segments(one, self._semantic_ids) for one in labels]


@contextmanager
def _calls_of(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Collects what the module is called with."""
    calls: list[tuple[Any, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try:
        yield calls
    finally:
        hook.remove()


def _numbered() -> CategorySet:
    return CategorySet(replace(one, isthing=one.id < NUM_CLASSES) for one in numbered(NUM_SEMANTIC_CLASSES))


def _categories(path: str) -> CategorySet | None:
    """The COCO categories in a safetensors file's metadata; None where there are none."""
    if not path.endswith(".safetensors"):
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("categories")
    return CategorySet.from_json(text) if text else None
