"""What a model and an operator are, and what passes between them.

A model looks at images and predicts; an operator turns predictions into rows of a table. The actor calls each
model's `predict` once per batch with every task asked of it, then every operator's `rows`: one network, one forward
pass, as a matter of structure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from prelabel.operators.masks import MaskRuns
from prelabel.schemas.categories import CategorySet


class Task(str, Enum):
    """A vision task, named as on the command line."""

    DETECT = "detect"
    SEGMENT_INSTANCES = "segment_instances"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class ImageInfo:
    """An image's decoded facts: its id in the plan, and its upright size in pixels."""

    image_id: int
    height: int
    width: int


@dataclass(frozen=True)
class Instances:
    """The objects found in one image, sorted by descending score.

    Attributes:
        boxes: float32 (N, 4), x0 y0 x1 y1 in pixels of the upright original image
        scores: float32 (N,)
        category_ids: int32 (N,)
        masks: N run-length masks at the image's size, or None where none were asked for
    """

    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    masks: list[MaskRuns] | None = None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Prediction:
    """All that one model says of one image; a part that no task asked for is None."""

    instances: Instances | None = None


class Model(ABC):
    """A network with a fixed set of tasks and categories.

    Attributes:
        name: as `family:name`, the way it was asked for
        tasks: what it can do
        categories: what it can find
        digest: SHA-256 of its weights, hexadecimal; empty where there is nothing to tell two versions apart
    """

    name: str
    tasks: frozenset[Task]
    categories: CategorySet
    digest: str = ""

    @abstractmethod
    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the network's padded input for an upright image of that size.

        Only images of equal input size share a batch, so that padding, hence the neighbours, can't change a result.
        """

    @abstractmethod
    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        """Predictions in the images' order.

        Args:
            images: uint8 (3, H, W) upright RGB on the CPU, all of one `input_size`
            tasks: what to predict, a subset of `self.tasks`

        Returns:
            One prediction per image, in pixels of that image; masks are runs.
        """


class Operator(ABC):
    """A pure function from predictions to rows: no network, no input or output.

    Attributes:
        task: what it asks of its model
        table: the table its rows belong to
        includes: tasks whose rows it writes as well, so that asking for both writes each object once
    """

    task: ClassVar[Task]
    table: ClassVar[str]
    includes: ClassVar[frozenset[Task]] = frozenset()

    @abstractmethod
    def rows(self, image: ImageInfo, prediction: Prediction, model: Model) -> pa.Table:
        """The rows of one image, in the schema of `table`."""
