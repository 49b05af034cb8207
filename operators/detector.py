"""Any network with torchvision's detection interface as a model: boxes, and instance masks where it has them.

The interface: a list of float32 (3, H, W) in 0..1 in, a list of dicts out, with boxes (N, 4), labels (N,), scores
(N,) and, if there are masks, masks (N, 1, H, W), in pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from prelabel.operators.base import Instances, Model, Prediction, Proposals, Task
from prelabel.operators.masks import MaskRuns, paste_runs
from prelabel.schemas.categories import CategorySet, label_map, numbered
from prelabel.schemas.errors import ModelError
from prelabel.schemas.rle import area, bbox, encode

LEAST_SCORE = 0.05
"""The score threshold where nobody gave one and the network's own is lower."""

_NUM_CLASSES = (
    "roi_heads.box_predictor.cls_score.out_features",  # Faster, Mask, Keypoint R-CNN
    "head.classification_head.num_classes",  # RetinaNet, FCOS
    "head.classification_head.num_columns",  # SSD
)
_PROBE = 64  # pixels
_SQUARE = 256  # pixels, a multiple of any stride


class DetectorModel(Model):
    """A network with torchvision's detection interface.

    A torchvision `GeneralizedRCNN` never makes a full-size mask: its 28x28 probabilities become runs. Any other
    network is tried on a small black image, which shows whether it speaks the interface and has masks.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        categories: CategorySet | None = None,
        score_threshold: float | None = None,
        device: str = "auto",
        digest: str = "",
    ) -> None:
        """Takes the network over: moves it, sets its threshold, its evaluation mode and what it returns for masks.

        Args:
            network: with the interface
            name: as `family:name`
            categories: what its labels stand for, see `label_map`; where the number of its classes can't be told,
                label k is the category whose id is k. None: numbered
            score_threshold: just this; None: LEAST_SCORE, or the network's own where that is higher
            device: "auto", "cpu" or "cuda"
            digest: SHA-256 of its weights

        Raises:
            ModelError: the categories don't fit, there is no such device, or the network lacks the interface.
        """
        self.name, self.digest = name, digest
        self.device = _device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.score_threshold = _set_threshold(network, score_threshold)
        self.categories, self._category_ids = _categories(name, categories, num_classes(network))
        self._range = torch.tensor(255.0, device=self.device)
        self._small_masks = _keep_masks_small(network)
        _settle_scales(network, self.device)
        self.tasks = frozenset({Task.DETECT} | ({Task.SEGMENT_INSTANCES} if self._has_masks() else set()))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the padded input; a 0 in it where so thin an image shrinks to nothing.

        The image's own size for a network whose transform is not torchvision's.
        """
        return padded_size(getattr(self.network, "transform", None), height, width)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order, see `Model.predict`; without SEGMENT_INSTANCES the mask head is left out.

        An image too thin for the network's resize, which torchvision refuses, has no objects.
        """
        with_masks = Task.SEGMENT_INSTANCES in tasks
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        if any(0 in self.input_size(*size) for size in sizes):
            return [Prediction(_no_instances(with_masks)) for _ in images]
        with torch.inference_mode(), _only_heads(self.network, with_masks):
            outputs = self.network([self._to_input(image) for image in images])
        names = ["boxes", "scores", "labels"] + ["masks"] * (with_masks and self._small_masks)
        columns = [_to_cpu([output[name] for output in outputs]) for name in names]
        for output, *arrays in zip(outputs, *columns, strict=True):
            output.update(zip(names, arrays, strict=True))
        return [
            Prediction(self._instances(output, size, with_masks)) for output, size in zip(outputs, sizes, strict=True)
        ]

    def _to_input(self, image: Tensor) -> Tensor:
        if self.device.type == "cuda":
            image = image.pin_memory()
        # by a tensor: a GPU multiplies with the reciprocal of a Python number, which rounds otherwise than `ToTensor`
        return image.to(self.device, non_blocking=True).float() / self._range

    def _instances(self, output: dict[str, Any], size: tuple[int, int], with_masks: bool) -> Instances:
        """One image's objects above the threshold, of a known category, best first."""
        labels, scores = output["labels"].astype(np.int64), output["scores"]
        known = (labels >= 0) & (labels < len(self._category_ids))
        category_ids = np.where(known, self._category_ids[np.where(known, labels, 0)], -1)
        order = np.argsort(-scores, kind="stable")
        order = order[(scores[order] > self.score_threshold) & (category_ids[order] >= 0)]
        if not len(order):
            return _no_instances(with_masks)  # for which some networks return tensors of any shape and type
        boxes = output["boxes"][order]
        masks: list[MaskRuns] | None = None
        if with_masks and self._small_masks:
            masks = paste_runs(output["masks"][order, 0], boxes, *size)
        elif with_masks:
            masks = [_mask_runs(output["masks"][i].reshape(size)) for i in order.tolist()]
        return Instances(boxes, scores[order], category_ids[order].astype(np.int32), masks)

    def _has_masks(self) -> bool:
        if isinstance(self.network, GeneralizedRCNN):
            return bool(self.network.roi_heads.has_mask())
        return not isinstance(self.network, RetinaNet | FCOS | SSD) and "masks" in self._probe()

    def _probe(self) -> dict[str, Any]:
        """What the network says of a small black image. Raises ModelError unless it is a detector's answer."""
        black = torch.zeros(3, _PROBE, _PROBE, device=self.device)
        try:
            with torch.inference_mode():
                outputs = self.network([black])
        except Exception as error:
            text = " ".join(str(error).split())
            raise ModelError(
                f"{self.name} fails on a list of one float32 (3, {_PROBE}, {_PROBE}) image: {type(error).__name__}: "
                f"{text:.300}: give it torchvision's detection interface, or return a prelabel Model"
            ) from error
        if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], dict):
            found: dict[str, Any] = outputs[0]
            if {"boxes", "labels", "scores"} <= found.keys():
                return found
        raise ModelError(
            f"{self.name} does not return one dict of boxes, labels and scores per image: give it torchvision's "
            "detection interface, or return a prelabel Model"
        )


def num_classes(network: nn.Module) -> int | None:
    """Width of the network's class scores, background included; None for a network that torchvision does not have."""
    for place in _NUM_CLASSES:
        width: Any = network
        for name in place.split("."):
            width = getattr(width, name, None)
        if isinstance(width, int):
            return width
    return None


def padded_size(transform: Any, height: int, width: int) -> tuple[int, int]:
    """The (height, width) that torchvision's transform resizes and pads an image to, in pixels.

    The arithmetic of `GeneralizedRCNNTransform.resize`, `interpolate(recompute_scale_factor=True)` and `batch_images`,
    without the pixels. A 0 where the resize leaves nothing; the image's own size for any other transform,
    a subclass's as well.
    """
    if type(transform) is not GeneralizedRCNNTransform:  # a subclass often resizes in another way, or not at all
        return height, width
    if transform.fixed_size is not None:
        size = transform.fixed_size[1], transform.fixed_size[0]
    else:
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
        size = math.floor(height * scale), math.floor(width * scale)
    stride = transform.size_divisible
    return math.ceil(size[0] / stride) * stride, math.ceil(size[1] / stride) * stride


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise ModelError(f"device {name!r}: torch sees no GPU here: take --device cpu, or a torch built for CUDA")
    return torch.device(("cuda" if available else "cpu") if name == "auto" else name)


def _set_threshold(network: nn.Module, asked: float | None) -> float:
    """Sets and returns the score threshold: above it is found. Other networks than torchvision's keep their own too."""
    owner = getattr(network, "roi_heads", network)
    own = getattr(owner, "score_thresh", None)
    chosen = max(LEAST_SCORE, own or 0.0) if asked is None else asked
    if own is not None:
        owner.score_thresh = chosen
    return chosen


def _categories(name: str, given: CategorySet | None, count: int | None) -> tuple[CategorySet, np.ndarray]:
    """What can be found, and the category id of each label, -1 for none."""
    if count is not None:
        categories = numbered(count) if given is None else given
        return categories, label_map(categories, count)
    if given is None:
        raise ModelError(f"{name}: the number of its classes can't be told: say what its labels are with --categories")
    category_ids = np.full(max(given.ids) + 1, -1, np.int32)
    category_ids[list(given.ids)] = given.ids
    return given, category_ids


def _keep_masks_small(network: nn.Module) -> bool:
    """Makes a GeneralizedRCNN return its masks as (N, 1, 28, 28) probabilities, if its postprocessing is torchvision's.

    Only this network's: the method is replaced on the instance, so a subclass with a forward of its own works as well.
    """
    transform = getattr(network, "transform", None)
    stock = GeneralizedRCNNTransform.postprocess
    if not isinstance(network, GeneralizedRCNN) or getattr(type(transform), "postprocess", None) is not stock:
        return False
    resize: Callable[..., list[dict[str, Tensor]]] = network.transform.postprocess

    def resize_boxes_alone(result: list[dict[str, Tensor]], *sizes: Any) -> list[dict[str, Tensor]]:
        masks = [found.pop("masks", None) for found in result]
        resized = resize(result, *sizes)
        return [found if mask is None else found | {"masks": mask} for found, mask in zip(resized, masks, strict=True)]

    network.transform.postprocess = resize_boxes_alone
    return True


def _settle_scales(network: nn.Module, device: torch.device) -> None:
    """Lets the RoI pooling find the strides of its feature maps on a square.

    Torchvision's takes them from the first batch, for good. Where that is a strip whose padding is half of its input,
    the strides, hence all later predictions, come out wrong; they would depend on the order of work.
    """
    if not isinstance(network, GeneralizedRCNN):
        return
    pools = [module for module in network.roi_heads.modules() if isinstance(module, MultiScaleRoIAlign)]
    if pools:
        fixed = getattr(network.transform, "fixed_size", None) is not None
        size = padded_size(network.transform, _SQUARE, _SQUARE) if fixed else (_SQUARE, _SQUARE)
        with torch.inference_mode():
            maps = network.backbone(torch.zeros(1, 3, *size, device=device))
            maps = {"0": maps} if isinstance(maps, Tensor) else maps
            for pool in pools:
                pool(maps, [torch.zeros(1, 4, device=device)], [size])


@contextmanager
def _only_heads(network: nn.Module, with_masks: bool) -> Iterator[None]:
    """Switches the heads off that nobody asked for; boxes and scores come before them."""
    roi_heads = getattr(network, "roi_heads", None)
    names = ["keypoint_roi_pool"] + ["mask_roi_pool"] * (not with_masks)
    pools = {name: getattr(roi_heads, name) for name in names} if isinstance(roi_heads, RoIHeads) else {}
    for name in pools:
        setattr(roi_heads, name, None)
    try:
        yield
    finally:
        for name, pool in pools.items():
            setattr(roi_heads, name, pool)


def _to_cpu(tensors: list[Tensor]) -> list[np.ndarray]:
    """The tensors as arrays, copied at once: one wait for the GPU and not one per image."""
    rows = torch.cat(tensors)
    rows = (rows.float() if rows.is_floating_point() else rows).cpu()
    return np.split(rows.numpy(), np.cumsum([len(tensor) for tensor in tensors])[:-1])


def _mask_runs(probabilities: Tensor) -> MaskRuns:
    rle = encode((probabilities > 0.5).cpu().numpy())
    return MaskRuns(rle, area(rle), bbox(rle))


def _no_instances(with_masks: bool) -> Instances:
    return Instances(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), [] if with_masks else None
    )
