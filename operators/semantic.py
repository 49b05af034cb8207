"""segment_semantic: one segment per category that an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Task
from prelabel.operators.rows import segment_rows
from prelabel.schemas.tables import SEGMENTS

FIRST_ID = 1_000_001
"""Of an image's semantic segments, so that their ids never meet those of its panoptic ones, which begin at 1."""


class SegmentSemantic(Operator):
    """One segment per category and model, by falling area."""

    task: ClassVar[Task] = Task.SEGMENT_SEMANTIC
    table: ClassVar[str] = "segments"

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The segments of all models, model by model."""
        parts, first_id = [SEGMENTS.empty_table()], FIRST_ID
        for model, answer in answers:
            if answer.semantic is not None:
                rows = segment_rows(
                    image, answer.semantic, self.categories, kind="semantic", model=model, first_id=first_id
                )
                parts.append(rows)
                first_id += len(rows)
        return pa.concat_tables(parts)
