"""Which images a network looks at together, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prelabel.operators.images import DecodedImage

Sizes = tuple[tuple[int, int], ...]
"""(height, width) of the input of each network that looks at an image."""
BATCH_SIZE = 8
"""Images of a batch, unless the user says how many."""
PROCESSOR_PIXELS = 500_000
"""Of a network's inputs in a batch on a processor: as far as its caches reach, images share a layer's weights.

Networks of small inputs, such as detectors of 320 pixels and classifiers, label up to 1.3 times as many images in
batches; those of large ones fewer, such as segmenters of 520 pixels, .8 times as many in twos (docs/performance.md).
"""
PENDING_PIXELS = 64 * 2**20
"""Decoded pixels that may wait for others of their input size: 192 MiB."""


def images_at_once(sizes: Sizes, most: int, pixels: float) -> int:
    """How many images of these input sizes make a batch: at least one, at most so many images and pixels."""
    largest = max(height * width for height, width in sizes)
    return max(1, int(min(most, pixels / max(1, largest))))


@dataclass
class Batches:
    """Decoded images on their way into batches of one network input size each.

    A padded neighbour can change a result; so only images that the network sees at the same size meet in a batch.

    Attributes:
        most, pixels: images of a batch, and pixels of a network's inputs, at most
        sizes_of: the input sizes of an image
    """

    most: int
    pixels: float
    sizes_of: Callable[[DecodedImage], Sizes]
    waiting: dict[Sizes, list[tuple[int, DecodedImage]]] = field(default_factory=dict)

    def add(self, position: int, image: DecodedImage) -> list[tuple[int, DecodedImage]]:
        """Takes one image in; returns the batch that is due now, or an empty list."""
        sizes = self.sizes_of(image)
        self.waiting.setdefault(sizes, []).append((position, image))
        if len(self.waiting[sizes]) >= images_at_once(sizes, self.most, self.pixels):
            return self.waiting.pop(sizes)
        if sum(_pixels(batch) for batch in self.waiting.values()) > PENDING_PIXELS:
            return self.waiting.pop(max(self.waiting, key=lambda one: _pixels(self.waiting[one])))
        return []

    def rest(self) -> Iterator[list[tuple[int, DecodedImage]]]:
        """What never filled a batch."""
        yield from self.waiting.values()
        self.waiting.clear()


def _pixels(batch: list[tuple[int, DecodedImage]]) -> int:
    return sum(image.height * image.width for _, image in batch)
