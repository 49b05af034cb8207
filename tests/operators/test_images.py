"""Decoding: what comes out is upright RGB as Pillow alone gives it, or a code."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from prelabel.operators.images import ImageError, decode, pixels_in

GRADIENT = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
"""No two of its flips and turns look alike."""


def encoded(image, format_="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def decoded(image, format_="PNG", **options):
    return rgb(decode(encoded(image, format_, **options)))


def rgb(image):
    return image.pixels.permute(1, 2, 0).numpy()


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png_header(width, height):
    """A PNG that ends where its pixels should begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">II", zlib.crc32(header), 9) + b"IDAT"


def test_a_decoded_image_is_planes_of_rgb():
    image = decode(encoded(GRADIENT))
    assert (image.pixels.shape, image.pixels.dtype) == ((3, 5, 7), torch.uint8)
    assert image.pixels.is_contiguous()
    assert (image.height, image.width, image.orientation, image.format) == (5, 7, 1, "png")
    assert (rgb(image) == GRADIENT).all()


@pytest.mark.parametrize("height", [4095, 4096, 4097, 8200])
def test_pixels_beyond_a_block_of_pillows_memory(height):
    pixels = np.random.default_rng(height).integers(0, 256, (height, 4096, 3), np.uint8)
    assert (rgb(decode(encoded(pixels, "PPM"))) == pixels).all()


@pytest.mark.parametrize("folder", ["blood_cells/images", "nuclei/images", "photos"])
def test_photographs_are_exactly_what_pillow_reads(shared_data, folder):
    for path in sorted((shared_data / folder).iterdir())[:20]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        assert (rgb(decode(path.read_bytes())) == expected).all(), path.name


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(format_, orientation):
    data = encoded(GRADIENT, format_, exif=with_orientation(orientation))
    image = decode(data)
    assert image.orientation == orientation
    with Image.open(io.BytesIO(data)) as stored:
        expected = ImageOps.exif_transpose(stored)
    assert (rgb(image) == np.asarray(expected)).all()


def test_orientation_6_turns_the_top_of_the_file_to_the_right():
    assert (decoded(GRADIENT, exif=with_orientation(6)) == np.rot90(GRADIENT, -1)).all()


@pytest.mark.parametrize(
    "exif", [with_orientation(99), with_orientation(0), b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff"]
)
def test_an_orientation_that_makes_no_sense_is_none(exif):
    image = decode(encoded(GRADIENT, exif=exif))
    assert image.orientation == 1
    assert (rgb(image) == GRADIENT).all()


def test_orientations_of_real_files(shared_data):
    def read(name):
        return rgb(decode((shared_data / "hostile" / name).read_bytes())).astype(int)

    turned = {name: read(name) for k in (3, 4, 6, 7) for name in [f"g4_orientation_{k}.tif"]}
    assert all(abs(pixels - read("g4_orientation_1.tif")).mean() < 1 for pixels in turned.values())
    hopper = ["hopper_orientation_3.jpg", *(f"hopper_orientation_{k}.webp" for k in (2, 3, 4, 7))]
    assert all(abs(read(name) - read("hopper.ppm")).mean() < 6 for name in hopper)  # 60 and more if turned wrongly


def test_16_bit_gray_keeps_the_bits_that_the_image_uses():
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for shift in range(9):  # from 8 bits to 16
        assert (decoded(ramp << shift)[..., 0] == ramp).all()
    assert (decoded(ramp << 4, "TIFF")[..., 1] == ramp).all()


def test_16_bit_gray_of_real_files_is_neither_white_nor_black(shared_data):
    for name in ("16bit.cropped.tif", "16bit.cropped.jp2", "16bit.deflate.tif", "16bit.r.tif"):
        gray = rgb(decode((shared_data / "hostile" / name).read_bytes()))
        assert 50 < gray.mean() < 200, name


def test_signed_and_floating_gray_is_stretched():
    ramp = np.linspace(-3, 2, 256, dtype=np.float32).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    assert (decoded(ramp, "TIFF")[..., 0] == expected).all()
    assert (decoded((expected - 100).astype(np.int32), "TIFF")[..., 0] == expected).all()
    ramp[0, 0], ramp[-1, -1] = np.nan, np.inf
    assert abs(decoded(ramp, "TIFF")[..., 0].astype(int) - expected).max() <= 2
    assert (decoded(np.full((3, 3), np.nan, np.float32), "TIFF") == 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = Image.fromarray(np.array([[[0, 255], [0, 0], [0, 128]]], np.uint8), "LA").convert(mode)
    assert decoded(image)[0, :, 0].tolist() == [0, 255, 127]


def test_a_palette_with_alpha_is_composited_on_white():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette(bytes(768))
    assert decoded(image, transparency=bytes([255, 0, 128]))[0, :, 0].tolist() == [0, 255, 127]


@pytest.mark.parametrize(("mode", "color"), [("P", 0), ("L", 90), ("RGB", (90, 90, 90))])
def test_a_transparent_color_is_white(mode, color):
    assert (decoded(Image.new(mode, (2, 2), color), transparency=color) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    assert (decoded(image, "TIFF") == 255).all()


def test_lab_and_cmyk_of_real_files(shared_data):
    def read(name):
        return rgb(decode((shared_data / "hostile" / name).read_bytes())).astype(int)

    assert abs(read("hopper.Lab.tif") - read("hopper.tif")).mean() < 4
    for name in ("pil_sample_cmyk.jpg", "tiff_strip_cmyk_jpeg.tif"):  # red on black; inverted it would be cyan on white
        assert np.median(read(name)) < 10, name


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_the_first_frame_counts(format_):
    red, *others = (Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue"))
    pixels = decoded(red, format_, save_all=True, append_images=others)
    assert abs(pixels.astype(int) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes(size):
    assert decode(encoded(Image.new("RGB", size))).pixels.shape == (3, size[1], size[0])


def test_trailing_junk_does_no_harm():
    data = encoded(GRADIENT, "JPEG")
    assert torch.equal(decode(data + b"junk" * 999).pixels, decode(data).pixels)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"<!doctype html><p>404", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"8BPS\0\1" + bytes(99), "not_an_image"),
        (b"%PDF-1.7\n", "not_an_image"),
        (b"SIMPLE  =                    T" + b" " * 99, "not_an_image"),
        (bytes(100), "not_an_image"),
        (png_header(50_000, 50_000), "too_large"),
        (png_header(10_000, 17_896), "too_large"),
        (png_header(0, 5), "unreadable"),
        (png_header(5, 5), "truncated"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;", "too_large"),
        (b"BM" + bytes(99), "unreadable"),
        (encoded(GRADIENT, "JPEG")[:-40], "truncated"),
        (encoded(GRADIENT, "GIF")[:-30], "truncated"),
        (encoded(GRADIENT, "TIFF")[:-3], "truncated"),
    ],
)
def test_what_is_no_image_has_a_code(data, code):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == code
    assert caught.value.message
    assert "\n" not in caught.value.message


def test_the_limit_is_the_callers_and_pillows_own_is_left_alone(monkeypatch):
    data = encoded(GRADIENT)
    with pytest.raises(ImageError, match=r"too_large: 7 x 5 pixels, at most 34"):
        decode(data, max_pixels=34)
    assert decode(data, max_pixels=35)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # two thirds of what Pillow refuses
    assert decode(data).height == 5
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_tile_is_decoded_whole_however_small_its_image():
    tile = zlib.compress(bytes(64 * 64))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 64, 323: 64, 324: 134, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile
    assert decode(data, max_pixels=64 * 64).height == 16
    assert pixels_in(data) == 64 * 64
    with pytest.raises(ImageError, match=r"too_large: 64 x 64 pixels"):
        decode(data, max_pixels=64 * 64 - 1)


def test_a_text_bomb_is_unreadable():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2**23, zip=True)
    with pytest.raises(ImageError, match="unreadable"):
        decode(encoded(GRADIENT, pnginfo=text))


def test_running_out_of_memory_is_not_the_images_fault(monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", exhausted)
    with pytest.raises(MemoryError):
        decode(encoded(GRADIENT))


HOSTILE_CODES = {
    "decompression_bomb.ico": "too_large",
    "png_decompression_dos.png": "unreadable",
    "broken.png": "unreadable",
    "truncated_jpeg.jpg": "truncated",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "unreadable",
}


def test_hostile_files_end_as_pixels_or_a_code(shared_data):
    """Under warnings as errors, as this suite runs, and from several threads."""

    def outcome(path):
        try:
            return decode(path.read_bytes()).format
        except ImageError as error:
            return error.code

    paths = sorted((shared_data / "hostile").iterdir())
    with ThreadPoolExecutor(4) as threads:
        outcomes = dict(zip((path.name for path in paths), threads.map(outcome, paths), strict=True))
    codes = {name: outcome for name, outcome in outcomes.items() if outcome in ("too_large", "truncated", "unreadable")}
    assert codes.items() >= HOSTILE_CODES.items()
    assert "not_an_image" not in outcomes.values()
    assert len(codes) <= 20
