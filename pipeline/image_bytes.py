"""Images' own bytes in the order of their rows, for exports that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from prelabel.operators.threads import map_ahead
from prelabel.pipeline.image_files import ImageFiles, Row
from prelabel.pipeline.originals import Originals
from prelabel.pipeline.selection import Labels
from prelabel.schemas.errors import SourceError, UserError

THREADS = 16
AHEAD_BYTES = 64 * 2**20
T = TypeVar("T")


def check_not_linked(images: str, what: str) -> None:
    """Raises UserError where images are to be linked: a file that holds them can't."""
    if images == "link":
        raise UserError(f"--images link: {what} can't hold links: --images copy")


def with_bytes(
    labeled: Iterable[tuple[Row, T]], dataset: Labels, files: ImageFiles
) -> Iterator[tuple[Row, T, bytes | None]]:
    """Adds the encoded bytes to each image's row and labels, where they are asked for; several are read at a time.

    They are None where nobody asked, or the image can't be read, which `files.notes` will say.
    """
    if not files.are_put:
        yield from ((image, labels, None) for image, labels in labeled)
        return
    originals = Originals(dataset.origin)

    def read(one: tuple[Row, T]) -> tuple[Row, T, bytes | SourceError]:
        image, labels = one
        try:
            return image, labels, originals.read(image)
        except SourceError as error:
            return image, labels, error

    def size(one: tuple[Row, T]) -> int:
        return int(one[0]["num_bytes"] or 0)

    for image, labels, data in map_ahead(read, labeled, THREADS, 2 * THREADS, size, AHEAD_BYTES):
        if isinstance(data, SourceError):
            files.tell(data)
            yield image, labels, None
        else:
            files.tell(None)
            yield image, labels, data
    files.check_any()
