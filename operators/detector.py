"""Any network with torchvision's detection interface as a model: boxes, and the masks and keypoints that it has.

The interface: a list of float32 (3, H, W) in 0..1 in, a list of dicts out, with boxes (N, 4), labels (N,), scores
(N,) and, if there are masks, masks (N, 1, H, W), in pixels of the image. Keypoints and proposals are those of
torchvision's own `GeneralizedRCNN`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from prelabel.operators.base import Instances, Model, Prediction, Proposals, Task
from prelabel.operators.batched import Replacement, batch_postprocessing, replaced, resized_size, takes_bytes
from prelabel.operators.devices import torch_device
from prelabel.operators.masks import MaskRuns, paste_runs
from prelabel.operators.prepare import prepare
from prelabel.schemas.categories import CategorySet, label_map, numbered
from prelabel.schemas.errors import ModelError, one_line
from prelabel.schemas.rle import area, bbox, encode

LEAST_SCORE = 0.05
"""The score threshold where nobody gave one and the network's own is lower."""

_NUM_CLASSES = (
    "roi_heads.box_predictor.cls_score.out_features",  # Faster, Mask, Keypoint R-CNN
    "head.classification_head.num_classes",  # RetinaNet, FCOS
    "head.classification_head.num_columns",  # SSD
)
_NUM_KEYPOINTS = ("roi_heads.keypoint_predictor.kps_score_lowres.out_channels",)
_VISIBLE = 2  # COCO: labeled and visible
_Proposed = tuple[Tensor, Tensor, tuple[int, int]]  # boxes and scores in the resized image, and its size
_PROBE = 64  # pixels
_SQUARE = 256  # pixels, a multiple of any stride


class DetectorModel(Model):
    """A network with torchvision's detection interface.

    A torchvision `GeneralizedRCNN` never makes a full-size mask: its 28x28 probabilities become runs; its region
    proposal network's boxes are proposals. Any network that is not torchvision's is tried on a small black image, which
    shows whether it speaks the interface and has masks.
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
        self.device = torch_device(device)
        self.network = prepare(network, self.device)
        batch_postprocessing(self.network)
        self.score_threshold = _set_threshold(network, score_threshold)
        self.categories, self._category_ids = _categories(name, categories, num_classes(network))
        self._num_keypoints = _num_keypoints(name, network, self.categories)
        self._range = torch.tensor(255.0, device=self.device)
        self._small_masks = _keep_masks_small(network)
        _settle_scales(network, self.device)
        self.tasks = frozenset(self._tasks())

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the padded input; a 0 in it where so thin an image shrinks to nothing.

        The image's own size for a network whose transform is not torchvision's.
        """
        return padded_size(getattr(self.network, "transform", None), height, width)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order, see `Model.predict`; what nobody asked for is not computed.

        An image too thin for the network's resize, which torchvision refuses, has no objects and no proposals.
        """
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        if any(0 in self.input_size(*size) for size in sizes):
            return [self._nothing(tasks) for _ in images]
        proposed: list[_Proposed] = []
        with torch.inference_mode(), replaced(_unasked(self.network, tasks) + _kept(self.network, tasks, proposed)):
            outputs = self.network([self._to_input(image) for image in images])
            proposals = self._proposals(proposed, sizes) if Task.PROPOSE in tasks else [None] * len(images)
        instances = self._instances(outputs, sizes, tasks) if tasks - {Task.PROPOSE} else [None] * len(images)
        return [Prediction(*both) for both in zip(instances, proposals, strict=True)]

    def _to_input(self, image: Tensor) -> Tensor:
        if self.device.type == "cuda":
            image = image.pin_memory()
        image = image.to(self.device, non_blocking=True)
        # by a tensor: a GPU multiplies with the reciprocal of a Python number, which rounds otherwise than `ToTensor`
        return image if takes_bytes(self.network) else image.float() / self._range

    def _proposals(self, proposed: list[_Proposed], sizes: list[tuple[int, int]]) -> list[Proposals | None]:
        """What the region proposal network kept, best first already, in pixels of the images."""
        results = [{"boxes": boxes, "scores": scores} for boxes, scores, _ in proposed]
        transform: Any = self.network.transform
        results = transform.postprocess(results, [size for _, _, size in proposed], sizes)
        columns = [_to_cpu([result[name] for result in results]) for name in ("boxes", "scores")]
        return [Proposals(boxes, scores) for boxes, scores in zip(*columns, strict=True)]

    def _instances(
        self, outputs: list[dict[str, Any]], sizes: list[tuple[int, int]], tasks: frozenset[Task]
    ) -> list[Instances | None]:
        names = ["boxes", "scores", "labels"]
        names += ["masks"] * (Task.SEGMENT_INSTANCES in tasks and self._small_masks)
        names += ["keypoints"] * (Task.DETECT_KEYPOINTS in tasks)
        columns = [_to_cpu([output[name] for output in outputs]) for name in names]
        for output, *arrays in zip(outputs, *columns, strict=True):
            output.update(zip(names, arrays, strict=True))
        return [self._instances_of_one(output, size, tasks) for output, size in zip(outputs, sizes, strict=True)]

    def _instances_of_one(self, output: dict[str, Any], size: tuple[int, int], tasks: frozenset[Task]) -> Instances:
        """One image's objects above the threshold, of a known category, best first."""
        labels, scores = output["labels"].astype(np.int64), output["scores"]
        known = (labels >= 0) & (labels < len(self._category_ids))
        category_ids = np.where(known, self._category_ids[np.where(known, labels, 0)], -1)
        order = np.argsort(-scores, kind="stable")
        order = order[(scores[order] > self.score_threshold) & (category_ids[order] >= 0)]
        if not len(order):
            return self._no_instances(tasks)  # for which some networks return tensors of any shape and type
        boxes = output["boxes"][order]
        masks: list[MaskRuns] | None = None
        if Task.SEGMENT_INSTANCES in tasks and self._small_masks:
            masks = paste_runs(output["masks"][order, 0], boxes, *size)
        elif Task.SEGMENT_INSTANCES in tasks:
            masks = [_mask_runs(output["masks"][i].reshape(size)) for i in order.tolist()]
        keypoints: np.ndarray | None = None
        if Task.DETECT_KEYPOINTS in tasks:
            keypoints = output["keypoints"][order]
            keypoints[:, :, 2] = _VISIBLE  # torchvision says 1, whatever it saw
        return Instances(boxes, scores[order], category_ids[order].astype(np.int32), masks, keypoints)

    def _no_instances(self, tasks: frozenset[Task]) -> Instances:
        return Instances(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int32),
            [] if Task.SEGMENT_INSTANCES in tasks else None,
            np.zeros((0, self._num_keypoints, 3), np.float32) if Task.DETECT_KEYPOINTS in tasks else None,
        )

    def _nothing(self, tasks: frozenset[Task]) -> Prediction:
        return Prediction(
            self._no_instances(tasks) if tasks - {Task.PROPOSE} else None,
            Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)) if Task.PROPOSE in tasks else None,
        )

    def _tasks(self) -> set[Task]:
        network = self.network
        if isinstance(network, GeneralizedRCNN):
            able = {
                Task.PROPOSE: isinstance(network.rpn, RegionProposalNetwork),
                Task.SEGMENT_INSTANCES: network.roi_heads.has_mask(),
                Task.DETECT_KEYPOINTS: self._num_keypoints > 0,
            }
        elif isinstance(network, RetinaNet | FCOS | SSD):
            able = {}
        else:
            able = {Task.SEGMENT_INSTANCES: "masks" in self._probe()}
        return {Task.DETECT, *(task for task, can in able.items() if can)}

    def _probe(self) -> dict[str, Any]:
        """What the network says of a small black image. Raises ModelError unless it is a detector's answer."""
        black = torch.zeros(3, _PROBE, _PROBE, device=self.device)
        try:
            with torch.inference_mode():
                outputs = self.network([black])
        except Exception as error:
            raise ModelError(
                f"{self.name} fails on a list of one float32 (3, {_PROBE}, {_PROBE}) image: {type(error).__name__}: "
                f"{one_line(error):.300}: give it torchvision's detection interface, or return a prelabel Model"
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
    return _number_at(network, _NUM_CLASSES)


def _number_at(network: nn.Module, places: Sequence[str]) -> int | None:
    """The number that the first of these attributes of attributes holds."""
    for place in places:
        number: Any = network
        for name in place.split("."):
            number = getattr(number, name, None)
        if isinstance(number, int):
            return number
    return None


def _num_keypoints(name: str, network: nn.Module, categories: CategorySet) -> int:
    """How many of each object the network finds. Raises ModelError for categories with another number of them."""
    count = _number_at(network, _NUM_KEYPOINTS) or 0
    for category in categories:
        if count and category.keypoints is not None and len(category.keypoints) != count:
            raise ModelError(
                f"{name} finds {count} keypoints, and category {category.name!r} has {len(category.keypoints)}: give "
                "those that it was trained on, in that order"
            )
    return count


def padded_size(transform: Any, height: int, width: int) -> tuple[int, int]:
    """The (height, width) that torchvision's transform resizes and pads an image to, in pixels.

    The arithmetic of `GeneralizedRCNNTransform.resize` and `batch_images`, without the pixels. A 0 where the resize
    leaves nothing; the image's own size for any other transform, a subclass's as well.
    """
    if type(transform) is not GeneralizedRCNNTransform:  # a subclass often resizes in another way, or not at all
        return height, width
    size = resized_size(transform, height, width)
    stride = transform.size_divisible
    return math.ceil(size[0] / stride) * stride, math.ceil(size[1] / stride) * stride


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


class _NoHeads(nn.Module):
    """Takes the place of RoI heads that nobody needs."""

    def forward(
        self, features: Any, proposals: list[Tensor], *_: Any
    ) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
        """No objects in any image."""
        return [{"boxes": b[:0], "scores": b[:0, 0], "labels": b[:0, 0].long()} for b in proposals], {}


def _unasked(network: nn.Module, tasks: frozenset[Task]) -> list[Replacement]:
    """Without the heads that nobody asked for; boxes and scores come before masks and keypoints."""
    if tasks == {Task.PROPOSE}:
        return [(network, "roi_heads", _NoHeads())]
    heads = getattr(network, "roi_heads", None)
    if not isinstance(heads, RoIHeads):
        return []
    pools = {Task.SEGMENT_INSTANCES: "mask_roi_pool", Task.DETECT_KEYPOINTS: "keypoint_roi_pool"}
    return [(heads, pool, None) for task, pool in pools.items() if task not in tasks]


def _kept(network: Any, tasks: frozenset[Task], proposed: list[_Proposed]) -> list[Replacement]:
    """Makes the region proposal network keep its boxes' scores, which it drops otherwise."""
    if Task.PROPOSE not in tasks:
        return []
    filter_proposals: Callable[..., tuple[list[Tensor], list[Tensor]]] = network.rpn.filter_proposals

    def filter_and_keep(
        proposals: Tensor, objectness: Tensor, sizes: list[tuple[int, int]], *rest: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        boxes, scores = filter_proposals(proposals, objectness, sizes, *rest)
        proposed.extend(zip(boxes, scores, sizes, strict=True))
        return boxes, scores

    return [(network.rpn, "filter_proposals", filter_and_keep)]


def _to_cpu(tensors: list[Tensor]) -> list[np.ndarray]:
    """The tensors as arrays, copied at once: one wait for the GPU and not one per image."""
    rows = torch.cat(tensors)
    rows = (rows.float() if rows.is_floating_point() else rows).cpu()
    return np.split(rows.numpy(), np.cumsum([len(tensor) for tensor in tensors])[:-1])


def _mask_runs(probabilities: Tensor) -> MaskRuns:
    rle = encode((probabilities > 0.5).cpu().numpy())
    return MaskRuns(rle, area(rle), bbox(rle))
