"""Arithmetic of lower precision, for a job that asks for it: faster, and not the reference's results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prelabel.operators.base import Model, Prediction, Proposals, Task


class BFloat16Model(Model):
    """Another model whose convolutions and products of matrices are in bfloat16, as torch.autocast chooses.

    Weights stay float32, and so does what autocast leaves alone: normalisations, the decoding of boxes, softmax.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        """Wraps the model, which is on that device."""
        self.model, self.device = model, device
        self.name, self.tasks, self.categories, self.digest = model.name, model.tasks, model.categories, model.digest
        self.takes_regions = model.takes_regions

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The other model's."""
        return self.model.input_size(height, width)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """The other model's predictions, but for rounding; see `Model.predict`."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.model.predict(images, tasks, *([] if regions is None else [regions]))
