"""Any semantic segmentation network with torchvision's interface as a model.

The interface: float32 (N, 3, h, w), normalised with ImageNet's mean and deviation, in; a dict with "out", class scores
(N, K, h, w), out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import convert_image_dtype, normalize, resize

from prelabel.operators.base import Model, Prediction, Proposals, Task
from prelabel.operators.devices import torch_device
from prelabel.operators.label_maps import semantic_segments, upsampled_argmax
from prelabel.operators.prepare import prepare
from prelabel.schemas.categories import VOC, CategorySet, label_map, numbered
from prelabel.schemas.errors import ModelError, one_line

MOST_PIXELS = 2**21
"""Of the network's input. With a shorter side of 520 pixels, images up to about 7.7 times as long as wide have fewer
and are resized as torchvision does; longer ones get so many, in the same proportions."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PROBE = 64  # pixels


class SegmenterModel(Model):
    """A network that gives each pixel of an image one of K labels."""

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        categories: CategorySet | None = None,
        device: str = "auto",
        digest: str = "",
        resize: int = 520,
    ) -> None:
        """Takes the network over: moves it and sets its evaluation mode.

        Args:
            network: with the interface
            name: as `family:name`
            categories: K of them: label k is the k-th, and there is no background; else see `label_map`. None: Pascal
                VOC's where there are 21 labels, the background included; otherwise numbered
            device: "auto", "cpu" or "cuda"
            digest: SHA-256 of its weights
            resize: length in pixels of the input's shorter side, see also MOST_PIXELS

        Raises:
            ModelError: the categories don't fit, there is no such device, or the network lacks the interface.
        """
        self.name, self.digest = name, digest
        self.tasks = frozenset({Task.SEGMENT_SEMANTIC})
        self.device = torch_device(device)
        self.network = prepare(network, self.device)
        self.resize = resize
        self.categories, self._category_ids = _categories(categories, self._count_labels())

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image is resized to; nothing is padded."""
        short, long = min(height, width), max(height, width)
        size = self.resize, int(self.resize * long / short)
        if size[0] * size[1] > MOST_PIXELS:
            short_to_long = math.sqrt(short / long)
            size = max(1, int(math.sqrt(MOST_PIXELS) * short_to_long)), int(math.sqrt(MOST_PIXELS) / short_to_long)
        return size if height <= width else (size[1], size[0])

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order, see `Model.predict`."""
        with torch.inference_mode():
            scores = self.network(torch.stack([self._to_input(image) for image in images]))["out"]
            maps = [
                upsampled_argmax(one, (image.shape[1], image.shape[2]))
                for one, image in zip(scores, images, strict=True)
            ]
        return [Prediction(semantic=semantic_segments(labels, self._category_ids)) for labels in maps]

    def _to_input(self, image: Tensor) -> Tensor:
        """As torchvision's preset `SemanticSegmentation` has it, but for MOST_PIXELS."""
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        resized = resize(image, list(self.input_size(image.shape[1], image.shape[2])), antialias=True)
        return normalize(convert_image_dtype(resized, torch.float), list(_MEAN), list(_DEVIATION))

    def _count_labels(self) -> int:
        """K, of a black image. Raises ModelError unless the network answers as a segmenter does."""
        black = torch.zeros(1, 3, _PROBE, _PROBE, device=self.device)
        try:
            with torch.inference_mode():
                answer: Any = self.network(black)
        except Exception as error:
            raise ModelError(
                f"{self.name} fails on one float32 {tuple(black.shape)} image: {type(error).__name__}: "
                f"{one_line(error):.300}: give it torchvision's interface for semantic segmentation"
            ) from error
        scores = answer.get("out") if isinstance(answer, dict) else None
        if not isinstance(scores, Tensor) or scores.ndim != 4 or len(scores) != 1:
            raise ModelError(
                f'{self.name} does not return a dict with "out", scores (N, K, h, w): give it torchvision\'s interface '
                "for semantic segmentation"
            )
        return int(scores.shape[1])


def _categories(given: CategorySet | None, count: int) -> tuple[CategorySet, np.ndarray]:
    """What can be found, and the category id of each label, -1 for none."""
    if given is not None and len(given) == count:
        return given, np.array(given.ids, np.int32)
    if given is None:
        given = VOC if count == len(VOC) + 1 else numbered(count)
    return given, label_map(given, count)
