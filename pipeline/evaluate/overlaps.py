"""Which pixels of an image's panoptic truth lie in which of our segments."""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from prelabel.pipeline.evaluate.truth import Truth
from prelabel.pipeline.storage import read_input
from prelabel.schemas import rle
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

VOID = 0
Overlaps = Counter[tuple[int, int]]
"""(the truth's segment id, the number of ours) -> pixels. Ours are numbered from 1; VOID is none of either."""

_COMPARED_PIXELS = 2**20
"""As many are compared at a time, however large the image is."""


def count_overlaps(colors: np.ndarray, masks: Sequence[Rle]) -> Overlaps:
    """Counts the pixels of each pair of segments.

    Args:
        colors: uint8 (H, W, 3): a segment's id is R + 256 G + 65536 B
        masks: of our segments; where some overlap, the last one has the pixel
    """
    height, width = colors.shape[:2]
    ours = np.zeros((height, width), np.int32, order="F")  # as masks are decoded
    for number, mask in enumerate(masks, start=1):
        ours[rle.decode(mask)] = number
    counts: Overlaps = Counter()
    step = max(1, _COMPARED_PIXELS // width)
    for rows in (slice(top, top + step) for top in range(0, height, step)):
        theirs = colors[rows] @ np.array([1, 256, 256**2], np.int64)
        pairs, areas = np.unique(theirs * (len(masks) + 1) + ours[rows], return_counts=True)
        for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True):
            counts[divmod(pair, len(masks) + 1)] += area
    return counts


def check_segments(overlaps: Overlaps, annotation: dict[str, Any], truth: Truth) -> None:
    """Raises a UserError where a PNG has none of the segments that the document says are in it."""
    ids = {segment["id"] for segment in annotation["segments_info"]}
    if ids and ids.isdisjoint(segment_id for segment_id, _ in overlaps):
        name = annotation["file_name"]
        raise UserError(f"--truth {truth.url}: {name} has none of its segments: a color is id = R + 256 G + 65536 B")


def read_png(truth: Truth, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3). A header that says another size is refused before anything is decoded."""
    name = annotation["file_name"]
    if posixpath.isabs(name) or ".." in name.split("/"):
        raise UserError(f"--truth {truth.url}: file_name {name!r} leads out of the folder of the PNGs: name one in it")
    places = [truth.url.removesuffix(".json"), posixpath.join(posixpath.dirname(truth.url), "panoptic")]
    data = None
    for place in places:
        with suppress(UserError):
            data = data or read_input(posixpath.join(place, name), "--truth")
    if data is None:
        raise UserError(f"--truth {truth.url}: no {name} can be read in {places[0]} or {places[1]}: put it there")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (size[1], size[0]):
                raise ValueError(f"{image.width} x {image.height} pixels, the image has {size[1]} x {size[0]}")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow has many kinds for a damaged file
        reason = " ".join(str(error).split())
        raise UserError(f"--truth {truth.url}: {name} is not the image's PNG ({reason}): put the right one") from error
