"""detect: boxes with a category and a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Task
from prelabel.operators.rows import annotation_rows


class Detect(Operator):
    """One annotation per object, with a box and no mask."""

    task: ClassVar[Task] = Task.DETECT
    table: ClassVar[str] = "annotations"

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The objects of all models, ranked; `area` is the box's."""
        return annotation_rows(image, answers, self.categories)
