"""Images with their labels drawn."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.originals import Originals
from prelabel.pipeline.pictures import draw_labels, draw_segments
from prelabel.pipeline.report.blocks import Gallery, Picture, Section, listed, shown
from prelabel.pipeline.report.choices import Drawn, Group
from prelabel.pipeline.report.figures import Figures, Row
from prelabel.schemas.errors import PrelabelError

BYTES = 5_000_000
"""Of all pictures together, before base64 adds a third."""
TRIES = ((512, 80), (512, 55), (384, 50), (256, 45), (160, 40), (96, 30))
"""Longest side in pixels, and WebP's quality, until a picture fits into its share."""
MOST_DRAWN = 200
ROWS = "SELECT image_id, key, unit, digest, width, height FROM images WHERE list_contains(?, image_id)"


def gallery_section(
    dataset: LabelDataset, figures: Figures, groups: Sequence[Group], drawn: Drawn | None, names: Mapping[int, str]
) -> Section:
    """The groups' images, read again from where they are."""
    chosen = [image for group in groups for image in group.images]
    rows = {row["image_id"]: row for row in figures.rows(ROWS, chosen)}
    camera = Camera(dataset, drawn, names, BYTES // max(1, len(chosen)))
    blocks = [
        Gallery(group.title, group.says, [camera.picture(rows[image], says) for image, says in group.images.items()])
        for group in groups
    ]
    return Section("gallery", "Gallery", blocks)


class Camera:
    """Takes pictures of at most so many bytes each."""

    def __init__(self, dataset: LabelDataset, drawn: Drawn | None, names: Mapping[int, str], most: int) -> None:
        self._dataset, self._drawn, self._names, self._most = dataset, drawn, names, most
        self._originals = Originals(dataset)

    def picture(self, image: Row, says: str) -> Picture:
        """An image with its labels, or what is the trouble with it."""
        labels = self._labels(image["image_id"])
        facts = [
            fact for fact in (says, f"{image['width']:,} × {image['height']:,} pixels", self._summary(labels)) if fact
        ]
        name = shown(image["key"])
        try:
            data, size = self._encoded(self._originals.read(image), labels)
        except PrelabelError as error:
            return Picture(name, facts, trouble=shown(str(error), 300))
        return Picture(name, facts, data, size)

    def _labels(self, image_id: int) -> list[dict[str, Any]]:
        if not self._drawn:
            return []
        if self._drawn.kind == "annotations":
            rows = self._dataset.rows("annotations", image_id).to_pylist()
            return [row for row in rows if row["score"] >= self._drawn.lowest]
        return [row for row in self._dataset.rows("segments", image_id).to_pylist() if row["kind"] == self._drawn.kind]

    def _summary(self, labels: Sequence[Row]) -> str:
        """How many of what."""
        if not self._drawn:
            return ""
        counts = Counter(self._names.get(row["category_id"], str(row["category_id"])) for row in labels)
        more = f"; the first {MOST_DRAWN} are drawn" if len(labels) > MOST_DRAWN else ""
        return (listed([f"{count} {name}" for name, count in counts.most_common()]) or "no labels") + more

    def _encoded(self, original: bytes, labels: Sequence[Row]) -> tuple[str, tuple[int, int]]:
        """A data URI, and the picture's width and height."""
        some = list(labels[:MOST_DRAWN])
        if self._drawn and self._drawn.kind != "annotations":
            draw = partial(draw_segments, original, some)
        else:
            draw = partial(draw_labels, original, some, categories=self._dataset.categories)
        tries = _smaller(draw)
        size, data = next(tries)
        while len(data) > self._most and (smaller := next(tries, None)):
            size, data = smaller
        return f"data:image/webp;base64,{base64.b64encode(data).decode()}", size


def _smaller(draw: Callable[..., Image.Image]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """A picture's width and height, and its WebP file, each time smaller."""
    for longest, quality in TRIES:
        picture = draw(longest=longest)
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality)
        yield picture.size, file.getvalue()
