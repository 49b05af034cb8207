"""A unit's images in, a unit's tables out: decode ahead on threads, batch by input size, predict, make rows.

Whatever the sizes of the images, pixels take no more memory than this: 16 bytes for each that is decoded ahead (Pillow
makes copies), for AHEAD_PIXELS or one larger image; and 3 bytes for each that waits for a batch or is in one, for twice
PENDING_PIXELS of batches.py and one larger image. That is 1.6 GiB for images up to 64 megapixels, and 2.2 GiB where
there are some of 100 megapixels. The encoded bytes of the unit come on top, and whatever the models need for a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import torch

from prelabel.operators.base import Answer, ImageInfo, Model, Operator, Proposals, Task
from prelabel.operators.batches import Batches, Sizes
from prelabel.operators.images import DecodedImage, ImageError, decode, pixels_in
from prelabel.operators.threads import map_ahead
from prelabel.operators.watchdog import Watchdog, turns_for
from prelabel.schemas.tables import IMAGES, empty_table

AHEAD_PIXELS = 64 * 2**20
"""Pixels of the images that are decoded ahead."""
TOO_LARGE = {
    "status": "failed",
    "error_code": "too_large",
    "error": "the accelerator's memory ran out on this image alone",
}
R = TypeVar("R")
Seconds = defaultdict[str, float]
"""What took how long."""
_Row = tuple[int, pa.Scalar, pa.Scalar, dict[str, Any]]
"""image_id, bytes, error_code, and what is known already."""


def timed(seconds: Seconds, what: str, function: Callable[..., R], *arguments: object) -> R:
    """Calls the function and adds the wall seconds that it took, also where it raises."""
    began = perf_counter()
    try:
        return function(*arguments)
    finally:
        seconds[what] += perf_counter() - began


class Asked(NamedTuple):
    """A model, what is asked of it, and the job's id for each of its categories."""

    model: Model
    tasks: frozenset[Task]
    category_ids: Mapping[int, int]


@dataclass(frozen=True)
class Findings:
    """What is known of a unit's images, in its order; several pools of workers may add to it in turn.

    Attributes:
        facts: columns of each image's row
        answers: what each model said of it, in the order they were asked; none of an image that failed
        seconds: what took how long: "predict NAME" of each model, "wait" until there were images for it, and "decode",
            which is the sum over the threads that decode meanwhile
    """

    facts: list[dict[str, Any]]
    answers: list[list[Answer]]
    seconds: Seconds = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def nothing(cls, images: int) -> Findings:
        """Before any model was asked."""
        return cls([{} for _ in range(images)], [[] for _ in range(images)])


class Advance(NamedTuple):
    """What a batch came to.

    Attributes:
        images: how many it held; failed: of those
        seconds: that each model took for it, by name
    """

    images: int
    failed: int
    seconds: dict[str, float]


class Labeler:
    """Asks models about images, unit by unit.

    Args:
        asked: the models, which see each image in turn; it is decoded once
        batch_size: most images a forward pass
        batch_pixels: and most pixels of a network's inputs in it
        max_pixels: an image with more is refused before it is decoded
        threads: decode so many images at once
        progress: is told after each batch what it came to
        watchdog: ends the process when an image takes too long; None: it may
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        *,
        batch_size: int,
        max_pixels: int,
        threads: int,
        batch_pixels: float = math.inf,
        progress: Callable[[Advance], object] = id,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.asked = asked
        self.batch_size = batch_size
        self.batch_pixels = batch_pixels
        self.max_pixels = max_pixels
        self.threads = threads
        self.progress = progress
        self.watchdog = watchdog

    def look(self, unit: pa.Table, before: Findings | None = None) -> Findings:
        """What the models say of a unit's images, added to what others said before.

        Args:
            unit: image_id, key, uri, bytes, error_code, error, shard, unit; bytes null where an error_code is set
            before: by another labeler, whose models come first in the job
        """
        findings = before or Findings.nothing(len(unit))
        image_ids = unit["image_id"].to_pylist()
        batches = self._batches(unit, image_ids, findings)
        while batch := timed(findings.seconds, "wait", next, batches, None):
            self._look_at(batch, [image_ids[position] for position, _ in batch], findings)
            batch.clear()  # the memory is needed for the next one
        return findings

    def _look_at(self, batch: list[tuple[int, DecodedImage]], image_ids: list[int], findings: Findings) -> None:
        seconds: Seconds = defaultdict(float)
        pixels, said = [image.pixels for _, image in batch], [findings.answers[one] for one, _ in batch]
        with self._watching(image_ids, turns_for([image.height * image.width for _, image in batch])):
            answers = self._ask(pixels, said, seconds)
        for (position, _), one in zip(batch, answers, strict=True):
            findings.answers[position] = one or []
            findings.facts[position] |= {} if one else TOO_LARGE
        for model, took in seconds.items():
            findings.seconds[f"predict {model}"] += took
        self.progress(Advance(len(batch), answers.count(None), seconds))

    def _watching(self, image_ids: list[int], turns: int = 1) -> AbstractContextManager[None]:
        return self.watchdog.watching(image_ids, turns) if self.watchdog else nullcontext()

    def _batches(
        self, unit: pa.Table, image_ids: list[int], findings: Findings
    ) -> Iterator[list[tuple[int, DecodedImage]]]:
        batches = Batches(self.batch_size, self.batch_pixels, self._input_sizes)
        rows = zip(image_ids, unit["bytes"], unit["error_code"], findings.facts, strict=True)
        decoded = map_ahead(self._decode_timed, rows, self.threads, self.threads, self._pixels_in, AHEAD_PIXELS)
        for position, (what, image, seconds) in enumerate(decoded):
            findings.facts[position].update(what)
            findings.seconds["decode"] += seconds
            if image is None:
                self.progress(Advance(1, 1, {}))
            elif due := batches.add(position, image):
                yield due
        yield from batches.rest()

    def _input_sizes(self, image: DecodedImage) -> Sizes:
        return tuple(one.model.input_size(image.height, image.width) for one in self.asked)

    def _pixels_in(self, row: _Row) -> int:
        image_id, data, error_code, _ = row
        if error_code.is_valid:
            return 0
        with self._watching([image_id]):
            count = pixels_in(data.as_py())
        return count if count <= self.max_pixels else 0

    def _decode(self, row: _Row) -> tuple[dict[str, Any], DecodedImage | None]:
        image_id, data, error_code, known = row
        if error_code.is_valid or known.get("status") == "failed":
            return {"status": "failed"}, None
        encoded = data.as_py()
        facts = {"num_bytes": len(encoded), "digest": hashlib.sha256(encoded).hexdigest()}
        try:
            with self._watching([image_id]):
                image = decode(encoded, self.max_pixels)
        except ImageError as error:
            return facts | {"status": "failed", "error_code": error.code, "error": str(error)}, None
        names = ("width", "height", "orientation", "format")
        return facts | {"status": "ok"} | {name: getattr(image, name) for name in names}, image

    def _decode_timed(self, row: _Row) -> tuple[dict[str, Any], DecodedImage | None, float]:
        began = perf_counter()
        return *self._decode(row), perf_counter() - began

    def _ask(
        self, images: list[torch.Tensor], before: list[list[Answer]], seconds: Seconds
    ) -> list[list[Answer] | None]:
        """All answers in order; None for an image on which alone the accelerator runs out of memory."""
        try:
            return list(self._answers(images, before, seconds))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
        if len(images) == 1:
            return [None]
        half = len(images) // 2
        return self._ask(images[:half], before[:half], seconds) + self._ask(images[half:], before[half:], seconds)

    def _answers(self, images: list[torch.Tensor], before: list[list[Answer]], seconds: Seconds) -> list[list[Answer]]:
        answers = [list(one) for one in before]
        for model, tasks, category_ids in self.asked:
            regions = ([proposals_of(one) for one in answers],) if model.takes_regions else ()
            predictions = timed(seconds, model.name, model.predict, images, tasks, *regions)
            for one, prediction in zip(answers, predictions, strict=True):
                one.append(Answer(model.name, prediction.renumbered(category_ids)))
        return answers


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's allocator said so, or torch's own for the processor, which has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def proposals_of(answers: Sequence[Answer]) -> Proposals:
    """What the last model that was asked for regions proposed."""
    return next(answer.proposals for _, answer in reversed(answers) if answer.proposals is not None)


def make_tables(unit: pa.Table, findings: Findings, operators: Sequence[Operator]) -> dict[str, pa.Table]:
    """The tables of one unit, rows in its order: `images` with one row for each, and those of the operators."""
    parts: dict[str, list[pa.Table]] = {one.table: [empty_table(one.table)] for one in operators}
    known = {
        name: unit[name].to_pylist() for name in ("image_id", "key", "uri", "shard", "unit", "error_code", "error")
    }
    images = []
    for position, (facts, answers) in enumerate(zip(findings.facts, findings.answers, strict=True)):
        row = {name: column[position] for name, column in known.items()} | facts | {"num_annotations": 0}
        for operator in operators if answers else ():
            found = operator.rows(ImageInfo(row["image_id"], row["height"], row["width"]), answers)
            if operator.table == "images":
                row |= found.to_pylist()[0]
                continue
            parts[operator.table].append(found)
            if operator.table == "annotations":
                row["num_annotations"] = len(found)
        images.append(row)
    tables = {name: pa.concat_tables(some) for name, some in parts.items()}
    return tables | {"images": pa.Table.from_pylist(images, schema=IMAGES)}
