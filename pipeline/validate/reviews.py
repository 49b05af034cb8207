"""Reviews: what people say of labels. No commit says what they should be, and nobody can make them again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prelabel.pipeline.storage import Storage
from prelabel.pipeline.validate.manifest import check_rewritten
from prelabel.pipeline.validate.parts import read_rows
from prelabel.pipeline.validate.rows import is_null, numbers
from prelabel.pipeline.validate.violations import Validation, Violations, Wrong
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.tables import ROWS_PER_IMAGE, VERDICTS


class Reviewed:
    """The annotations that reviews are about, to be looked for unit by unit."""

    def __init__(self, storage: Storage, images: int, metadata: dict[str, str], found: Validation) -> None:
        self._seen: set[str] = set()
        abouts = [np.zeros((0, 3), np.int64)]
        self._files = [f"reviews/{name}" for name in storage.names("reviews") if name.endswith(".parquet")]
        for number, file in enumerate(self._files):
            rows = self._read(storage, file, metadata, found)
            if rows is not None:
                found.rows["reviews"] += len(rows)
                abouts.append(self._check(rows, number, images, found.violations))
        about = np.concatenate(abouts)
        self._about = about[np.argsort(about[:, 0], kind="stable")]  # annotation_id, file, row

    def _read(self, storage: Storage, file: str, metadata: dict[str, str], found: Validation) -> pa.Table | None:
        data = storage.read(file)
        rows, wrong = read_rows(data, "reviews", metadata, None, file, found.violations)
        if wrong is not None:
            found.violations.add("review", wrong, file=file)
        if rows is not None:
            check_rewritten(data, to_parquet(rows, metadata), "review", file, found)
        return rows

    def _check(self, rows: pa.Table, number: int, images: int, violations: Violations) -> np.ndarray:
        image_ids, ids = numbers(rows["image_id"]), numbers(rows["annotation_id"], -1)
        about_object = ~is_null(rows["annotation_id"])
        verdicts = pc.is_in(rows["verdict"].cast(pa.string()), pa.array([*VERDICTS, None])).to_numpy()
        review_ids = rows["review_id"].to_pylist()
        again = np.array([self._is_there_before(one) for one in review_ids], bool)
        planned = (image_ids >= 0) & (image_ids < images)
        elsewhere = about_object & (ids // ROWS_PER_IMAGE != image_ids)
        for wrong in (
            Wrong("review", ~planned, lambda row: f"there is no image {image_ids[row]}"),
            Wrong("review", elsewhere, lambda row: f"annotation {ids[row]} is not of image {image_ids[row]}"),
            Wrong("review", ~verdicts, lambda row: f"verdict {rows['verdict'][row].as_py()!r}"),
            Wrong("review", again, lambda row: f"review_id {review_ids[row]} is there before"),
        ):
            violations.add_rows(wrong, None, self._files[number])
        some = np.flatnonzero(about_object & planned & ~elsewhere)
        return np.stack([ids[some], np.full(len(some), number), some], axis=1)

    def _is_there_before(self, review_id: str) -> bool:
        known = len(self._seen)
        self._seen.add(review_id)
        return len(self._seen) == known

    def check(self, image_ids: np.ndarray, annotations: pa.Table | None, violations: Violations) -> None:
        """Whether the annotations of a unit that reviews are about exist."""
        begin, end = np.searchsorted(
            self._about[:, 0], [image_ids[0] * ROWS_PER_IMAGE, (image_ids[-1] + 1) * ROWS_PER_IMAGE]
        )
        about = self._about[begin:end]
        existing = np.zeros(0, np.int64) if annotations is None else numbers(annotations["annotation_id"])
        for annotation_id, file, row in about[~np.isin(about[:, 0], existing)].tolist():
            violations.add("review", f"there is no annotation {annotation_id}", file=self._files[file], row=row)
