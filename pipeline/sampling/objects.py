"""What counts in an image, for who chooses images and for who judges labels: a view that DuckDB makes of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prelabel.pipeline.query.connection import wait
from prelabel.schemas.job import JobRecord

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DECISION = 0.5
"""Where a score is most in doubt, if no threshold is given."""
DOUBT = 0.25
"""So far from the threshold, a score is in doubt no longer."""
ROWS = {
    "annotations": "SELECT *, annotation_id AS number FROM annotations",
    "panoptic": "SELECT * EXCLUDE (annotation_id), NULL::BIGINT AS annotation_id, segment_id AS number FROM segments "
    "WHERE kind = 'panoptic'",
    "semantic": "SELECT * EXCLUDE (annotation_id), NULL::BIGINT AS annotation_id, segment_id AS number FROM segments "
    "WHERE kind = 'semantic'",
    "labels": "SELECT image_id, NULL::BIGINT AS annotation_id, 0 AS number, labels[1].category AS category, "
    "labels[1].score AS score, NULL::DOUBLE AS area, 1 - score + coalesce(labels[2].score, 0) AS doubt "
    "FROM images WHERE len(labels) > 0",
}
VIEW = """
CREATE TEMP VIEW objects AS
SELECT image_id, annotation_id, number, category, score, area, {doubt} AS doubt,
    coalesce(score >= {lowest}::FLOAT, true) AS counts
FROM ({rows})
"""


def view_objects(connection: DuckDBPyConnection, record: JobRecord, score_threshold: float | None) -> None:
    """Makes the view `objects`: image_id, annotation_id, number, category, score, area, doubt, counts.

    A row is an object; in a job without objects a panoptic or else a semantic segment; in one without these, an
    image's best label. `counts` says whether its score is not below the threshold; `doubt`, from 0 to 1, how near to
    the threshold it is: 1 at it, 0 from DOUBT on. The doubt of a label is 1 less the margin to the second best
    (Scheffer et al. 2001).
    """
    kind = _kind(record)
    near = DECISION if score_threshold is None else score_threshold
    doubt = "doubt" if kind == "labels" else f"greatest(0, 1 - abs(score - {near}) / {DOUBT})"
    sql = VIEW.format(rows=ROWS[kind], doubt=doubt, lowest=score_threshold or 0)
    wait(connection, lambda: connection.execute(sql))


def _kind(record: JobRecord) -> str:
    if "annotations" in record.tables:
        return "annotations"
    if "segments" in record.tables:
        return "panoptic" if "fuse_panoptic" in record.tasks else "semantic"
    return "labels"
