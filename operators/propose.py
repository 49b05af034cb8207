"""propose: class-agnostic regions with objectness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Proposals, Task
from prelabel.operators.rows import constant, corners_to_bbox, in_order, ranks_of, row_ids
from prelabel.schemas.tables import PROPOSALS

_NO_PROPOSALS = PROPOSALS.empty_table()


class Propose(Operator):
    """One row per region: the best `keep_proposals` of each model."""

    task: ClassVar[Task] = Task.PROPOSE
    table: ClassVar[str] = "proposals"

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The regions of all models, each model's best, ranked by descending objectness."""
        kept = [(model, self._best(found)) for model, answer in answers if (found := answer.proposals)]
        if not kept:
            return _NO_PROPOSALS
        ranks = ranks_of([proposals.scores for _, proposals in kept])
        parts = [
            _rows(image, proposals, model, row_ids(image, rank))
            for (model, proposals), rank in zip(kept, ranks, strict=True)
        ]
        return in_order(parts, ranks)

    def _best(self, found: Proposals) -> Proposals:
        return Proposals(found.boxes[: self.options.keep_proposals], found.scores[: self.options.keep_proposals])


def _rows(image: ImageInfo, found: Proposals, model: str, ids: np.ndarray) -> pa.Table:
    columns = {
        "proposal_id": pa.array(ids),
        "image_id": pa.array(np.full(len(found), image.image_id)),
        "score": pa.array(found.scores, pa.float32()),
        "bbox": corners_to_bbox(found.boxes),
        "model": constant(model, len(found)),
    }
    return pa.Table.from_arrays([columns[name] for name in PROPOSALS.names], schema=PROPOSALS)
