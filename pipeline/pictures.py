"""Labels drawn on their images, to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from prelabel.pipeline.colors import color_of
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import SourceError, one_line

SCALE = 2
"""Pictures are drawn larger than the images, so that an outline is finer than a pixel,"""
LONGEST = 4096
"""but no side gets longer than this by itself."""
LONGEST_NAME = 40
MAX_PIXELS = 178_956_970
PLAIN = {b"\xff\xd8\xff": JpegImageFile, b"\x89PNG\r\n\x1a\n": PngImageFile}
"""How the files begin that Pillow can often show as the models saw them, without loading torch."""
DOT = 2

Row = dict[str, Any]


def draw_labels(
    encoded: bytes,
    annotations: Sequence[Row],
    *,
    longest: int | None = None,
    categories: CategorySet | None = None,
    names: bool = True,
) -> Image.Image:
    """The upright image with each annotation's mask tinted and outlined, its box, keypoints and name.

    Args:
        encoded: the image file's bytes
        annotations: rows of the annotations table, or of the proposals table
        longest: side of the picture, in pixels; None: twice the image's, at most 4,096
        categories: whose skeletons join the keypoints
        names: whether categories and scores are written at the boxes

    Raises:
        SourceError: the bytes are no image that can be decoded.
    """
    picture, scale = _picture(encoded, longest)
    for annotation in reversed(annotations):
        if annotation.get("segmentation") is not None:
            _tint(picture, annotation)
    pen = ImageDraw.Draw(picture)
    for annotation in reversed(annotations):
        _box(pen, annotation, scale)
        if annotation.get("keypoints"):
            known = categories is not None and annotation["category_id"] in categories
            _pose(pen, annotation, scale, categories[annotation["category_id"]] if categories and known else None)
        if names:
            _name(pen, annotation, scale)
    return picture


def draw_segments(
    encoded: bytes, segments: Sequence[Row], *, longest: int | None = None, names: bool = True
) -> Image.Image:
    """The upright image with each panoptic segment filled with its color and outlined; void stays.

    Args:
        encoded: the image file's bytes
        segments: rows of the segments table, no pixel in two of them
        longest, names: as for `draw_labels`

    Raises:
        SourceError: the bytes are no image that can be decoded.
    """
    picture, scale = _picture(encoded, longest)
    pen = ImageDraw.Draw(picture)
    for segment in segments:
        _tint(picture, segment, inside=150)
    for segment in segments if names else ():
        x, y, width, height = _sides(segment, scale)
        _write(pen, (x + width / 2, y + height / 2), segment["category"], _color(segment), anchor="mm")
    return picture


def _picture(encoded: bytes, longest: int | None) -> tuple[Image.Image, float]:
    """The upright image in the picture's size, and how many of its pixels are one of the image's."""
    try:
        image = _opened(encoded)
        largest = max(image.size)
        scale = (longest or min(SCALE * largest, LONGEST)) / largest
        width, height = (max(1, round(side * scale)) for side in image.size)
        _, box = image.draft(None, (width, height)) or (None, None)  # JPEG decodes to an eighth at no cost
        picture = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3)
        return _upright(picture), scale
    except Exception as error:  # on malformed files decoders raise anything
        raise SourceError(f"the image can't be drawn: {one_line(error)}") from error


def _opened(encoded: bytes) -> Image.Image:
    """The image as the models saw it, not decoded yet where Pillow alone does that alike."""
    for begin, kind in PLAIN.items():
        if encoded.startswith(begin):
            with suppress(Exception):  # `decode` says in plain words what is wrong
                image = kind(io.BytesIO(encoded))
                plain = image.mode in ("1", "L", "P", "RGB", "CMYK") and not image.has_transparency_data
                if plain and image.width * image.height <= MAX_PIXELS:
                    return image
    from prelabel.operators.images import decode

    return Image.fromarray(decode(encoded, MAX_PIXELS).pixels.permute(1, 2, 0).numpy())


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001  what a camera wrote badly costs no image
        return picture


def _color(row: Row) -> tuple[int, int, int]:
    return color_of(row.get("category_id", 0))


def _sides(row: Row, scale: float) -> tuple[float, float, float, float]:
    x, y, width, height = (row["bbox"][side] * scale for side in ("x", "y", "width", "height"))
    return x, y, width, height


def _tint(picture: Image.Image, row: Row, inside: int = 70) -> None:
    mask, left, top = _mask(rle.Rle.from_coco(row["segmentation"]), picture.size)
    around = np.pad(mask, 1)
    inner = mask & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    opacity = np.where(inner, inside, np.where(mask, 255, 0)).astype(np.uint8)
    picture.paste(_color(row), (left, top, left + mask.shape[1], top + mask.shape[0]), Image.fromarray(opacity))


def _mask(runs: rle.Rle, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """The part of a picture that holds a mask, bool, and its left and top there: each pixel is the mask's under it.

    Args:
        runs: the mask
        size: width and height of the picture
    """
    x, y, width, height = rle.bbox(runs)
    own = rle.decode(rle.place(runs, (height, width), -y, -x)) if width else np.zeros((0, 0), bool)
    columns = _under(size[0], runs.size[1]) - x
    rows = _under(size[1], runs.size[0]) - y
    columns_in, rows_in = (np.flatnonzero((a >= 0) & (a < n)) for a, n in ((columns, width), (rows, height)))
    left, top = (int(a[0]) if len(a) else 0 for a in (columns_in, rows_in))
    return own[rows[rows_in]][:, columns[columns_in]], left, top


def _under(places: int, pixels: int) -> np.ndarray:
    """Which of a row of pixels is in the middle of each of as many places along it."""
    return (2 * np.arange(places) + 1) * pixels // (2 * places)


def _box(pen: ImageDraw.ImageDraw, row: Row, scale: float) -> None:
    x, y, width, height = _sides(row, scale)
    pen.rectangle((x, y, x + width, y + height), outline=_color(row))


def _name(pen: ImageDraw.ImageDraw, row: Row, scale: float) -> None:
    x, y, *_ = _sides(row, scale)
    _write(pen, (x + 2, y + 1), f"{row.get('category', '')[:LONGEST_NAME]} {row['score']:.2f}", _color(row))


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int], anchor: str = "la"
) -> None:
    shown = one_line(text)[: LONGEST_NAME + 5]
    pen.rectangle(pen.textbbox(place, shown, anchor=anchor), fill=(0, 0, 0))
    pen.text(place, shown, fill=color, anchor=anchor)


def _pose(pen: ImageDraw.ImageDraw, row: Row, scale: float, category: Category | None) -> None:
    """Placed keypoints, hollow where they are hidden, and the lines of the skeleton between them."""
    values = row["keypoints"]
    places = [(x * scale, y * scale, seen) for x, y, seen in zip(values[::3], values[1::3], values[2::3], strict=True)]
    for one, other in (category and category.skeleton) or ():
        (x, y, seen), (to_x, to_y, also_seen) = places[one - 1], places[other - 1]
        if seen and also_seen:
            pen.line((x, y, to_x, to_y), fill=_color(row))
    for x, y, seen in places:
        if seen:
            pen.circle((x, y), DOT, fill=(255, 255, 255) if seen > 1 else None, outline=_color(row))
