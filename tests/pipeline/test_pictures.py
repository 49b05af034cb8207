"""Labels are drawn where they are, on the image as the models saw it, at a bounded size."""

from __future__ import annotations

import io
import math
import struct
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from prelabel.operators.images import decode
from prelabel.pipeline.pictures import draw_labels, draw_segments
from prelabel.schemas import rle
from prelabel.schemas.categories import COCO_PERSON
from prelabel.schemas.errors import SourceError


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(7).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def label(mask: np.ndarray, **more: Any) -> dict[str, Any]:
    """An object whose box is out of sight."""
    box = {"x": -999.0, "y": -999.0, "width": 2.0, "height": 2.0}
    row = {"category_id": 1, "category": "cat", "score": 0.5, "bbox": box, "segmentation": rle.encode(mask).to_coco()}
    return row | more


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.none() | st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_drawn_mask_is_where_pycocotools_decodes_it(width: int, height: int, longest: int | None, seed: int) -> None:
    mask = np.zeros((height, width), bool)
    rng = np.random.default_rng(seed)
    mask[rng.integers(height) :, rng.integers(width) :] = rng.random() < 0.9
    mask &= rng.random(mask.shape) < 0.8
    row = label(mask)
    image = encoded(Image.new("RGB", (width, height), (128, 128, 128)))
    pixels = coco_mask.decode(row["segmentation"])
    for drawn in (
        draw_segments(image, [row], longest=longest, names=False),
        draw_labels(image, [row], longest=longest, names=False),
    ):
        assert max(drawn.size) == (longest or 2 * max(width, height))
        rows, columns = (
            [math.floor(Fraction(2 * k + 1, 2) * of / to) for k in range(to)]
            for of, to in zip(mask.shape, drawn.size[::-1], strict=True)
        )
        expected = pixels[rows][:, columns].astype(bool)
        found = (np.asarray(drawn) != 128).any(axis=2)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_what_the_models_saw(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gray = Image.fromarray(np.arange(20 * 30, dtype=np.uint16).reshape(20, 30))
    for image in (
        encoded(noise(33, 20), "JPEG", exif=exif),
        encoded(noise(33, 20).convert("CMYK"), "JPEG", exif=exif),
        encoded(noise(33, 20), "PNG", exif=exif),
        encoded(noise(33, 20).convert("P"), "PNG", exif=exif),
        encoded(noise(33, 20).convert("RGBA"), "PNG", exif=exif),
        encoded(gray, "PNG", exif=exif),
        encoded(noise(33, 20), "WEBP", exif=exif),
    ):
        seen = decode(image).pixels.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(draw_labels(image, [], longest=max(seen.shape)), seen)


def test_jpeg_that_is_shrunk_while_decoding_does_not_move() -> None:
    image = noise(1003, 701)
    small = draw_labels(encoded(image, "JPEG", quality=95), [], longest=100)
    assert small.size == (100, 70)
    exact = image.resize(small.size, Image.Resampling.BICUBIC)
    assert abs(np.asarray(small, int) - np.asarray(exact, int)).mean() < 8


def test_no_side_gets_longer_than_4096_pixels_unasked() -> None:
    assert draw_labels(encoded(Image.new("L", (4200, 3))), []).size == (4096, 3)
    assert draw_labels(encoded(Image.new("L", (1500, 3))), []).size == (3000, 6)


def test_image_that_is_too_large_is_refused_by_its_header() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, b"IDAT")
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    with pytest.raises(SourceError, match="can't be drawn: too_large"):
        draw_labels(png, [])


@pytest.mark.parametrize(
    "damaged", [b"", b"no image", encoded(noise(90, 90))[:200], encoded(noise(90, 90), "JPEG")[:99]]
)
def test_bytes_that_are_no_image_are_one_line(damaged: bytes) -> None:
    with pytest.raises(SourceError, match=r"^the image can't be drawn: .*$"):
        draw_labels(damaged, [])


@pytest.mark.parametrize("category", ["a\nb", "x" * 2_000_000, "猫", "\0\x1b[31m"])
def test_any_name_can_be_written(category: str) -> None:
    row = label(np.ones((20, 20), bool), category=category)
    assert draw_labels(encoded(noise(20, 20)), [row]).size == draw_segments(encoded(noise(20, 20)), [row]).size


def test_placed_keypoints_are_joined_by_the_skeleton() -> None:
    person = COCO_PERSON[1]
    a, b = person.skeleton[0] if person.skeleton else (1, 2)
    points = [0.0] * 51
    for number, x in ((a, 10.0), (b, 40.0)):
        points[3 * number - 3 : 3 * number] = [x, 20.0, 2.0]
    row = label(np.zeros((50, 50), bool), keypoints=points)
    image = encoded(Image.new("RGB", (50, 50)))
    joined, dots = (
        np.asarray(draw_labels(image, [row], longest=50, names=False, categories=known)).any(axis=2)
        for known in (COCO_PERSON, None)
    )
    assert joined[20, 5:45].sum() == 35
    assert dots[20, 5:45].sum() == 10
    assert not dots[30:].any()
    assert not dots[:, 45:].any()
