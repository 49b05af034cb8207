"""What reviewers say: taken from the page, written, and known at once; and what others have written since."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query.connection import LAST_VERDICTS
from prelabel.pipeline.review.database import Database
from prelabel.pipeline.review.units import Units
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.pipeline.storage import reaching
from prelabel.schemas.errors import JobError, UserError, one_line
from prelabel.schemas.tables import REVIEWS, VERDICTS

Id = Annotated[int, Field(ge=0, lt=2**53)]
IN_MEMORY = """
CREATE TABLE said AS FROM reviews LIMIT 0;
DROP VIEW reviews;
ALTER TABLE said RENAME TO reviews;
CREATE TABLE image_verdicts AS SELECT image_id AS of_image, verdict FROM reviews;
"""
"""The view `verdicts` reads a table that can grow, in place of the parts that there were at first."""
ADD = f"""
BEGIN;
INSERT INTO reviews FROM arriving ANTI JOIN reviews USING (review_id);
DELETE FROM image_verdicts WHERE of_image IN (SELECT image_id FROM arriving);
INSERT INTO image_verdicts
WITH reviews AS (FROM main.reviews SEMI JOIN arriving USING (image_id)), verdicts AS ({LAST_VERDICTS})
SELECT image_id, arg_max(verdict, (reviewed_at, review_id)) AS said FROM verdicts
WHERE annotation_id IS NULL AND verdict IS NOT NULL GROUP BY image_id;
COMMIT;
"""
"""A part may be found while it is being written, and so come twice."""
COLUMNS = "annotation_id, verdict, note, reviewer, reviewed_at"


class Said(BaseModel):
    """One verdict, of an image or an object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image_id: Id
    annotation_id: Id | None = None
    verdict: Literal["accept", "reject", "flag"] | None = None
    note: Annotated[str, Field(max_length=10_000)] | None = None


class Posted(BaseModel):
    """What is said at once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reviews: Annotated[list[Said], Field(max_length=10_000)]


class Verdicts:
    """The reviews of a job; several threads may ask.

    Attributes:
        version: another one after each change
    """

    def __init__(self, dataset: LabelDataset, units: Units, database: Database) -> None:
        self._dataset, self._units, self._database = dataset, units, database
        self._parts: set[str] = set()  # that are known
        self._adding = threading.Lock()
        self.version = 0
        database.execute(IN_MEMORY)
        self.refresh()

    def refresh(self) -> None:
        """Reads what was written since, also by others.

        Raises:
            JobError: a part can't be read.
        """
        with reaching(f"read {self._dataset.url}/reviews"):
            new = [name for name in self._dataset.parts("reviews") if name not in self._parts]
        if new:
            self._add(_read(self._dataset, new), new)

    def _add(self, reviews: pa.Table, parts: list[str]) -> None:
        with self._adding:
            self._database.execute(ADD, arriving=reviews)
            self._parts.update(parts)
            self.version += 1

    def write(self, reviewer: str, posted: Posted) -> None:
        """Keeps what a reviewer says.

        Raises:
            UserError: it is about an image or object that is not there.
            JobError: nothing can be written there.
        """
        self._check(posted.reviews)
        if posted.reviews:
            rows = [Review(one.image_id, one.annotation_id, one.verdict, one.note) for one in posted.reviews]
            part, written = write_reviews(self._dataset, reviewer, rows)
            self._add(written, [part])

    def _check(self, reviews: list[Said]) -> None:
        images = np.array([said.image_id for said in reviews], np.int64)
        for image_id in images[~self._units.contain(images)]:
            raise UserError(f"there is no image {image_id}")
        of_objects = np.array([said.image_id for said in reviews if said.annotation_id is not None], np.int64)
        known = self._units.rows("annotations", of_objects, ["annotation_id", "image_id"])
        image_of = dict(zip(*(column.to_pylist() for column in known.columns), strict=True))
        for said in reviews:
            if said.annotation_id is not None and image_of.get(said.annotation_id) != said.image_id:
                raise UserError(f"image {said.image_id} has no object {said.annotation_id}")

    def of(self, image_id: int) -> list[dict[str, Any]]:
        """What each reviewer said last of an image and its objects, in the order in which they did."""
        where = f"image_id = {int(image_id)} ORDER BY reviewed_at, review_id"
        return self._database.rows(f"SELECT {COLUMNS} FROM verdicts WHERE {where}")

    def of_images(self, image_ids: np.ndarray) -> dict[int, str]:
        """The last word on each image as a whole, by anyone, where there is one."""
        among = ", ".join(map(str, image_ids.tolist())) or "NULL"
        rows = self._database.rows(f"FROM image_verdicts WHERE of_image IN ({among})")
        return {row["of_image"]: row["verdict"] for row in rows}

    def progress(self) -> dict[str, int]:
        """How many of the committed images have each verdict, or none."""
        found = self._database.columns("FROM image_verdicts")
        said = Counter(found["verdict"][self._units.contain(found["of_image"])])
        return {verdict: said[verdict] for verdict in VERDICTS} | {"none": self._units.images - said.total()}


def _read(dataset: LabelDataset, parts: list[str]) -> pa.Table:
    storage = dataset.storage
    paths = [storage.path(name) for name in parts]
    try:  # Arrow's own way to a disk is many times faster, and these parts are small and many
        found = pq.read_table(paths, schema=REVIEWS, filesystem=None if storage.is_local else storage.fs)
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"a part of {storage.url}/reviews can't be read: {one_line(error)}") from error
    return found.unify_dictionaries().combine_chunks()
