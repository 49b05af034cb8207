"""What is counted, by DuckDB over the committed rows: answers are small, however large the job is."""

from __future__ import annotations

from typing import Any

import numpy as np

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query import connect
from prelabel.pipeline.query.connection import wait

Row = dict[str, Any]

SCORE_BINS = 20
GRID = 24
"""Columns and rows of the map of centres."""
OCTAVE = 4
"""Bins of sizes and aspect ratios, in each doubling."""
TOP = 30
TOGETHER = 20
"""Categories of which is counted how often they meet: an image's are the bits of one number."""

IMAGES = """
SELECT count(*) AS images, count(*) FILTER (status = 'ok') AS labeled, count(*) FILTER (status <> 'ok') AS failed,
    count(*) FILTER (status = 'ok' AND num_annotations = 0) AS empty, coalesce(sum(num_bytes), 0)::BIGINT AS bytes,
    coalesce(sum(width::BIGINT * height) FILTER (status = 'ok'), 0)::BIGINT AS pixels
FROM images
"""
FAILURES = """
SELECT coalesce(error_code, 'unknown') AS code, count(*) AS images, arg_min(key, image_id, 3) AS keys,
    arg_min(error, image_id) AS error
FROM images WHERE status <> 'ok' GROUP BY ALL ORDER BY images DESC, code LIMIT 50
"""
PER_IMAGE = """
WITH counted AS (SELECT num_annotations AS objects FROM images WHERE status = 'ok'),
    bins AS (SELECT ceil((max(objects) + 1) / 40) AS step FROM counted)
SELECT (objects // step * step)::INT AS objects, any_value(step)::INT AS step, count(*) AS images
FROM counted, bins GROUP BY objects // step * step ORDER BY 1
"""
IMAGE_SIZES = """
SELECT round({octave} * log2(width))::INT AS width, round({octave} * log2(height))::INT AS height, count(*) AS images
FROM images WHERE width > 0 AND height > 0 GROUP BY ALL ORDER BY ALL
"""
COMMON_SIZES = """
SELECT width, height, count(*) AS images FROM images WHERE width > 0
GROUP BY ALL ORDER BY images DESC, width, height LIMIT 10
"""
SCORES = """
SELECT category_id, least({bins} - 1, floor(score * {bins}))::INT AS bin, count(*) AS objects, sum(score) AS total
FROM annotations GROUP BY ALL ORDER BY ALL
"""
BOXES = """
WITH boxes AS (
    SELECT bbox.width::DOUBLE AS w, bbox.height::DOUBLE AS h,
        (bbox.x + w / 2) / width AS x, (bbox.y + h / 2) / height AS y
    FROM {table} JOIN images USING (image_id) WHERE w > 0 AND h > 0
), binned AS (
    SELECT round({octave} * log2(sqrt(w * h)))::INT AS side, round({octave} * log2(w / h))::INT AS aspect,
        greatest(0, least({grid} - 1, floor({grid} * x)))::INT AS "column",
        greatest(0, least({grid} - 1, floor({grid} * y)))::INT AS "row"
    FROM boxes
)
SELECT side, aspect, "column", "row", count(*) AS objects FROM binned
GROUP BY GROUPING SETS ((side), (aspect), ("column", "row")) ORDER BY ALL
"""
PRESENT = """
CREATE OR REPLACE TEMP TABLE present AS
SELECT image_id, bit_or(1::BIGINT << list_position({ids}, category_id) - 1) AS found
FROM annotations WHERE list_contains({ids}, category_id) GROUP BY image_id
"""
TOGETHER_IN = "SELECT found, count(*) AS images FROM present GROUP BY found"
SEGMENTS = """
SELECT kind, category_id, count(*) AS segments, sum(area)::BIGINT AS area
FROM segments GROUP BY ALL ORDER BY kind, area DESC, category_id
"""
LABELS = """
SELECT labels[1].category_id AS category_id, count(*) AS images, avg(labels[1].score) AS score
FROM images WHERE len(labels) > 0 GROUP BY ALL ORDER BY images DESC, category_id LIMIT 30
"""
REVIEWS = """
SELECT reviewer, count(*) FILTER (verdict = 'accept') AS accepted, count(*) FILTER (verdict = 'reject') AS rejected,
    count(*) FILTER (verdict = 'flag') AS flagged, count(note) AS notes, count(DISTINCT image_id) AS images
FROM verdicts GROUP BY ALL ORDER BY count(*) DESC, reviewer LIMIT 50
"""


class Figures:
    """A job's figures; each is asked for when it is needed."""

    def __init__(self, dataset: LabelDataset) -> None:
        self._connection = connect(dataset)

    def close(self) -> None:
        """Lets DuckDB's memory go."""
        self._connection.close()

    def rows(self, sql: str, *values: Any, **names: Any) -> list[Row]:
        """The answer to a question of this package's own, `names` put into its text and `values` in place of `?`."""
        text = sql.format(**names) if names else sql

        def work() -> tuple[list[str], list[tuple[Any, ...]]]:
            answer = self._connection.execute(text, list(values))
            return [column[0] for column in answer.description], answer.fetchall()

        columns, found = wait(self._connection, work)
        return [dict(zip(columns, row, strict=True)) for row in found]

    def count(self, table: str) -> int:
        """Rows of a table."""
        return int(self.rows(f"SELECT count(*) AS rows FROM {table}")[0]["rows"])

    def images(self) -> Row:
        """images, labeled, failed, empty, bytes, pixels."""
        return self.rows(IMAGES)[0]

    def failed(self) -> set[int]:
        """The image_ids of those that could not be labeled."""
        return {row["image_id"] for row in self.rows("SELECT image_id FROM images WHERE status <> 'ok'")}

    def sizes(self) -> list[Row]:
        """Images by width and height, in `OCTAVE`ths of their logarithms to base 2."""
        return self.rows(IMAGE_SIZES, octave=OCTAVE)

    def scores(self) -> list[Row]:
        """Annotations by category_id and bin of score, with the sum of their scores."""
        return self.rows(SCORES, bins=SCORE_BINS)

    def boxes(self, table: str) -> dict[str, list[Row]]:
        """A table's boxes by "side" and "aspect" (in `OCTAVE`ths of their logarithms), and "place" of centres."""
        found = self.rows(BOXES, table=table, octave=OCTAVE, grid=GRID)
        figures = {name: [row for row in found if row[name] is not None] for name in ("side", "aspect")}
        return figures | {"place": [row for row in found if row["row"] is not None]}

    def together(self, category_ids: list[int]) -> np.ndarray:
        """Images in which categories meet: int (N, N) of N ids, `TOGETHER` at most; on the diagonal those of each."""
        self.rows(PRESENT, ids=list(map(int, category_ids)))
        found = self.rows(TOGETHER_IN)
        sets = np.array([row["found"] for row in found], np.int64)
        images = np.array([row["images"] for row in found], np.float64)
        bits = (sets[:, None] >> np.arange(len(category_ids)) & 1).astype(np.float64)
        return (bits.T @ (bits * images[:, None])).astype(np.int64)
