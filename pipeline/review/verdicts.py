"""What the page sends: checked before it is written."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from prelabel.pipeline.review.units import Units
from prelabel.pipeline.reviews import Review
from prelabel.schemas.errors import UserError

Id = Annotated[int, Field(ge=0, lt=2**53)]


class Said(BaseModel):
    """One verdict, of an image or an object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image_id: Id
    annotation_id: Id | None = None
    verdict: Literal["accept", "reject", "flag"] | None = None
    note: Annotated[str, Field(max_length=10_000)] | None = None


class Verdicts(BaseModel):
    """What is posted at once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reviews: Annotated[list[Said], Field(max_length=10_000)]

    def checked(self, units: Units) -> list[Review]:
        """As rows to write.

        Raises:
            UserError: one is of an image or object that is not there.
        """
        images = np.array([said.image_id for said in self.reviews], np.int64)
        for image_id in images[~units.contain(images)]:
            raise UserError(f"there is no image {image_id}")
        of_objects = {said.annotation_id: said.image_id for said in self.reviews if said.annotation_id is not None}
        asked = np.unique(np.array(list(of_objects.values()), np.int64))
        rows = units.rows("annotations", asked, ["annotation_id", "image_id"]) if of_objects else None
        known = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True)) if rows else {}
        for said in self.reviews:
            if said.annotation_id is not None and known.get(said.annotation_id) != said.image_id:
                raise UserError(f"image {said.image_id} has no object {said.annotation_id}")
        return [Review(said.image_id, said.annotation_id, said.verdict, said.note) for said in self.reviews]
