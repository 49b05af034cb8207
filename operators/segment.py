"""segment_instances: boxes, scores and one run-length mask per object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Task
from prelabel.operators.rows import annotation_rows


class SegmentInstances(Operator):
    """One annotation per object, with a box, and a mask from the models that make them."""

    task: ClassVar[Task] = Task.SEGMENT_INSTANCES
    table: ClassVar[str] = "annotations"
    includes: ClassVar[frozenset[Task]] = frozenset({Task.DETECT})

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The objects of all models, ranked; `area` is the mask's, `bbox` the network's box."""
        return annotation_rows(image, answers, self.categories)
