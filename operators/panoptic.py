"""fuse_panoptic: things and stuff in one layer, no pixel twice.

Segments that a network makes end to end are kept as they are. Otherwise instances and semantic segments are merged as
in Kirillov, He, Girshick, Rother, Dollár, "Panoptic Segmentation" (CVPR 2019), section 7, with each comparison as
strict as in panopticapi's combine_semantic_and_instance_predictions.py: what equals a threshold is kept. Its overlap
is the part of an instance that is taken, ours the part that is left: 1 minus the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from prelabel.operators.base import Answer, ImageInfo, Operator, Segments, Task
from prelabel.operators.masks import MaskRuns
from prelabel.operators.rows import instances_of, ranks_of, row_ids, segment_rows
from prelabel.schemas.rle import area, bbox, from_run_lengths, invert, merge
from prelabel.schemas.tables import ROWS_PER_IMAGE


@dataclass(frozen=True)
class Claim:
    """What asks for its place in the layer; only things have a score and come from an annotation."""

    model: str
    category_id: int
    mask: MaskRuns
    score: float = np.nan
    annotation_id: int | None = None


class FusePanoptic(Operator):
    """One segment per thing and kind of stuff; a pixel in none of them is void."""

    task: ClassVar[Task] = Task.FUSE_PANOPTIC
    table: ClassVar[str] = "segments"

    def rows(self, image: ImageInfo, answers: Sequence[Answer]) -> pa.Table:
        """The segments of a model that makes them end to end; else the things by descending score, then the stuff."""
        for model, answer in answers:
            if answer.panoptic is not None:
                return segment_rows(image, answer.panoptic, self.categories, kind="panoptic", model=model, first_id=1)
        granted = list(self._grant([*self._things(image, answers), *self._stuff(answers)], image))
        segments = Segments(
            np.array([claim.category_id for claim in granted], np.int32),
            [claim.mask for claim in granted],
            np.array([claim.score for claim in granted], np.float32),
        )
        return segment_rows(
            image,
            segments,
            self.categories,
            kind="panoptic",
            model=[claim.model for claim in granted],
            first_id=1,
            annotation_ids=[claim.annotation_id for claim in granted],
        )

    def _things(self, image: ImageInfo, answers: Sequence[Answer]) -> list[Claim]:
        """The instances with masks that reach the score, of all models, by rank."""
        least = 0.5 if self.options.panoptic_score is None else self.options.panoptic_score
        found = instances_of(answers)
        ranks = ranks_of([instances.scores for _, instances in found])
        claims = [
            Claim(model, int(one.category_ids[k]), one.masks[k], float(one.scores[k]), int(row_ids(image, rank)[k]))
            for (model, one), rank in zip(found, ranks, strict=True)
            if one.masks is not None
            for k in np.flatnonzero((one.scores >= least) & (rank < ROWS_PER_IMAGE)).tolist()
        ]
        return sorted(claims, key=lambda claim: claim.annotation_id or 0)

    def _stuff(self, answers: Sequence[Answer]) -> Iterator[Claim]:
        """The semantic segments of categories that are not things."""
        for model, answer in answers:
            if answer.semantic is not None:
                for category_id, mask in zip(answer.semantic.category_ids.tolist(), answer.semantic.masks, strict=True):
                    if not self.categories[category_id].isthing:
                        yield Claim(model, category_id, mask)

    def _grant(self, claims: Iterable[Claim], image: ImageInfo) -> Iterator[Claim]:
        """The claims that are worth it, each with what those before have left of its mask."""
        size = image.height, image.width
        free = from_run_lengths([np.array([0, image.height * image.width])], size)[0]
        for claim in claims:
            visible = merge([claim.mask.rle, free], intersect=True)
            pixels = area(visible)
            if pixels > 0 and self._is_enough(claim, pixels):
                free = merge([free, invert(visible)], intersect=True)
                yield replace(claim, mask=MaskRuns(visible, pixels, bbox(visible)))

    def _is_enough(self, claim: Claim, pixels: int) -> bool:
        if claim.annotation_id is None:
            return pixels >= self.options.panoptic_stuff_area
        least = 0.5 if self.options.panoptic_overlap is None else self.options.panoptic_overlap
        return pixels / claim.mask.area >= least
