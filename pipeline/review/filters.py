"""Which images the page asks for, as SQL over the index."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ORDERS = {
    "id": "image_id",
    "highest": "scored.highest DESC NULLS LAST, image_id",
    "lowest": "scored.lowest NULLS LAST, image_id",
    "objects": "num_annotations DESC, image_id",
    "fewest": "num_annotations, image_id",
}
CONDITIONS = {
    "status": "status = $status",
    "min_objects": "num_annotations >= $min_objects",
    "max_objects": "num_annotations <= $max_objects",
    "min_width": "width >= $min_width",
    "max_width": "width <= $max_width",
    "min_height": "height >= $min_height",
    "max_height": "height <= $max_height",
    "text": "contains(lower(key), lower($text))",
    "verdict": "coalesce((SELECT verdict FROM image_verdicts WHERE of_image = image_id), 'none') = $verdict",
}
OBJECTS = {
    "category": "list_contains($category, category_id)",
    "min_score": "score >= $min_score",
    "max_score": "score <= $max_score",
}
BEST_AND_WORST = "SELECT image_id, max(score) AS highest, min(score) AS lowest FROM indexed_objects"
Size = Annotated[int, Field(ge=0, lt=2**31)]


class Filter(BaseModel):
    """What the images must have, and their order.

    Attributes:
        category, min_score, max_score: an object (or segment) of one of these categories with such a score
        status, text: of the image's row; the text is a part of its key, in capitals or not
        verdict: the last word on the image as a whole, by anyone; "none": nobody has said one
        min_objects, max_objects: rows of the annotations table
        min_width, max_width, min_height, max_height: in pixels of the upright image
        sql: an expression, see `prelabel.pipeline.selection`
        order: highest and lowest are those scores that the filter asks for, the best first and the worst first
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    category: tuple[Size, ...] = ()
    min_score: float | None = None
    max_score: float | None = None
    status: Literal["ok", "failed"] | None = None
    verdict: Literal["accept", "reject", "flag", "none"] | None = None
    min_objects: Size | None = None
    max_objects: Size | None = None
    min_width: Size | None = None
    max_width: Size | None = None
    min_height: Size | None = None
    max_height: Size | None = None
    text: Annotated[str, Field(max_length=1_000)] | None = None
    sql: Annotated[str, Field(max_length=10_000)] | None = None
    order: Literal["id", "highest", "lowest", "objects", "fewest"] = "id"

    @property
    def is_everything(self) -> bool:
        """Whether it is all images in their own order."""
        return self == Filter()

    @property
    def follows_verdicts(self) -> bool:
        """Whether a new verdict may change the answer."""
        return self.verdict is not None or self.sql is not None

    def to_sql(self) -> tuple[str, dict[str, Any]]:
        """A SELECT of image_id over `indexed_images` and `indexed_objects`, without `sql`, and its parameters."""
        values = self.model_dump(exclude_defaults=True, exclude={"sql", "order"})
        if self.category:
            values["category"] = list(self.category)
        objects = " AND ".join(OBJECTS[name] for name in values if name in OBJECTS)
        images = " AND ".join(CONDITIONS[name] for name in values if name in CONDITIONS)
        source = "indexed_images AS scored"
        if objects:
            scored = f"{BEST_AND_WORST} WHERE {objects} GROUP BY image_id"
            source = f"indexed_images JOIN ({scored}) AS scored USING (image_id)"
        return f"SELECT image_id FROM {source} WHERE {images or 'true'} ORDER BY {ORDERS[self.order]}", values
