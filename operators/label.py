"""A unit's images in, a unit's tables out: decode ahead on threads, batch by input size, predict, make rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from prelabel.operators.base import ImageInfo, Model, Operator, Prediction, Task
from prelabel.operators.images import DecodedImage, ImageError, decode
from prelabel.operators.threads import map_ahead
from prelabel.schemas.tables import IMAGES, empty_table

PENDING_PIXELS = 64 * 2**20
"""Decoded pixels that may wait for others of their input size: 192 MiB."""
TOO_LARGE = {
    "status": "failed",
    "error_code": "too_large",
    "error": "the accelerator's memory ran out on this image alone",
}


@dataclass
class Batches:
    """Decoded images on their way into batches of one network input size each.

    A padded neighbour can change a result; so only images that the network sees at the same size meet in a batch.
    """

    size: int
    key: Callable[[DecodedImage], Any]
    waiting: dict[Any, list[tuple[int, DecodedImage]]] = field(default_factory=dict)

    def add(self, position: int, image: DecodedImage) -> list[tuple[int, DecodedImage]]:
        """Takes one image in; returns the batch that is due now, or an empty list."""
        key = self.key(image)
        self.waiting.setdefault(key, []).append((position, image))
        if len(self.waiting[key]) >= self.size:
            return self.waiting.pop(key)
        if sum(_pixels(batch) for batch in self.waiting.values()) > PENDING_PIXELS:
            return self.waiting.pop(max(self.waiting, key=lambda one: _pixels(self.waiting[one])))
        return []

    def rest(self) -> Iterator[list[tuple[int, DecodedImage]]]:
        """What never filled a batch."""
        yield from self.waiting.values()
        self.waiting.clear()


def _pixels(batch: list[tuple[int, DecodedImage]]) -> int:
    return sum(image.height * image.width for _, image in batch)


class Labeler:
    """Runs operators over one model, unit by unit.

    Args:
        model: predicts
        operators: turn its predictions into rows
        batch_size: most images a forward pass
        max_pixels: an image with more is refused before it is decoded
        threads: decode so many images at once
        progress: is told after each batch how many images it held
    """

    def __init__(
        self,
        model: Model,
        operators: Sequence[Operator],
        *,
        batch_size: int,
        max_pixels: int,
        threads: int,
        progress: Callable[[int], object] = int,
    ) -> None:
        self.model = model
        self.operators = operators
        self.tasks: frozenset[Task] = frozenset(operator.task for operator in operators)
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.threads = threads
        self.progress = progress

    def label(self, unit: pa.Table) -> dict[str, pa.Table]:
        """The tables of one unit, rows in its order.

        Args:
            unit: image_id, key, uri, bytes, error_code, error, shard, unit; bytes null where an error_code is set

        Returns:
            `images` with one row for each of the unit's, and the tables of the operators.
        """
        facts: list[dict[str, Any]] = [{} for _ in range(len(unit))]
        tables: dict[str, list[pa.Table]] = {
            operator.table: [empty_table(operator.table)] * len(unit) for operator in self.operators
        }
        image_ids = unit["image_id"].to_pylist()
        for batch in self._batches(unit, facts):
            predictions = self._predict([image.pixels for _, image in batch])
            for (position, image), prediction in zip(batch, predictions, strict=True):
                if prediction is None:
                    facts[position] |= TOO_LARGE
                    continue
                info = ImageInfo(image_ids[position], image.height, image.width)
                for operator in self.operators:
                    tables[operator.table][position] = operator.rows(info, prediction, self.model)
            self.progress(len(batch))
        found = [len(rows) for rows in tables.get("annotations", [()] * len(unit))]
        joined = {name: pa.concat_tables([empty_table(name), *parts]) for name, parts in tables.items()}
        return {"images": _image_rows(unit, facts, found)} | joined

    def _batches(self, unit: pa.Table, facts: list[dict[str, Any]]) -> Iterator[list[tuple[int, DecodedImage]]]:
        batches = Batches(self.batch_size, lambda image: self.model.input_size(image.height, image.width))
        rows = zip(unit["bytes"], unit["error_code"], strict=True)
        decoded = map_ahead(self._decode, rows, self.threads, ahead=self.threads)
        for position, (what, image) in enumerate(decoded):
            facts[position] |= what
            if image is None:
                self.progress(1)
            elif due := batches.add(position, image):
                yield due
        yield from batches.rest()

    def _decode(self, row: tuple[pa.Scalar, pa.Scalar]) -> tuple[dict[str, Any], DecodedImage | None]:
        data, error_code = row
        if error_code.is_valid:
            return {"status": "failed"}, None
        encoded = data.as_py()
        facts = {"num_bytes": len(encoded), "digest": hashlib.sha256(encoded).hexdigest()}
        try:
            image = decode(encoded, self.max_pixels)
        except ImageError as error:
            return facts | {"status": "failed", "error_code": error.code, "error": str(error)}, None
        names = ("width", "height", "orientation", "format")
        return facts | {"status": "ok"} | {name: getattr(image, name) for name in names}, image

    def _predict(self, images: list[torch.Tensor]) -> list[Prediction | None]:
        """Predictions in order; None for an image on which alone the accelerator runs out of memory."""
        try:
            return list(self.model.predict(images, self.tasks))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(images) == 1:
            return [None]
        half = len(images) // 2
        return self._predict(images[:half]) + self._predict(images[half:])


def _image_rows(unit: pa.Table, facts: list[dict[str, Any]], found: list[int]) -> pa.Table:
    known = {
        name: unit[name].to_pylist() for name in ("image_id", "key", "uri", "shard", "unit", "error_code", "error")
    }
    rows = [
        {name: column[position] for name, column in known.items()}
        | facts[position]
        | {"num_annotations": found[position]}
        for position in range(len(unit))
    ]
    return pa.Table.from_pylist(rows, schema=IMAGES)
