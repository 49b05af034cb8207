"""fuse_panoptic: things and stuff in one layer, no pixel twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Task
from prelabel.operators.rows import segment_rows
from prelabel.schemas.tables import SEGMENTS


class FusePanoptic(Operator):
    """One segment per thing and kind of stuff."""

    task: ClassVar[Task] = Task.FUSE_PANOPTIC
    table: ClassVar[str] = "segments"

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The model's own panoptic segments, where one makes them end to end."""
        for model, answer in answers:
            if answer.panoptic is not None:
                return segment_rows(image, answer.panoptic, self.categories, kind="panoptic", model=model, first_id=1)
        return SEGMENTS.empty_table()
