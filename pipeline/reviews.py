"""What people say of labels: rows of `reviews`, beside the job's own tables and never changed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import pyarrow as pa

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.storage import reaching
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.tables import REVIEWS, file_metadata


@dataclass(frozen=True)
class Review:
    """What somebody says of an image, or of one of its objects.

    Attributes:
        image_id: the image
        annotation_id: the object; None: the image as a whole
        verdict: one of VERDICTS; None: an earlier one is taken back
        note: in words
    """

    image_id: int
    annotation_id: int | None = None
    verdict: str | None = None
    note: str | None = None


def write_reviews(dataset: LabelDataset, reviewer: str, reviews: Sequence[Review]) -> tuple[str, pa.Table]:
    """Adds a part to the reviews table, and returns its name and rows; what others write at the same time stays.

    Raises:
        JobError: nothing can be written there.
    """
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    rows = [
        asdict(review) | {"review_id": uuid.uuid4().hex, "reviewer": reviewer, "reviewed_at": now} for review in reviews
    ]
    categories = dataset.categories.to_json()
    table = pa.Table.from_pylist(rows, schema=REVIEWS)
    data = to_parquet(table, file_metadata(dataset.record.fingerprint, categories))
    part = f"reviews/part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
    with reaching(f"write to {dataset.url}"):
        dataset.storage.put(part, data)
    return part, table
