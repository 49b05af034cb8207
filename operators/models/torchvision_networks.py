"""The networks that torchvision's builders make, with a file's tensors in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torchvision import models
from torchvision.models import WeightsEnum, detection, get_model_builder, list_models, segmentation

from prelabel.operators.weights import load_weights

DETECTORS = tuple(list_models(module=detection))
SEGMENTERS = tuple(list_models(module=segmentation))
CLASSIFIERS = tuple(list_models(module=models))

ZERO_EPSILON = frozenset(
    {
        "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
        "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
        "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    }
)
"""Weights whose builder calls `overwrite_eps(model, 0.0)`, see pytorch/vision#2933."""

_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")  # "norm.1" in DenseNet's files is "norm1"


def build_network(name: str, tensors: dict[str, Tensor], path: str, official: WeightsEnum | None) -> nn.Module:
    """The builder's network for inference; a second head that only helps in training is left out.

    Args:
        name: of the builder
        tensors: from the file `path`
        path: for messages
        official: the weights that these are, if they are torchvision's

    Raises:
        ModelError: the tensors are another network's
    """
    tensors = {_DENSE_LAYER.sub(r"\1", key): tensor for key, tensor in tensors.items()}
    builder = partial(get_model_builder(name), weights=None, **_arguments(name, tensors, official))
    parameters = ["num_classes"] + ["num_keypoints"] * name.startswith("keypointrcnn")
    network: Any = builder(**{parameter: _solve(builder, parameter, tensors) for parameter in parameters})
    load_weights(network, tensors, path)
    if name in SEGMENTERS:
        network.aux_classifier = None
    if str(official) in ZERO_EPSILON:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return network


def _arguments(name: str, tensors: dict[str, Tensor], official: WeightsEnum | None) -> dict[str, Any]:
    """What the builder must be told, besides sizes, to make a network for these tensors."""
    parts = {key.partition(".")[0] for key in tensors}
    if name in DETECTORS or name.startswith("lraspp"):
        return {"weights_backbone": None}
    if name in SEGMENTERS:
        return {"weights_backbone": None, "aux_loss": "aux_classifier" in parts}
    if name in ("googlenet", "inception_v3"):
        auxiliary = not parts.isdisjoint({"aux1", "AuxLogits"})
        return {"aux_logits": auxiliary, "transform_input": official is not None, "init_weights": False}
    if name.startswith("vit_") and tensors.keys() >= {"conv_proj.weight", "encoder.pos_embedding"}:
        patches = tensors["encoder.pos_embedding"].shape[1] - 1  # the first one is the class token's
        return {"image_size": math.isqrt(patches) * tensors["conv_proj.weight"].shape[-1]}
    return {}


def _solve(builder: Callable[..., nn.Module], parameter: str, tensors: dict[str, Tensor]) -> int:
    """The value of a builder's parameter with which its shapes are those of the tensors.

    Shapes are linear in it, so two networks without storage show them all. Where the tensors don't agree on a value
    they are another network's, which loading them will say.
    """
    with _without_storage():
        two, three = (builder(**{parameter: n}).state_dict() for n in (2, 3))
    values = {
        2 + (size - at_two) / (at_three - at_two)
        for name in two.keys() & tensors.keys()
        for size, at_two, at_three in zip(tensors[name].shape, two[name].shape, three[name].shape, strict=False)
        if at_two != at_three
    }
    value = values.pop() if len(values) == 1 else 2
    return int(value) if value >= 1 and value == int(value) else 2


@contextmanager
def _without_storage() -> Iterator[None]:
    """What `torch.device("meta")` does, for networks as well that compute their widths with tensors, as RegNet does."""

    def drop(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:
        return parameter if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    def drop_buffer(_: nn.Module, __: str, buffer: Tensor | None) -> Any:
        return buffer if buffer is None else buffer.to("meta")

    hooks = [register_module_parameter_registration_hook(drop), register_module_buffer_registration_hook(drop_buffer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
