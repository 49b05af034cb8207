"""What a model and an operator are, and what passes between them.

A model looks at images and predicts; an operator turns predictions into rows of a table. The actor calls each
model's `predict` once per batch with every task asked of it, then every operator's `rows`: one network, one forward
pass, as a matter of structure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch

from prelabel.operators.masks import MaskRuns
from prelabel.operators.options import DEFAULTS, Options
from prelabel.schemas.categories import CategorySet


class Task(str, Enum):
    """A vision task, named as on the command line."""

    PROPOSE = "propose"
    DETECT = "detect"
    SEGMENT_INSTANCES = "segment_instances"
    SEGMENT_SEMANTIC = "segment_semantic"
    FUSE_PANOPTIC = "fuse_panoptic"
    CLASSIFY = "classify"
    DETECT_KEYPOINTS = "detect_keypoints"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class ImageInfo:
    """An image's decoded facts: its id in the plan, and its upright size in pixels."""

    image_id: int
    height: int
    width: int


@dataclass(frozen=True)
class Proposals:
    """Regions of one image that may hold an object of any kind, sorted by descending score.

    Attributes:
        boxes: float32 (N, 4), x0 y0 x1 y1 in pixels of the upright original image
        scores: float32 (N,), objectness
    """

    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Instances:
    """The objects found in one image, sorted by descending score.

    Attributes:
        boxes: float32 (N, 4), x0 y0 x1 y1 in pixels of the upright original image
        scores: float32 (N,)
        category_ids: int32 (N,)
        masks: N run-length masks at the image's size, or None where none were asked for
        keypoints: float32 (N, K, 3), x y in pixels of the image and COCO's visibility (2: labeled and visible), or
            None where none were asked for
    """

    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    masks: list[MaskRuns] | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Segments:
    """Disjoint segments of one image: one per category found (semantic), or one per thing and kind of stuff (panoptic).

    Attributes:
        category_ids: int32 (N,)
        masks: N run-length masks at the image's size, no pixel in two of them; a pixel in none of them is void
        scores: float32 (N,), or None where the network gives none
    """

    category_ids: np.ndarray
    masks: list[MaskRuns]
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True)
class ImageLabels:
    """What an image as a whole shows, sorted by descending score.

    Attributes:
        category_ids: int32 (N,)
        scores: float32 (N,)
    """

    category_ids: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


Found = TypeVar("Found", Instances, Segments, ImageLabels)


@dataclass(frozen=True)
class Prediction:
    """All that one model says of one image; a part that no task asked for is None.

    Attributes:
        instances: for DETECT, SEGMENT_INSTANCES (with masks), DETECT_KEYPOINTS (with keypoints)
        proposals: for PROPOSE
        semantic: for SEGMENT_SEMANTIC, each category once
        panoptic: for FUSE_PANOPTIC, of a model that does it end to end
        labels: for CLASSIFY
    """

    instances: Instances | None = None
    proposals: Proposals | None = None
    semantic: Segments | None = None
    panoptic: Segments | None = None
    labels: ImageLabels | None = None

    def renumbered(self, category_ids: Mapping[int, int]) -> Prediction:
        """The same with other category ids."""
        if all(old == new for old, new in category_ids.items()):
            return self

        def renumber(found: Found | None) -> Found | None:
            if found is None:
                return None
            ids = np.array([category_ids[one] for one in found.category_ids.tolist()], np.int32)
            return replace(found, category_ids=ids)

        return Prediction(
            renumber(self.instances),
            self.proposals,
            renumber(self.semantic),
            renumber(self.panoptic),
            renumber(self.labels),
        )


class Answer(NamedTuple):
    """What a model, by its name, says of one image."""

    model: str
    prediction: Prediction


class Model(ABC):
    """A network with a fixed set of tasks and categories.

    Attributes:
        name: as `family:name`, the way it was asked for
        tasks: what it can do alone; FUSE_PANOPTIC only where it does so end to end
        categories: what it can find
        digest: SHA-256 of its weights, hexadecimal; empty where there is nothing to tell two versions apart
        takes_regions: whether it looks only at regions that another model of the job proposed
    """

    name: str
    tasks: frozenset[Task]
    categories: CategorySet
    digest: str = ""
    takes_regions: bool = False

    @abstractmethod
    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the network's padded input for an upright image of that size.

        Only images of equal input size share a batch, so that padding, hence the neighbours, can't change a result.
        """

    @abstractmethod
    def predict(
        self,
        images: Sequence[torch.Tensor],
        tasks: frozenset[Task],
        regions: Sequence[Proposals] | None = None,
    ) -> list[Prediction]:
        """Predictions in the images' order.

        Args:
            images: uint8 (3, H, W) upright RGB on the CPU, all of one `input_size`
            tasks: what to predict, a subset of `self.tasks`
            regions: one per image where `takes_regions`; other models are called without this argument

        Returns:
            One prediction per image, in pixels of that image; masks are runs.
        """


class Operator(ABC):
    """A pure function from predictions to rows: no network, no input or output.

    Attributes:
        task: what it asks of its models
        table: the table its rows belong to; "images": its one row holds columns of the image's own row
        includes: tasks whose rows it writes as well, so that asking for both writes each object once
    """

    task: ClassVar[Task]
    table: ClassVar[str]
    includes: ClassVar[frozenset[Task]] = frozenset()

    def __init__(self, categories: CategorySet, options: Options = DEFAULTS) -> None:
        """Takes the job's categories, which hold those of all its models, and its options."""
        self.categories = categories
        self.options = options

    @abstractmethod
    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The rows of one image, in the schema of `table`.

        Args:
            image: what the answers are about
            answers: of each of the job's models, in its order; an operator takes the parts that concern it
        """
