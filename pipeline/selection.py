"""Some of a job's labels, read as streams like all of them: by score, category, SQL, and number of images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.storage import read_input
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import JobError, UserError, one_line
from prelabel.schemas.tables import TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

IDS = {"images": "image_id", "annotations": "annotation_id", "segments": "image_id", "proposals": "image_id"}
"""Table -> what its rows are selected by, and in the order of."""
ROWS_WHERE = """
WITH said AS (
    SELECT image_id, annotation_id, arg_max(verdict, place) AS verdict, arg_max(note, place) AS note,
        arg_max(reviewer, place) FILTER (verdict IS NOT NULL) AS reviewer
    FROM (SELECT *, (reviewed_at, review_id) AS place FROM verdicts)
    GROUP BY ALL
), objects AS (FROM annotations UNION ALL BY NAME SELECT image_id FROM images)
SELECT image_id, annotation_id FROM (
    SELECT images.*, objects.* EXCLUDE (image_id), coalesce(own.verdict, whole.verdict) AS verdict,
        coalesce(own.reviewer, whole.reviewer) AS reviewer, coalesce(own.note, whole.note) AS note
    FROM images JOIN objects USING (image_id)
    LEFT JOIN said AS own USING (annotation_id)
    LEFT JOIN said AS whole ON whole.image_id = images.image_id AND whole.annotation_id IS NULL
) WHERE (
{where}
)"""
"""Of each image, a row of it by itself, whose columns of annotations are NULL, and a row of each of its objects."""
KEPT = {
    "image_id": "SELECT DISTINCT image_id FROM kept ORDER BY image_id",
    "annotation_id": "SELECT annotation_id FROM kept WHERE annotation_id IS NOT NULL ORDER BY annotation_id",
}


class Selection:
    """Some of a job's labels, for an export or anything else that reads them as streams.

    Attributes:
        url, record: of the dataset
        categories: those chosen
        left_out: table -> rows that its last reading passed over; those after the last image are not counted
    """

    def __init__(
        self,
        dataset: LabelDataset,
        score_threshold: float | Mapping[str, float] | None = None,
        categories: Iterable[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
    ) -> None:
        """As `LabelDataset.select`."""
        self.url, self.record = dataset.url, dataset.record
        self.left_out: dict[str, int] = {}
        self._dataset, self._limit = dataset, limit
        known, chosen = dataset.categories, set(dataset.categories.names if categories is None else categories)
        lowest = score_threshold or {}
        thresholds = lowest if isinstance(lowest, Mapping) else dict.fromkeys(known.names, lowest)
        _check_names({*thresholds, *chosen}, known, self.url)
        self.categories = CategorySet(one for one in known if one.name in chosen)
        self._chooses = bool(thresholds) or len(self.categories) < len(known)
        # as scores are kept, so that an object of 0.7 passes 0.7
        self._lowest = pa.array([thresholds.get(one.name, -math.inf) for one in self.categories], pa.float32())
        self._connection = None if where is None else _connect_where(dataset, where)

    @property
    def origin(self) -> LabelDataset:
        """The job's labels, all of them."""
        return self._dataset

    def gated(self) -> Selection:
        """The same, of `LabelDataset.gated`."""
        gated = copy.copy(self)
        gated._dataset = self._dataset.gated()
        return gated

    def notes(self) -> tuple[str, ...]:
        """Those of the job's labels."""
        return self._dataset.notes()

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The selected rows of a table, as `LabelDataset.batches`: a batch of all rows is in memory at a time.

        Raises:
            JobError: there is no such table of labels, or one of its parts is missing or damaged.
        """
        if name not in IDS:
            raise JobError(f"{name} can't be selected: choose from {', '.join(IDS)}")
        return self._batches(name, columns or TABLES[name].names, self._last_image)

    def _batches(self, name: str, columns: list[str], last: float) -> Iterator[pa.RecordBatch]:
        key = IDS[name]
        kept = SortedIds(self._ids(key)) if self._connection is not None else None
        needed = [one for one in TABLES[name].names if one in {*columns, "image_id", key, "category_id", "score"}]
        self.left_out[name] = 0
        for batch in self._dataset.batches(name, needed):
            within = batch if last == math.inf else batch.filter(pc.less_equal(batch["image_id"], last))
            found = self._chosen(within) if self._chooses and "category_id" in needed else within
            found = found.filter(kept.among(found[key].to_numpy())) if kept else found
            self.left_out[name] += within.num_rows - found.num_rows
            yield found.select(columns)
            if within.num_rows < batch.num_rows:
                break

    def _chosen(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of the categories, with the scores asked for; what has no score has passed the model's own."""
        place = pc.index_in(batch["category_id"], pa.array(self.categories.ids, pa.int32()))
        passes = pc.greater_equal(batch["score"], pc.take(self._lowest, place))
        return batch.filter(pc.and_(place.is_valid(), pc.fill_null(passes, True)))

    @cached_property
    def _last_image(self) -> float:
        """The image_id of the last image, where their number is limited."""
        if self._limit is None:
            return math.inf
        batches = self._batches("images", ["image_id", "status"], math.inf)
        ok = (batch.filter(pc.equal(batch["status"].cast(pa.string()), "ok"))["image_id"] for batch in batches)
        image_ids = (image_id for some in ok for image_id in some.to_pylist())
        return next(islice(image_ids, self._limit - 1, None), math.inf) if self._limit > 0 else -1

    def _ids(self, key: str) -> Iterator[np.ndarray]:
        from prelabel.pipeline.query import ask, batches_of

        assert self._connection is not None
        cursor = self._connection.cursor()  # several tables may be read at once
        _, batches = batches_of(cursor, ask(cursor, KEPT[key]))
        return (batch[key].to_numpy() for batch in batches)


class SortedIds:
    """Ids that come in ascending order, a piece at a time: no more are held than their askers need."""

    def __init__(self, pieces: Iterator[np.ndarray]) -> None:
        self._pieces = pieces
        self._held = np.empty(0, np.int64)

    def among(self, ids: np.ndarray) -> np.ndarray:
        """Which of `ids`, sorted int64 (N,), are there: bool (N,); none may be below one that was asked of before."""
        if not len(ids):
            return np.empty(0, bool)
        held = [self._held[np.searchsorted(self._held, ids[0]) :]]
        while not held[-1].size or held[-1][-1] < ids[-1]:
            piece = next(self._pieces, None)
            if piece is None:
                break
            held.append(piece[np.searchsorted(piece, ids[0]) :])
        self._held = np.concatenate(held)
        return np.isin(ids, self._held)


def rows_where(connection: DuckDBPyConnection, where: str) -> DuckDBPyRelation:
    """The image_id and annotation_id of the rows of ROWS_WHERE for which a condition holds.

    Raises:
        UserError: it is no single expression, or doesn't fit the tables.
    """
    import duckdb

    from prelabel.pipeline.query.connection import ask, wait

    wait(connection, lambda: duckdb.SQLExpression(where))  # no more than one: nothing goes on behind a bracket
    return ask(connection, ROWS_WHERE.replace("{where}", where))


def _connect_where(dataset: LabelDataset, where: str) -> DuckDBPyConnection:
    """DuckDB with a table of the ids that a condition keeps: worked out once, since it may be one of chance."""
    from prelabel.pipeline.query.connection import connect, wait

    connection = connect(dataset)
    try:
        found = rows_where(connection, where)
        wait(connection, lambda: found.create("kept"))
    except UserError as error:
        reason = str(error).removeprefix("the query can't be answered: ")
        raise UserError(f"can't select where {one_line(where)!r:.99}: {reason}") from error
    return connection


def _check_names(names: set[str], known: CategorySet, url: str) -> None:
    for name in sorted(names - set(known.names)):
        near = get_close_matches(name, known.names) or known.names[:10]
        raise UserError(f"{url} has no category {name!r}: did you mean {', '.join(map(repr, near))}?")


def score_thresholds(texts: Iterable[str], categories: CategorySet) -> dict[str, float]:
    """Category name -> lowest score, from what `--score-threshold` takes; later ones win.

    Args:
        texts: each a number for all categories, CATEGORY=NUMBER, or the path or URL of a JSON object of such pairs
        categories: all of the job

    Raises:
        UserError: one is none of these.
    """
    thresholds: dict[str, float] = {}
    for text in sorted(texts, key=lambda text: _number(text) is None):  # a number for all comes first
        name, equals, value = text.rpartition("=")
        if (number := _number(text)) is not None:
            thresholds |= dict.fromkeys(categories.names, number)
        elif equals and (number := _number(value)) is not None:
            thresholds[name] = number
        else:
            thresholds |= _thresholds_in(text)
    return thresholds


def _thresholds_in(url: str) -> dict[str, float]:
    try:
        found = orjson.loads(read_input(url, "--score-threshold"))
    except ValueError as error:
        raise UserError(f"--score-threshold {url} is no JSON: {one_line(error)}") from error
    if not isinstance(found, dict) or any(_number(value) is None for value in found.values()):
        raise UserError(f'--score-threshold {url} should hold {{"CATEGORY": NUMBER}}, as `prelabel evaluate` writes it')
    return {name: float(value) for name, value in found.items()}


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # not only what it takes
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


Labels = LabelDataset | Selection
"""What an export writes: all labels of a job, or some."""
