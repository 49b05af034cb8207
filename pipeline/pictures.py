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
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    picture = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)
    for annotation in reversed(annotations):
        if annotation["segmentation"] is not None:
            _tint(picture, annotation)
    pen = ImageDraw.Draw(picture)
    for annotation in reversed(annotations):
        _name(pen, annotation)
    return picture


def _colour(category_id: int) -> tuple[int, int, int]:
    # Steps of the golden angle keep neighbours in the category list apart.
    red, green, blue = colorsys.hsv_to_rgb(category_id * 0.381966 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _tint(picture: Image.Image, annotation: dict[str, Any]) -> None:
    mask = coco_mask.decode(annotation["segmentation"]).astype(bool).repeat(SCALE, 0).repeat(SCALE, 1)
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    opacity = np.where(mask & ~inner, 255, np.where(inner, 70, 0)).astype(np.uint8)
    picture.paste(Image.new("RGB", picture.size, _colour(annotation["category_id"])), mask=Image.fromarray(opacity))


def _name(pen: ImageDraw.ImageDraw, annotation: dict[str, Any]) -> None:
    x, y, width, height = (annotation["bbox"][side] * SCALE for side in ("x", "y", "width", "height"))
    colour = _colour(annotation["category_id"])
    pen.rectangle((x, y, x + width, y + height), outline=colour)
    text = f"{annotation['category']} {annotation['score']:.2f}"
    pen.rectangle(pen.textbbox((x + 2, y + 1), text), fill=(0, 0, 0))
    pen.text((x + 2, y + 1), text, fill=colour)
