"""What filters ask: a few columns of the tables, in memory."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from prelabel.pipeline.query.connection import wait
from prelabel.pipeline.review.database import Database
from prelabel.pipeline.review.filters import BEST_AND_WORST, Filter
from prelabel.pipeline.review.units import Units
from prelabel.pipeline.review.verdicts import Verdicts
from prelabel.pipeline.selection import rows_where
from prelabel.schemas.errors import JobError, PrelabelError

ANSWERS_KEPT = 16
PATIENCE = 60.0
"""Seconds that a filter waits for the index."""
OF_A_PAGE = "image_id, key, width, height, status, error_code, num_annotations"
INDEX = [
    "CREATE TABLE indexed_objects AS SELECT image_id::INTEGER AS image_id, category_id, score FROM annotations",
    f"""CREATE TABLE indexed_images AS SELECT {OF_A_PAGE}, highest, lowest
    FROM images LEFT JOIN ({BEST_AND_WORST} GROUP BY image_id) USING (image_id) ORDER BY image_id""",
    "INSERT INTO indexed_objects SELECT image_id, category_id, score FROM segments",
]


class Index:
    """Finds images; several threads may ask, also while it is being built.

    Attributes:
        ready: set when all filters can be answered
    """

    def __init__(self, units: Units, verdicts: Verdicts, database: Database) -> None:
        self._units, self._verdicts, self._database = units, verdicts, database
        self.ready = threading.Event()
        self._failure: PrelabelError | None = None
        self._answer = lru_cache(ANSWERS_KEPT)(self._find)

    def build(self) -> None:
        """Reads the columns that filters need."""
        try:
            for statement in INDEX:
                self._database.execute(statement)
        except PrelabelError as error:
            self._failure = error
        self.ready.set()

    def find(self, asked: Filter) -> np.ndarray:
        """The ids of the images that a filter lets through, in its order, int64.

        Raises:
            UserError: the filter's SQL makes no sense.
            JobError: a part is damaged, or the index is not yet there.
        """
        if not self.ready.wait(PATIENCE):
            raise JobError("the tables are still being read: ask again in a minute")
        if self._failure:
            raise self._failure
        return self._answer(asked, self._verdicts.version if asked.follows_verdicts else 0)

    def _find(self, asked: Filter, _: int) -> np.ndarray:
        found = self._database.columns(*asked.to_sql())["image_id"]
        if asked.sql:
            found = found[np.isin(found, self._selected(asked.sql))]
        return np.asarray(found, np.int64)

    def _selected(self, where: str) -> np.ndarray:
        """The images that `prelabel export --where` takes."""
        with self._database.cursor() as cursor:
            rows = rows_where(cursor, where)
            found: np.ndarray = wait(cursor, rows.project("image_id").distinct().fetchnumpy)["image_id"]
        return found

    def images(self, image_ids: np.ndarray) -> list[dict[str, Any]]:
        """What a page shows of these images, in that order; answered before the index is built, too."""
        known = self.ready.is_set() and not self._failure
        rows = self._from_index(image_ids) if known else self._from_parts(image_ids)
        verdicts = self._verdicts.of_images(image_ids)
        by_id = {row["image_id"]: row | {"verdict": verdicts.get(row["image_id"])} for row in rows}
        return [by_id[image_id] for image_id in image_ids.tolist()]

    def _from_index(self, image_ids: np.ndarray) -> list[dict[str, Any]]:
        among = ", ".join(map(str, image_ids.tolist())) or "NULL"
        return self._database.rows(f"SELECT {OF_A_PAGE}, highest FROM indexed_images WHERE image_id IN ({among})")

    def _from_parts(self, image_ids: np.ndarray) -> list[dict[str, Any]]:
        scores = self._units.rows("annotations", image_ids, ["image_id", "score"]).group_by("image_id")
        best = scores.aggregate([("score", "max")])
        highest = dict(zip(best["image_id"].to_pylist(), best["score_max"].to_pylist(), strict=True))
        rows = self._units.rows("images", image_ids, OF_A_PAGE.split(", ")).to_pylist()
        return [row | {"highest": highest.get(row["image_id"])} for row in rows]
