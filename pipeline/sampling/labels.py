"""The labels of the images in a sample, for an export."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np
import pyarrow as pa

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.sampling import Sample
from prelabel.pipeline.selection import Selection
from prelabel.schemas.tables import TABLES


class SampledLabels(Selection):
    """The labels that count, of the images of a sample; only the units that have some are read.

    Images have two columns more: sampling_reason and sampling_weight.
    """

    def __init__(self, dataset: LabelDataset, sample: Sample) -> None:
        self._whole = dataset
        self._image_ids = sample.rows["image_id"].to_numpy()
        self._design = {f"sampling_{name}": sample.rows[name].combine_chunks() for name in ("reason", "weight")}
        narrowed = copy(dataset)
        narrowed.units = _units(dataset, self._image_ids)
        super().__init__(narrowed, sample.score_threshold)

    @property
    def origin(self) -> LabelDataset:
        """The job's labels, all of them."""
        return self._whole

    def gated(self) -> SampledLabels:
        """The same, of `LabelDataset.gated`."""
        gated = copy(self)
        gated._dataset = self._dataset.gated()
        gated._dataset.units = self._dataset.units
        return gated

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """As those of a selection; all columns of images are two more than the table has."""
        asked = columns or TABLES[name].names
        for batch in super().batches(name, [*dict.fromkeys([*asked, "image_id"])]):
            found = batch.filter(np.isin(batch["image_id"].to_numpy(), self._image_ids))
            chosen = found.select(asked)
            if name == "images" and columns is None:
                place = np.searchsorted(self._image_ids, found["image_id"].to_numpy())
                for title, column in self._design.items():
                    chosen = chosen.append_column(title, column.take(pa.array(place)))
            yield chosen


def _units(dataset: LabelDataset, image_ids: np.ndarray) -> list[int]:
    """Those that the images are in."""
    found: set[int] = set()
    for batch in dataset.batches("images", ["image_id", "unit"]):
        found.update(batch["unit"].to_numpy()[np.isin(batch["image_id"].to_numpy(), image_ids)].tolist())
    return sorted(found)
