"""The networks of transformers as models: preprocessed by their own image processors, read image by image."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from prelabel.operators.base import Instances, Model, Prediction, Proposals, Segments, Task
from prelabel.operators.label_maps import semantic_segments, upsampled_argmax
from prelabel.operators.options import Options
from prelabel.operators.queries import (
    OVERLAP,
    Found,
    Queries,
    Size,
    contested_masks,
    disjoint_masks,
    disjoint_pairs,
    independent_masks,
    one_label_each,
    semantic_labels,
)
from prelabel.schemas.categories import CategorySet

LEAST_SCORE = 0.05
"""The score threshold where nobody gave one."""
CONTEST_SCORE = 0.5
"""The same where masks compete for pixels, the library's: those below it would win little, and spoil others' edges."""
MAX_EDGE = 4096
"""Pixels, of the network's input: where a processor bounds the shorter edge alone, this bounds the longer one."""
_STRIDE = 32


class Input(NamedTuple):
    """How an image of some size gets into the network: the input's (height, width), and what the processor is told."""

    size: Size
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What every model here is made of.

    Attributes:
        name: as `family:name`
        network: a PreTrainedModel, on its device
        processor: its image processor, with the interface of the library's torchvision backend
        categories: what can be found
        category_ids: int32 (K,), what each label stands for, -1 for nothing
        digest: SHA-256 of weights and configuration
        score_threshold: as given
        options: of the job
    """

    name: str
    network: Any
    processor: Any
    categories: CategorySet
    category_ids: np.ndarray
    digest: str
    score_threshold: float | None
    options: Options


class TransformersModel(Model):
    """Preprocessing and batching; subclasses read the network's outputs.

    An image is resized by the rules of its processor, less the center crop of those made for classification, which
    would leave the margins without labels. Where the rules give an image a side under `least_side`, or one over
    MAX_EDGE because they bound the shorter edge alone, its longer edge becomes the longest allowed, and both multiples
    of 32.
    """

    least_side: ClassVar[int] = 1

    def __init__(self, loaded: Loaded) -> None:
        """Takes the network and its processor over."""
        self.name, self.categories, self.digest = loaded.name, loaded.categories, loaded.digest
        self.category_ids, self.options = loaded.category_ids, loaded.options
        self.network, self.processor = loaded.network.eval().requires_grad_(False), loaded.processor
        self.network.register_forward_hook(_to_float32)
        self.processor.do_center_crop = False
        self.device = next(self.network.parameters()).device
        self.score_threshold = LEAST_SCORE if loaded.score_threshold is None else loaded.score_threshold
        self._inputs = inspect.signature(self.network.forward).parameters
        self._input = lru_cache(maxsize=2**16)(self._ask)

    def input_size(self, height: int, width: int) -> Size:
        """The (height, width) of the network's input, padding included."""
        return self._input(height, width).size

    def predict(
        self, images: Sequence[Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        """Predictions in the images' order, see `Model.predict`."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        inputs = [
            self._process(image, device=self.device, **self._input(*size).options)
            for image, size in zip(images, sizes, strict=True)
        ]
        batch = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
        with torch.inference_mode():
            return self._look(batch, sizes, tasks)

    @abstractmethod
    def _look(self, batch: dict[str, Tensor], sizes: list[Size], tasks: frozenset[Task]) -> list[Prediction]:
        """Predictions for a batch of inputs to images of these (height, width)."""

    def _process(self, image: Tensor, **options: Any) -> dict[str, Tensor]:
        """The network's inputs for one image, each with a batch axis of 1."""
        found = self.processor([image], return_tensors="pt", input_data_format="channels_first", **options)
        return {name: value for name, value in found.items() if name in self._inputs and isinstance(value, Tensor)}

    def _ask(self, height: int, width: int) -> Input:
        """What the processor makes of such an image: it is asked with one that has a shape and no pixels."""
        image = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        longest = getattr(self.processor.size, "longest_edge", None)
        endless = self.processor.do_resize and not longest
        try:
            size = _shape(self._process(image))
        except (ValueError, RuntimeError):  # of a side of 0
            size = None
        if size and min(size) >= self.least_side and (not endless or max(size) <= MAX_EDGE):
            return Input(size, {})
        scale = (longest or MAX_EDGE) / max(height, width)
        sides = (max(int(side * scale) // _STRIDE, 1) * _STRIDE for side in (height, width))
        options = {"size": dict(zip(("height", "width"), sides, strict=True))}
        return Input(_shape(self._process(image, **options)), options)


def _shape(inputs: Mapping[str, Tensor]) -> Size:
    height, width = inputs["pixel_values"].shape[-2:]
    return int(height), int(width)


def _to_float32(_network: Any, _inputs: Any, outputs: Any) -> Any:
    """A hook: the library's post-processing knows no bfloat16."""
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
            outputs[name] = value.float()
    return outputs


class TransformersDetector(TransformersModel):
    """Boxes: whatever `AutoModelForObjectDetection` takes, read by its own `post_process_object_detection`."""

    tasks = frozenset({Task.DETECT})

    def __init__(self, loaded: Loaded) -> None:
        """Takes the network and its processor over."""
        super().__init__(loaded)
        self._objects = self.category_ids >= 0  # bool (K,), the labels to take for instances

    def _look(self, batch: dict[str, Tensor], sizes: list[Size], tasks: frozenset[Task]) -> list[Prediction]:
        return [Prediction(one) for one in self._boxes(self.network(**batch), sizes)]

    def _boxes(self, outputs: Any, sizes: list[Size]) -> list[Instances]:
        found = self.processor.post_process_object_detection(
            outputs, threshold=self.score_threshold, target_sizes=sizes
        )
        return [self._instances(*(one[key].cpu().numpy() for key in ("boxes", "scores", "labels"))) for one in found]

    def _instances(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Instances:
        """The wanted ones, best first."""
        order = np.argsort(-scores, kind="stable")
        order = order[self._objects[labels[order]]]
        return Instances(boxes[order], scores[order], self.category_ids[labels[order]])


class TransformersSegmenter(TransformersModel):
    """A label per pixel: whatever `AutoModelForSemanticSegmentation` takes, upsampled and read strip by strip."""

    tasks = frozenset({Task.SEGMENT_SEMANTIC})
    least_side: ClassVar[int] = _STRIDE  # SegFormer's coarsest attention fails on less

    def _look(self, batch: dict[str, Tensor], sizes: list[Size], tasks: frozenset[Task]) -> list[Prediction]:
        logits = self.network(**batch).logits
        return [
            Prediction(semantic=semantic_segments(upsampled_argmax(scores, size), self.category_ids))
            for scores, size in zip(logits, sizes, strict=True)
        ]


@dataclass(frozen=True)
class Reading:
    """What differs in how the library reads the queries of a family of networks.

    Attributes:
        instances: the masks of (queries, size, threshold)
        threshold: the score threshold of instances where nobody gave one
        mask_size: the masks are first resized to this (height, width)
        antialias: how disjoint masks are resized to images smaller than they are
        classes: the output with the queries' class logits
        masks: the output with their mask logits
    """

    instances: Callable[[Queries, Size, float], Found] = independent_masks
    threshold: float = LEAST_SCORE
    mask_size: Size | None = None
    antialias: bool = False
    classes: str = "class_queries_logits"
    masks: str = "masks_queries_logits"


READINGS = {
    "detr": Reading(disjoint_masks, CONTEST_SCORE, classes="logits", masks="pred_masks"),
    "mask2former": Reading(mask_size=(384, 384)),
    "maskformer": Reading(),
    "oneformer": Reading(disjoint_pairs, CONTEST_SCORE, antialias=True),
}
"""By the `model_type` of the configuration."""

PROMPTS: dict[str, frozenset[Task]] = {
    "instance": frozenset({Task.DETECT, Task.SEGMENT_INSTANCES}),
    "semantic": frozenset({Task.SEGMENT_SEMANTIC}),
    "panoptic": frozenset({Task.FUSE_PANOPTIC}),
}
"""What OneFormer is told, and the tasks that are for."""


class TransformersMaskClassifier(TransformersDetector):
    """A class and a mask per query: DetrForSegmentation, Mask2Former, MaskFormer, OneFormer.

    One pass serves all tasks, but for OneFormer, whose queries depend on the task that it is told: one for each of
    instances, semantic and panoptic segmentation. Instances are things alone. Their boxes are their masks' tight ones;
    where no masks are asked for, DETR's are the network's.
    """

    tasks = frozenset().union(*PROMPTS.values())

    def __init__(self, loaded: Loaded, prompts: Mapping[str, Tensor] | None = None) -> None:
        """Takes the network over; `prompts` are OneFormer's tokens (1, T) for each of PROMPTS."""
        super().__init__(loaded)
        self.reading = READINGS[loaded.network.config.model_type]
        self.prompts = prompts
        self.instance_threshold = self.reading.threshold if loaded.score_threshold is None else loaded.score_threshold
        self._known = self.category_ids >= 0
        self._objects = np.array([one >= 0 and self.categories[one].isthing for one in self.category_ids.tolist()])
        self._stuff = frozenset(np.flatnonzero(self._known & ~self._objects).tolist())

    def _look(self, batch: dict[str, Tensor], sizes: list[Size], tasks: frozenset[Task]) -> list[Prediction]:
        predictions = [Prediction() for _ in sizes]
        for prompt, asked in self._passes(len(sizes), tasks):
            outputs = self.network(**batch, **prompt)
            parts = self._parts(outputs, sizes, asked)
            predictions = [replace(one, **part) for one, part in zip(predictions, parts, strict=True)]
        return predictions

    def _passes(self, count: int, tasks: frozenset[Task]) -> list[tuple[dict[str, Tensor], frozenset[Task]]]:
        """What the network is told besides the images, and the tasks to read from what it says then."""
        if self.prompts is None:
            return [({}, tasks)]
        return [
            ({"task_inputs": tokens.to(self.device).expand(count, -1)}, tasks & PROMPTS[word])
            for word, tokens in self.prompts.items()
            if tasks & PROMPTS[word]
        ]

    def _parts(self, outputs: Any, sizes: list[Size], tasks: frozenset[Task]) -> list[dict[str, Any]]:
        """For each image, the parts of its Prediction that a pass gives."""
        parts: list[dict[str, Any]] = [{} for _ in sizes]
        if tasks & PROMPTS["instance"] == {Task.DETECT} and "pred_boxes" in outputs:
            parts = [{"instances": one} for one in self._boxes(outputs, sizes)]
            tasks -= PROMPTS["instance"]
        return [
            part | self._read(self._queries(outputs, place), sizes[place], tasks) for place, part in enumerate(parts)
        ]

    def _queries(self, outputs: Any, place: int) -> Queries:
        masks = outputs[self.reading.masks][place]
        if self.reading.mask_size is not None:
            masks = interpolate(masks[None], self.reading.mask_size, mode="bilinear", align_corners=False)[0]
        return Queries(outputs[self.reading.classes][place], masks)

    def _read(self, queries: Queries, size: Size, tasks: frozenset[Task]) -> dict[str, Any]:
        """The parts of one image's Prediction."""
        parts: dict[str, Any] = {}
        if tasks & PROMPTS["instance"]:
            found = self.reading.instances(queries, size, self.instance_threshold)
            parts["instances"] = self._masks(found, Task.SEGMENT_INSTANCES in tasks)
        if Task.SEGMENT_SEMANTIC in tasks:
            labels = semantic_labels(queries, size, self.reading.antialias)
            parts["semantic"] = semantic_segments(labels, self.category_ids)
        if Task.FUSE_PANOPTIC in tasks:
            parts["panoptic"] = self._panoptic(queries, size)
        return parts

    def _masks(self, found: Found, with_masks: bool) -> Instances:
        """The things among them."""
        found = found.of(self._objects)
        x, y, width, height = np.array([mask.bbox for mask in found.masks], np.float32).reshape(-1, 4).T
        boxes = np.stack([x, y, x + width, y + height], axis=1)
        masks = found.masks if with_masks else None
        return Instances(boxes, found.scores, self.category_ids[found.labels], masks)

    def _panoptic(self, queries: Queries, size: Size) -> Segments:
        score, overlap = self.options.panoptic_score, self.options.panoptic_overlap
        found = contested_masks(
            one_label_each(queries, CONTEST_SCORE if score is None else score),
            size,
            overlap=OVERLAP if overlap is None else overlap,
            fused=self._stuff,
            antialias=self.reading.antialias,
        ).of(self._known)
        return Segments(self.category_ids[found.labels], found.masks, found.scores)
