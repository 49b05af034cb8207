"""What filters ask: a few columns of the tables, in memory, and what the reviewers said."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query.connection import ask, connect, wait
from prelabel.pipeline.review.filters import Filter
from prelabel.pipeline.review.units import Units
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.schemas.errors import JobError, PrelabelError

ANSWERS_KEPT = 16
PATIENCE = 60.0
"""Seconds that a filter waits for the index."""
OWN_REVIEWS = [
    "CREATE TABLE own_reviews AS FROM reviews",
    "DROP VIEW reviews",
    "ALTER TABLE own_reviews RENAME TO reviews",  # `verdicts` reads these now, and new ones can be added
    """CREATE VIEW image_verdicts AS SELECT image_id, arg_max(verdict, (reviewed_at, review_id)) AS verdict
    FROM verdicts WHERE annotation_id IS NULL AND verdict IS NOT NULL GROUP BY image_id""",
]
INDEX = [
    "CREATE TABLE indexed_objects AS SELECT image_id::INTEGER AS image_id, category_id, score FROM annotations",
    """CREATE TABLE indexed_images AS SELECT image_id, key, width, height, status, error_code, num_annotations, highest,
    lowest FROM images LEFT JOIN (SELECT image_id, max(score) AS highest, min(score) AS lowest FROM indexed_objects
    GROUP BY image_id) USING (image_id) ORDER BY image_id""",
    "INSERT INTO indexed_objects SELECT image_id, category_id, score FROM segments",
]
OF_A_PAGE = ["image_id", "key", "width", "height", "status", "error_code", "num_annotations"]


class Index:
    """Finds images; several threads may ask, also while it is being built.

    Attributes:
        ready: set when all filters can be answered
    """

    def __init__(self, dataset: LabelDataset, units: Units) -> None:
        self._dataset, self._units = dataset, units
        self._connection = connect(dataset)
        for statement in OWN_REVIEWS:
            wait(self._connection, lambda statement=statement: self._connection.execute(statement))
        self.ready = threading.Event()
        self._failure: PrelabelError | None = None
        self._verdicts = 0  # how many times there were new ones
        self._answer = lru_cache(ANSWERS_KEPT)(self._find)

    def build(self) -> None:
        """Reads the columns that filters need."""
        try:
            for statement in INDEX:
                with self._connection.cursor() as cursor:
                    wait(cursor, lambda statement=statement, cursor=cursor: cursor.execute(statement))
        except PrelabelError as error:
            self._failure = error
        self.ready.set()

    def stop(self) -> None:
        """Ends what is under way."""
        self._connection.interrupt()

    def find(self, asked: Filter) -> np.ndarray:
        """The ids of the images that a filter lets through, in its order, int64.

        Raises:
            PrelabelError: the filter's SQL makes no sense, or a part is damaged.
        """
        if not self.ready.wait(PATIENCE):
            raise JobError("the tables are still being read: ask again in a minute")
        if self._failure:
            raise self._failure
        return self._answer(asked, self._verdicts if asked.follows_verdicts else 0)

    def _find(self, asked: Filter, _: int) -> np.ndarray:
        sql, values = asked.to_sql()
        with self._connection.cursor() as cursor:
            found = wait(cursor, lambda: cursor.execute(sql, values).fetchnumpy())["image_id"]
            if asked.sql:
                also = ask(cursor, _selected(asked.sql))
                found = found[np.isin(found, wait(cursor, also.fetchnumpy)["image_id"])]
        return np.asarray(found, np.int64)

    def images(self, image_ids: np.ndarray) -> list[dict[str, Any]]:
        """What a page shows of these images, in that order; answered before the index is built, too."""
        known = self.ready.is_set() and not self._failure
        rows = self._from_index(image_ids) if known else self._from_parts(image_ids)
        verdicts = self._image_verdicts(image_ids)
        by_id = {row["image_id"]: row | {"verdict": verdicts.get(row["image_id"])} for row in rows}
        return [by_id[image_id] for image_id in image_ids.tolist()]

    def _from_index(self, image_ids: np.ndarray) -> list[dict[str, Any]]:
        columns = ", ".join([*OF_A_PAGE, "highest"])
        return self.rows(f"SELECT {columns} FROM indexed_images WHERE {_among(image_ids)}")

    def _from_parts(self, image_ids: np.ndarray) -> list[dict[str, Any]]:
        scores = self._units.rows("annotations", image_ids, ["image_id", "score"]).group_by("image_id")
        best = scores.aggregate([("score", "max")])
        highest = dict(zip(best["image_id"].to_pylist(), best["score_max"].to_pylist(), strict=True))
        rows = self._units.rows("images", image_ids, OF_A_PAGE).to_pylist()
        return [row | {"highest": highest.get(row["image_id"])} for row in rows]

    def _image_verdicts(self, image_ids: np.ndarray) -> dict[int, str]:
        rows = self.rows(f"SELECT image_id, verdict FROM image_verdicts WHERE {_among(image_ids)}")
        return {row["image_id"]: row["verdict"] for row in rows}

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The answer to a question of this package's own."""
        with self._connection.cursor() as cursor:
            found = wait(cursor, lambda: cursor.execute(sql).fetchall())
            names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]

    def reviews(self, image_id: int) -> list[dict[str, Any]]:
        """What each reviewer said last of an image and its objects, in the order in which they did."""
        columns = "annotation_id, verdict, note, reviewer, reviewed_at"
        return self.rows(f"SELECT {columns} FROM verdicts WHERE image_id = {image_id} ORDER BY reviewed_at, review_id")

    def review(self, reviewer: str, reviews: Sequence[Review]) -> None:
        """Writes what a reviewer says, and knows it.

        Raises:
            JobError: nothing can be written there.
        """
        written = write_reviews(self._dataset, reviewer, reviews)
        with self._connection.cursor() as cursor:
            cursor.register("arriving", written)
            cursor.execute("INSERT INTO reviews FROM arriving")
        self._verdicts += 1

    def progress(self) -> dict[str, int]:
        """How many of the committed images have each verdict, or none."""
        found = self.rows("SELECT image_id, verdict FROM image_verdicts")
        ours = self._units.contain(np.array([row["image_id"] for row in found], np.int64))
        said = [row["verdict"] for row, is_ours in zip(found, ours, strict=True) if is_ours]
        counts = {verdict: said.count(verdict) for verdict in ("accept", "reject", "flag")}
        return counts | {"none": self._units.images - sum(counts.values())}


def _among(image_ids: np.ndarray) -> str:
    return f"image_id IN ({', '.join(map(str, image_ids.tolist())) or 'NULL'})"


def _selected(sql: str) -> str:
    return (
        "SELECT DISTINCT image_id FROM images LEFT JOIN annotations USING (image_id) LEFT JOIN verdicts"
        f" USING (image_id) WHERE ({sql}\n)"
    )
