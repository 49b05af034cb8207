"""fast_rcnn: the heads of a detector on regions that another model proposed, as in R. Girshick, Fast R-CNN, ICCV 2015.

`fast_rcnn:BUILDER` takes torchvision's, `fast_rcnn:FAMILY:NAME` that of any family, as long as it is a Faster, Mask or
Keypoint R-CNN. Only its region proposal network is left out: weights, categories and thresholds are the detector's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, list_models
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from prelabel.operators.base import Model, Prediction, Proposals, Task
from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import Family, ModelSpec, Offer, load_model, who_can
from prelabel.schemas.errors import ModelError

_TASKS = {
    "fasterrcnn": ("detect",),
    "maskrcnn": ("detect", "segment_instances"),
    "keypointrcnn": ("detect", "detect_keypoints"),
}


ROI_TASKS = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES, Task.DETECT_KEYPOINTS})
"""What RoI heads do."""


class FastRCNNFamily(Family):
    """`fast_rcnn:BUILDER` or `fast_rcnn:FAMILY:NAME`; the weights are those of the detector named."""

    wraps = True

    def offers(self) -> list[Offer]:
        """The builders of torchvision that have heads for regions."""
        builders = {name: name.partition("_")[0] for name in list_models(module=detection)}
        return [Offer(name, _TASKS[kind], "COCO") for name, kind in builders.items() if kind in _TASKS]

    def load(self, spec: ModelSpec) -> Model:
        """The detector, loaded by its own family."""
        name = spec.rest if ":" in spec.rest else f"torchvision:{spec.rest}"
        unfit = ModelError(f"{spec.name}: {name} has no heads for regions: take a Faster, Mask or Keypoint R-CNN")
        if name not in who_can(Task.PROPOSE) and any(name in who_can(task) for task in Task):
            raise unfit  # before its weights are downloaded
        detector = load_model(replace(spec, name=name, options=replace(spec.options, tile=None)))
        if not isinstance(detector, DetectorModel) or not isinstance(detector.network, GeneralizedRCNN):
            raise unfit
        return FastRCNNModel(detector, spec.name)


class FastRCNNModel(Model):
    """A detector that looks where it is told to."""

    takes_regions = True

    def __init__(self, detector: DetectorModel, name: str) -> None:
        """Takes the detector over, whose network must be a `GeneralizedRCNN`: it proposes no more by itself."""
        self.detector, self.name = detector, name
        self.tasks = detector.tasks & ROI_TASKS
        self.categories, self.digest = detector.categories, detector.digest
        self._handed_in = HandedIn()
        detector.network.rpn = self._handed_in

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The detector's."""
        return self.detector.input_size(height, width)

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Objects found in the regions, see `Model.predict`; none in an image without regions."""
        assert regions is not None
        self._handed_in.boxes = [torch.from_numpy(one.boxes) for one in regions]
        self._handed_in.sizes = [(image.shape[1], image.shape[2]) for image in images]
        return self.detector.predict(images, tasks)


class HandedIn(nn.Module):
    """Stands where a `GeneralizedRCNN` has its region proposal network, and proposes what it was given.

    Attributes:
        boxes: float32 (N, 4) x0 y0 x1 y1 in pixels of each original image
        sizes: (height, width) of those
    """

    boxes: list[Tensor]
    sizes: list[tuple[int, int]]

    def forward(self, images: ImageList, features: Any, targets: Any = None) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The boxes in pixels of the network's resized images, cut off at their borders, and no losses."""
        resized = [
            clip_boxes_to_image(resize_boxes(boxes.to(images.tensors.device), size, new), new)
            for boxes, size, new in zip(self.boxes, self.sizes, images.image_sizes, strict=True)
        ]
        return resized, {}
