"""Arithmetic of lower precision, for a job that asks for it: faster, and not the reference's results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prelabel.operators.base import Model, Prediction, Proposals, Task

_LAST = re.compile(
    r"rpn\.head\.(cls_logits|bbox_pred)|.*box_predictor|.*mask_fcn_logits|.*kps_score_lowres"
    r"|.*(regression|classification)_head\.(bbox_reg|bbox_ctrness|cls_logits|module_list\.\d+)"
)
"""Names in torchvision's detectors of the layers whose outputs are boxes, scores and masks."""


class BFloat16Model(Model):
    """Another model whose convolutions and products of matrices are in bfloat16, as torch.autocast chooses.

    Weights stay float32, and so does what autocast leaves alone: normalisations, softmax. So do the last layers of
    torchvision's networks, since all that follows is in their outputs' type: 800 pixels would be rounded to 4.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        """Wraps the model, which is on that device."""
        self.model, self.device = model, device
        self.name, self.tasks, self.categories, self.digest = model.name, model.tasks, model.categories, model.digest
        self.takes_regions = model.takes_regions
        for name, module in getattr(model, "network", torch.nn.Module()).named_modules():
            if _LAST.fullmatch(name):
                module.forward = partial(_in_float32, module.forward, device.type)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The other model's."""
        return self.model.input_size(height, width)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """The other model's predictions, but for rounding; see `Model.predict`."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.model.predict(images, tasks, *([] if regions is None else [regions]))


def _in_float32(forward: Callable[..., Any], device: str, *inputs: Tensor) -> Any:
    with torch.autocast(device, enabled=False):
        return forward(*(one.float() for one in inputs))


def has_bf16() -> bool:
    """Whether this machine's processor computes in bfloat16; others only imitate it, many times slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
