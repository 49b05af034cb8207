"""detect_keypoints: boxes, scores and the keypoints of each object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Task
from prelabel.operators.rows import annotation_rows


class DetectKeypoints(Operator):
    """One annotation per object, with a box, its keypoints, and a mask where its model makes one."""

    task: ClassVar[Task] = Task.DETECT_KEYPOINTS
    table: ClassVar[str] = "annotations"
    includes: ClassVar[frozenset[Task]] = frozenset({Task.DETECT, Task.SEGMENT_INSTANCES})

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The objects of all models, ranked; `keypoints` is x, y, visibility of each in turn, as COCO has them."""
        return annotation_rows(image, answers, self.categories)
