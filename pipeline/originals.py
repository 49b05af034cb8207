"""The images that a job labeled, read again from where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import source_options
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import Unit
from prelabel.schemas.errors import JobError, SourceError

UNITS_KEPT = 64


class Originals:
    """The images behind a job's rows, one at a time; several threads may ask."""

    def __init__(self, dataset: LabelDataset) -> None:
        self._options = source_options(dataset.record.job.labels)
        self._unit = lru_cache(UNITS_KEPT)(Manifest(dataset.storage).unit)

    def read(self, image: Mapping[str, Any]) -> bytes:
        """The encoded bytes of an image.

        Args:
            image: its row of the images table: image_id, key, unit and digest

        Raises:
            SourceError: it is gone, or not the one that was labeled.
        """
        try:
            unit = _alone(self._unit(image["unit"]), image["image_id"])
            found = source_of_kind(unit.shard.kind, unit.shard.uri, self._options).read(unit)
        except (OSError, JobError) as error:  # JobError: of the plan
            raise SourceError(f"{image['key']} can't be read for now: {error}") from error
        data, reason = found["bytes"][0].as_py(), found["error"][0].as_py()
        if data is None:
            raise SourceError(f"{image['key']} can't be read: {reason}")
        if image["digest"] and hashlib.sha256(data).hexdigest() != image["digest"]:
            raise SourceError(f"{image['key']} is not the image that was labeled: its bytes have changed")
        return bytes(data)


def _alone(unit: Unit, image_id: int) -> Unit:
    """The unit as if it held that image and no other; its shard may have been copied, for the digest tells."""
    place = image_id - unit.first_image_id
    one = slice(place, place + 1)
    return Unit(
        unit.number,
        replace(unit.shard, version=None),
        image_id,
        unit.keys[one],
        np.array(unit.offsets[one]),
        np.array(unit.sizes[one]),
    )
