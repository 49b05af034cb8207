"""By what images are chosen: each rule says how much an image asks to be looked at, why, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from prelabel.pipeline.compare import changes_by_image
from prelabel.pipeline.compare.changes import Change
from prelabel.pipeline.compare.images import Images
from prelabel.pipeline.compare.kinds import Kind, kinds_in_both
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query.connection import wait
from prelabel.schemas.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ASKED = {
    "random": "SELECT 0::BIGINT AS image_id, 0::BIGINT AS size, '' AS place, '' AS reason WHERE false",
    "uncertainty": """
SELECT image_id, size, '' AS place,
    format('uncertainty: {} {:.2f}', most.category, most.score) || if(doubtful > 1, ' and others', '') AS reason
FROM (
    SELECT image_id, sum(round(1e6 * doubt)::BIGINT)::BIGINT AS size, count(*) AS doubtful,
        arg_max(struct_pack(category, score), (doubt, -number)) AS most
    FROM objects WHERE doubt > 0 GROUP BY image_id
)""",
    "disagreement": "SELECT image_id, size, '' AS place, reason FROM changes WHERE size > 0",
    "diversity": """
WITH held AS (
    SELECT image_id, category, sum(area::BIGINT) AS area, count(*) AS objects FROM objects WHERE counts GROUP BY ALL
), common AS (
    SELECT category, count(*) AS images FROM held GROUP BY category
), rarest AS (
    SELECT image_id, min((images, category)) AS rare, sum(area) / sum(objects) AS area
    FROM held JOIN common USING (category) GROUP BY image_id
)
SELECT image_id, (1e12 / count(*) OVER (PARTITION BY rare))::BIGINT AS size,
    format('{:012d} {} {} {}', rare[1], rare[2], if(area < 1024, 0, if(area < 9216, 1, 2)), shard) AS place,
    format('diversity: {}, in {} of the images', rare[2], rare[1]) AS reason
FROM rarest JOIN images USING (image_id)""",
}
"""Rule -> of the images that ask for more than chance gives them: how much, in which order they are gone through (ties
by chance), and why. Sizes are whole numbers, so that their sums do not depend on the order of adding."""
MEASURE = """
CREATE TABLE measured AS
WITH counted AS (SELECT DISTINCT image_id, true AS has_objects FROM objects WHERE counts), asked AS ({asked})
SELECT image_id, key,
    CASE WHEN status = 'failed' THEN 'failed' WHEN has_objects OR size > 0 THEN 'found' ELSE 'empty' END AS stratum,
    if(status = 'failed', 0, coalesce(size, 0)) AS size, coalesce(place, '') AS place,
    CASE stratum WHEN 'failed' THEN concat('failed: ', error_code) WHEN 'empty' THEN 'empty: nothing was found'
        ELSE coalesce(reason, 'chance') END AS reason
FROM images LEFT JOIN counted USING (image_id) LEFT JOIN asked USING (image_id)
"""
CHANGES = pa.schema([("image_id", pa.int64()), ("size", pa.int64()), ("reason", pa.string())])
IOU = 0.5
_ROWS = 4_096


def measure(
    connection: DuckDBPyConnection, dataset: LabelDataset, by: str, other: LabelDataset | None, lowest: float
) -> None:
    """Makes the table `measured`, a row of each image: image_id, key, stratum, size, place, reason.

    Args:
        connection: with the views of the job, and `objects`
        dataset: the job
        by: a name in ASKED
        other: that the job is compared with by "disagreement"
        lowest: objects that score lower are compared in neither

    Raises:
        UserError: there is no such rule, or nothing to compare with.
        JobError: a part is damaged.
    """
    if by not in ASKED:
        raise UserError(f"there is no rule {by!r}: choose from {', '.join(ASKED)}")
    if (by == "disagreement") != (other is not None):
        raise UserError("--by disagreement needs --other URL, a job over the same images; no other rule takes it")
    if other is not None:
        images, kinds = Images(dataset, other, 0), kinds_in_both(dataset, other, IOU, lowest)
        connection.register("arriving", pa.RecordBatchReader.from_batches(CHANGES, _changes(images, kinds)))
        wait(connection, lambda: connection.execute("CREATE TABLE changes AS FROM arriving"))
        if not images.common:
            raise UserError(f"{dataset.url} and {other.url} have no image in common: images are the same by their key")
    wait(connection, lambda: connection.execute(MEASURE.format(asked=ASKED[by])))


def _changes(images: Images, kinds: dict[str, Kind]) -> Iterator[pa.RecordBatch]:
    """How much has changed in each image from one job to the other, as `prelabel compare` counts it."""
    changes = changes_by_image(images, kinds)
    while some := list(islice(changes, _ROWS)):
        rows = [(one.before, round(1e6 * one.change.amount), _reason(one.change)) for one in some]
        yield pa.RecordBatch.from_arrays(
            [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), CHANGES, strict=True)],
            schema=CHANGES,
        )


def _reason(change: Change) -> str:
    counts = ((getattr(change, name), name) for name in ("appeared", "vanished", "reclassified", "moved"))
    return f"disagreement: {', '.join(f'{count} {name}' for count, name in counts if count)}"
