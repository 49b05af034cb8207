"""classify: labels of an image as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Task
from prelabel.schemas.tables import IMAGES


class Classify(Operator):
    """The best `top_labels` labels of each model, in the image's own row."""

    task: ClassVar[Task] = Task.CLASSIFY
    table: ClassVar[str] = "images"

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """One row with the column `labels`: those of all models by falling score."""
        labels = [
            {"category_id": category_id, "category": self.categories[category_id].name, "score": score}
            for _, answer in answers
            if (found := answer.labels) is not None
            for category_id, score in zip(
                found.category_ids.tolist()[: self.options.top_labels], found.scores.tolist(), strict=False
            )
        ]
        labels.sort(key=lambda label: -label["score"])
        return pa.table({"labels": pa.array([labels], IMAGES.field("labels").type)})
