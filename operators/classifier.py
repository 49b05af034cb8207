"""Any image classification network as a model: float32 (N, 3, h, w) in, logits (N, K) out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from prelabel.operators.base import ImageLabels, Model, Prediction, Proposals, Task
from prelabel.operators.devices import torch_device
from prelabel.operators.prepare import prepare
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import ModelError, one_line

LEAST_SCORE = 0.05
"""The score threshold where nobody gave one."""

_CHUNK = 32  # images a forward pass, at most
_LONGEST = 128  # times as long as wide; what exceeds it would be resized at great length, and then cropped away


class ClassifierModel(Model):
    """A network with one output per category and none for the background.

    Attributes:
        category_ids: int32 (K,), the category id of each output
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        categories: CategorySet | None,
        device: str = "auto",
        digest: str = "",
        score_threshold: float | None = None,
        preset: nn.Module | None = None,
    ) -> None:
        """Takes the network over: moves it and sets its evaluation mode.

        Args:
            network: float32 (N, 3, h, w) -> (N, K)
            name: as `family:name`
            categories: output k is the k-th of them; None: "class 0" to "class {K - 1}"
            device: "auto", "cpu" or "cuda"
            digest: SHA-256 of its weights
            score_threshold: labels of a higher probability are found; None: LEAST_SCORE
            preset: makes its input of a uint8 (3, H, W) image: a torchvision `ImageClassification`, what the
                `transforms` of classification weights returns. None: a ResNet's, 224 pixels wide

        Raises:
            ModelError: as many categories as K were expected, there is no such device, or the network lacks the
                interface.
        """
        self.name, self.digest = name, digest
        self.tasks = frozenset({Task.CLASSIFY})
        self.device = torch_device(device)
        self.network = prepare(network, self.device)
        self.score_threshold = LEAST_SCORE if score_threshold is None else score_threshold
        self._preset: Any = preset or ResNet18_Weights.DEFAULT.transforms()
        count = self._count_outputs()
        self.categories = _numbered(count) if categories is None else categories
        if len(self.categories) != count:
            raise ModelError(
                f"{name} has {count} classes, and there are {len(self.categories)} categories: give those that it was "
                "trained on, in that order"
            )
        self.category_ids = np.array(self.categories.ids, np.int32)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """That of the center crop, whatever the image's."""
        side = int(self._preset.crop_size[0])
        return side, side

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order, see `Model.predict`."""
        return [Prediction(labels=self._labels(scores)) for scores in self.probabilities(images).numpy()]

    def probabilities(self, images: Sequence[Tensor]) -> Tensor:
        """How likely each category is for each image, on the CPU.

        Args:
            images: uint8 (3, H, W) RGB of any sizes

        Returns:
            float32 (N, K), each row sums to 1
        """
        waiting = iter(images)
        chunks = [torch.zeros(0, len(self.category_ids))]
        with torch.inference_mode():
            while chunk := [self._to_input(image) for image in islice(waiting, _CHUNK)]:
                chunks.append(self.network(torch.stack(chunk)).float().softmax(1).cpu())
        return torch.cat(chunks)

    def _labels(self, scores: np.ndarray) -> ImageLabels:
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > self.score_threshold]
        return ImageLabels(self.category_ids[order], scores[order])

    def _to_input(self, image: Tensor) -> Tensor:
        longest = _LONGEST * min(image.shape[1:])
        if max(image.shape[1:]) > longest:  # by half a pixel of the image, this is another crop than stock's
            rows, columns = (slice(max(0, side - longest) // 2, (side + longest) // 2) for side in image.shape[1:])
            image = image[:, rows, columns]
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        made: Tensor = self._preset(image)
        return made

    def _count_outputs(self) -> int:
        """K, of a black image. Raises ModelError unless the network answers as a classifier does."""
        size = self.input_size(1, 1)
        try:
            with torch.inference_mode():
                logits = self.network(torch.zeros(1, 3, *size, device=self.device))
        except Exception as error:
            raise ModelError(
                f"{self.name} fails on one float32 (1, 3, {size[0]}, {size[1]}) image: {type(error).__name__}: "
                f"{one_line(error):.300}: give it a network that takes images and returns logits"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
            raise ModelError(f"{self.name} does not return logits (N, K): give it a network that classifies images")
        return int(logits.shape[1])


def _numbered(count: int) -> CategorySet:
    return CategorySet(Category(label, f"class {label}") for label in range(count))
