"""rcnn: a classifier on every region that another model proposed, as in R. Girshick et al., Rich feature hierarchies
for accurate object detection and semantic segmentation (R-CNN), CVPR 2014.

`rcnn:BUILDER` takes torchvision's, `rcnn:FAMILY:NAME` that of any family. Unlike the paper's, scores are the
network's own probabilities, not those of SVMs on its features, and boxes are those proposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.ops import batched_nms, clip_boxes_to_image

from prelabel.operators.base import Instances, Model, Prediction, Proposals, Task
from prelabel.operators.classifier import ClassifierModel
from prelabel.operators.models import Family, ModelSpec, Offer, load_model, who_can
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import ModelError

CONTEXT = 16 / (224 - 2 * 16)
"""What a crop shows beyond each border of its region, as a fraction of the region's side: 16 of 224 pixels."""
NMS_IOU = 0.3
"""Of two objects of one category that overlap more, the better one is kept."""
MOST = 100
"""Objects per image."""

_BACKGROUND = ("background", "__background__")
_CHUNK = 128  # crops at a time
_OFFERED = ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny")


class RCNNFamily(Family):
    """`rcnn:BUILDER` or `rcnn:FAMILY:NAME`; the weights are those of the classifier named."""

    wraps = True

    def offers(self) -> list[Offer]:
        """Some of torchvision's classifiers, of which each one can be named."""
        return [Offer(name, ("detect",), "ImageNet") for name in _OFFERED]

    def load(self, spec: ModelSpec) -> Model:
        """The classifier, loaded by its own family."""
        name = spec.rest if ":" in spec.rest else f"torchvision:{spec.rest}"
        unfit = ModelError(f"{spec.name}: {name} can't classify regions: take a classifier, such as rcnn:resnet50")
        if name not in who_can(Task.CLASSIFY) and any(name in who_can(task) for task in Task):
            raise unfit  # before its weights are downloaded
        classifier = load_model(replace(spec, name=name, options=replace(spec.options, tile=None)))
        if not isinstance(classifier, ClassifierModel):
            raise unfit
        return RCNNModel(classifier, spec.name)


class RCNNModel(Model):
    """A classifier that is asked about each region; what it calls "background" is no object."""

    tasks = frozenset({Task.DETECT})
    takes_regions = True

    def __init__(self, classifier: ClassifierModel, name: str) -> None:
        """Takes the classifier over, with its score threshold."""
        self.classifier, self.name, self.digest = classifier, name, classifier.digest
        found = [category for category in classifier.categories if category.name.lower() not in _BACKGROUND]
        self.categories = CategorySet(found)
        self._is_object = torch.from_numpy(np.isin(classifier.category_ids, self.categories.ids))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(0, 0): all images may share a batch, for each region is looked at by itself."""
        return 0, 0

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Boxes alone, see `Model.predict`; regions end at the borders, and those below a pixel are left out."""
        assert regions is not None
        return [Prediction(self._detect(image, one.boxes)) for image, one in zip(images, regions, strict=True)]

    def _detect(self, image: Tensor, boxes: np.ndarray) -> Instances:
        boxes = clip_boxes_to_image(torch.from_numpy(boxes), (image.shape[1], image.shape[2])).numpy()
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)]
        probabilities = self._probabilities(image, boxes) * self._is_object
        region, output = torch.where(probabilities > self.classifier.score_threshold)
        # as float64, for `batched_nms` moves categories apart by more than float32 has digits
        scores, places = probabilities[region, output].double(), torch.from_numpy(boxes).double()[region]
        kept = batched_nms(places, scores, output, NMS_IOU)[:MOST]
        category_ids = self.classifier.category_ids[output[kept].numpy()]
        return Instances(boxes[region[kept].numpy()], scores[kept].float().numpy(), category_ids)

    def _probabilities(self, image: Tensor, boxes: np.ndarray) -> Tensor:
        """float32 (N, K) for N boxes; few crops are there at once."""
        crops = warped_crops(image, boxes, self.classifier.input_size(1, 1))
        chunks = [self.classifier.probabilities([])]
        while chunk := list(islice(crops, _CHUNK)):
            chunks.append(self.classifier.probabilities(chunk))
        return torch.cat(chunks)


def warped_crops(image: Tensor, boxes: np.ndarray, size: tuple[int, int]) -> Iterator[Tensor]:
    """What an image shows in each box and, by CONTEXT, around it, stretched to (height, width) whatever its shape.

    Beyond the image its border is repeated, where R-CNN has the mean color. The presets of torchvision's classifiers
    go on to crop the center, which takes less than the context away, and nothing of the region.

    Args:
        image: uint8 (3, H, W)
        boxes: float32 (N, 4), x0 y0 x1 y1 in its pixels, none beyond its borders
        size: (height, width) of the crops
    """
    down, across = (1 + math.ceil(side * CONTEXT) for side in image.shape[1:])
    bordered = pad(image, [across, across, down, down], mode="replicate")
    for x0, y0, x1, y1 in boxes.astype(np.float64).tolist():
        wider, higher = (x1 - x0) * CONTEXT, (y1 - y0) * CONTEXT
        rows = slice(math.floor(y0 - higher) + down, math.ceil(y1 + higher) + down)
        columns = slice(math.floor(x0 - wider) + across, math.ceil(x1 + wider) + across)
        yield interpolate(bordered[None, :, rows, columns], size, mode="bilinear", antialias=True)[0]
