"""Images for the browser: as they are where it can show them, and small ones with boxes."""

from __future__ import annotations

import io
import os
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw, JpegImagePlugin

from prelabel.pipeline.colors import color_of
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.originals import Originals
from prelabel.pipeline.review.units import Units
from prelabel.schemas.errors import SourceError, one_line

SHOWN_BY_BROWSERS = {"jpeg", "mpo", "png", "webp", "gif", "bmp", "avif"}
THUMBNAILS_KEPT = 2_000
"""Of some 10 to 50 kB."""
UNITS_KEPT = 16
UPRIGHT = dict(
    zip(
        range(2, 9),
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ],
        strict=True,
    )
)
"""EXIF orientation -> what undoes it."""
Thumbnail = tuple[int, int, tuple[int, ...], float]
Row = dict[str, Any]


class Pictures:
    """The images of a job; several threads may ask."""

    def __init__(self, dataset: LabelDataset, units: Units) -> None:
        self._units = units
        self._originals = Originals(dataset)
        self._most_pixels = dataset.record.job.labels.max_image_pixels
        self._decoders = threading.BoundedSemaphore(os.cpu_count() or 1)  # pixels take far more memory than files
        self._boxes = lru_cache(UNITS_KEPT)(self._read_boxes)
        self.thumbnail = lru_cache(THUMBNAILS_KEPT)(self._draw_thumbnail)

    def for_browser(self, row: Row) -> tuple[bytes, str]:
        """An image's bytes, and their media type.

        Args:
            row: of the images table

        Raises:
            SourceError: it is gone, or can't be decoded.
        """
        data = self._read(row)
        kind = row["format"]
        # Browsers turn a JPEG upright by its EXIF data; of other formats not all do.
        if kind in SHOWN_BY_BROWSERS and (row["orientation"] == 1 or kind in ("jpeg", "mpo")):
            return data, f"image/{'jpeg' if kind == 'mpo' else kind}"
        with self._decoders:
            return _encoded(self._decode(row, data), "PNG", compress_level=1), "image/png"

    def _read(self, row: Row) -> bytes:
        if row["status"] != "ok":  # what brought a worker down would do so here
            raise SourceError(f"{row['key']} can't be shown: {row['error_code']}")
        return self._originals.read(row)

    def _decode(self, row: Row, data: bytes) -> Image.Image:
        from prelabel.operators.images import ImageError, decode  # torch takes its time

        try:
            pixels = decode(data, self._most_pixels).pixels
        except ImageError as error:
            raise SourceError(f"{row['key']} can't be shown: {error}") from error
        return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))

    def _draw_thumbnail(self, image_id: int, size: int, categories: tuple[int, ...], min_score: float) -> bytes:
        """A JPEG, upright, no side over `size`, with the boxes of such objects.

        Raises:
            SourceError: the image is gone, or can't be decoded.
        """
        row = self._units.image(image_id)
        data = self._read(row)
        with self._decoders:
            image = self._small(row, data, size)
        pen = ImageDraw.Draw(image)
        for box, category in self._objects(image_id, categories, min_score):
            x, y, width, height = box * ([image.width / row["width"], image.height / row["height"]] * 2)
            pen.rectangle((x, y, x + width, y + height), outline=color_of(category))
        return _encoded(image, "JPEG", quality=80)

    def _small(self, row: Row, data: bytes, size: int) -> Image.Image:
        if row["format"] in ("jpeg", "mpo"):
            return self._draft(row, data, size)
        image = self._decode(row, data)
        image.thumbnail((size, size), Image.Resampling.BILINEAR)
        return image

    def _draft(self, row: Row, data: bytes, size: int) -> Image.Image:
        """A JPEG at an eighth, a quarter or half of its size, decoded without the rest."""
        try:
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
            if image.width * image.height > self._most_pixels:
                raise SourceError(f"{row['key']} can't be shown: it has too many pixels")
            image.draft("RGB", (size, size))
            small = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise SourceError(f"{row['key']} can't be shown: {one_line(error)}") from error
        small.thumbnail((size, size), Image.Resampling.BILINEAR)
        turn = UPRIGHT.get(row["orientation"])
        return small if turn is None else small.transpose(turn)

    def _objects(self, image_id: int, categories: tuple[int, ...], min_score: float) -> list[tuple[np.ndarray, int]]:
        """Boxes (x, y, width, height) and categories of an image's objects, the best last."""
        images, scores, found, boxes = self._boxes(self._units.unit_of(image_id))
        ours = slice(*np.searchsorted(images, [image_id, image_id + 1]))
        wanted = scores[ours] >= min_score
        if categories:
            wanted &= np.isin(found[ours], categories)
        return list(zip(boxes[ours][wanted][::-1], found[ours][wanted].tolist()[::-1], strict=True))

    def _read_boxes(self, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rows = self._units.unit_rows("annotations", unit, ["image_id", "score", "category_id", "bbox"])
        sides = [pc.struct_field(rows["bbox"], side).to_numpy() for side in ("x", "y", "width", "height")]
        images, scores, categories = (rows[name].to_numpy() for name in ("image_id", "score", "category_id"))
        return images, scores, categories, np.stack(sides, 1)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
