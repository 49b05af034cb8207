"""Images for the browser: as they are where it can show them, and small ones with boxes."""

from __future__ import annotations

import io
import os
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.originals import Originals
from prelabel.pipeline.pictures import draw_labels
from prelabel.pipeline.review.units import Units
from prelabel.schemas.errors import SourceError

SHOWN_BY_BROWSERS = {"jpeg", "mpo", "png", "webp", "gif", "bmp", "avif"}
THUMBNAILS_KEPT = 2_000
"""Of some 10 to 50 kB."""
UNITS_KEPT = 64

Row = dict[str, Any]


class Pictures:
    """The images of a job; several threads may ask."""

    def __init__(self, dataset: LabelDataset, units: Units) -> None:
        self._units = units
        self._originals = Originals(dataset)
        self._most_pixels = dataset.record.job.labels.max_image_pixels
        self._decoders = threading.BoundedSemaphore(os.cpu_count() or 1)  # pixels take far more memory than files
        self._boxes = lru_cache(UNITS_KEPT)(self._read_boxes)
        self._thumbnail = lru_cache(THUMBNAILS_KEPT)(self._draw_thumbnail)

    def for_browser(self, row: Row) -> tuple[bytes, str]:
        """An image's bytes, and their media type.

        Args:
            row: of the images table

        Raises:
            SourceError: it is gone, or can't be decoded.
        """
        data, kind = self._read(row), row["format"]
        # Browsers turn a JPEG upright by its EXIF data; of other formats not all do.
        if kind in SHOWN_BY_BROWSERS and (row["orientation"] == 1 or kind in ("jpeg", "mpo")):
            return data, f"image/{'jpeg' if kind == 'mpo' else kind}"
        with self._decoders:
            image = draw_labels(data, [], longest=max(row["width"], row["height"]))
            return _encoded(image, "PNG", compress_level=1), "image/png"

    def _read(self, row: Row) -> bytes:
        if row["status"] != "ok":  # what brought a worker down would do so here
            raise SourceError(f"{row['key']} can't be shown: {row['error_code']}")
        if row["width"] * row["height"] > self._most_pixels:
            raise SourceError(f"{row['key']} can't be shown: it has more than {self._most_pixels:,} pixels")
        return self._originals.read(row)

    def thumbnail(self, image_id: int, size: int, categories: tuple[int, ...], min_score: float) -> bytes:
        """A JPEG, upright, no side over `size`, with the boxes of the objects of these categories (none: of all).

        Raises:
            SourceError: the image is gone, or can't be decoded.
        """
        return self._thumbnail(image_id, size, categories, min_score)

    def _draw_thumbnail(self, image_id: int, size: int, categories: tuple[int, ...], min_score: float) -> bytes:
        row = self._units.image(image_id)
        data = self._read(row)
        objects = [
            one
            for one in self._objects(image_id)
            if one["score"] >= min_score and (not categories or one["category_id"] in categories)
        ]
        with self._decoders:
            image = draw_labels(data, objects, longest=min(size, max(row["width"], row["height"])), names=False)
        return _encoded(image, "JPEG", quality=80)

    def _objects(self, image_id: int) -> list[Row]:
        found = self._boxes(self._units.unit_of(image_id))
        start, end = np.searchsorted(found["image_id"].to_numpy(), [image_id, image_id + 1])
        rows: list[Row] = found.slice(start, end - start).to_pylist()
        return rows

    def _read_boxes(self, unit: int) -> pa.Table:
        return self._units.unit_rows("annotations", unit, ["image_id", "category_id", "score", "bbox"])


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
