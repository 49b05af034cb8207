"""Labels drawn on their images, to look at."""

from __future__ import annotations

import colorsys
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from pycocotools import mask as coco_mask

SCALE = 2
"""Pictures are drawn larger than the images, so that an outline is finer than a pixel."""


def draw_labels(encoded: bytes, annotations: list[dict[str, Any]]) -> Image.Image:
    """The upright image, twice its size, with each annotation's mask tinted and outlined, its box and its name.

    Args:
        encoded: the image file's bytes
        annotations: rows of the annotations table
    """
    picture = _enlarged(encoded)
    for annotation in reversed(annotations):
        if annotation["segmentation"] is not None:
            _tint(picture, annotation)
    pen = ImageDraw.Draw(picture)
    for annotation in reversed(annotations):
        _name(pen, annotation)
    return picture


def draw_segments(encoded: bytes, segments: list[dict[str, Any]]) -> Image.Image:
    """The upright image, twice its size, with each panoptic segment filled with its color and outlined; void stays.

    Args:
        encoded: the image file's bytes
        segments: rows of the segments table, no pixel in two of them
    """
    picture = _enlarged(encoded)
    pen = ImageDraw.Draw(picture)
    for segment in segments:
        _tint(picture, segment, inside=150)
    for segment in segments:
        x, y, width, height = (segment["bbox"][side] * SCALE for side in ("x", "y", "width", "height"))
        place = (x + width / 2, y + height / 2)
        pen.rectangle(pen.textbbox(place, segment["category"], anchor="mm"), fill=(0, 0, 0))
        pen.text(place, segment["category"], fill=_colour(segment["category_id"]), anchor="mm")
    return picture


def _enlarged(encoded: bytes) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)


def _colour(category_id: int) -> tuple[int, int, int]:
    # Steps of the golden angle keep neighbours in the category list apart.
    red, green, blue = colorsys.hsv_to_rgb(category_id * 0.381966 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _tint(picture: Image.Image, annotation: dict[str, Any], inside: int = 70) -> None:
    mask = coco_mask.decode(annotation["segmentation"]).astype(bool).repeat(SCALE, 0).repeat(SCALE, 1)
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    opacity = np.where(mask & ~inner, 255, np.where(inner, inside, 0)).astype(np.uint8)
    picture.paste(Image.new("RGB", picture.size, _colour(annotation["category_id"])), mask=Image.fromarray(opacity))


def _name(pen: ImageDraw.ImageDraw, annotation: dict[str, Any]) -> None:
    x, y, width, height = (annotation["bbox"][side] * SCALE for side in ("x", "y", "width", "height"))
    colour = _colour(annotation["category_id"])
    pen.rectangle((x, y, x + width, y + height), outline=colour)
    text = f"{annotation['category']} {annotation['score']:.2f}"
    pen.rectangle(pen.textbbox((x + 2, y + 1), text), fill=(0, 0, 0))
    pen.text((x + 2, y + 1), text, fill=colour)
