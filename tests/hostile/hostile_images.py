"""Hostile image files, what each is, and what must become of it."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from outcomes import LABELED
from PIL import Image, PngImagePlugin

BROKEN = "truncated, unreadable"
"""One or the other: decoders differ in what they say."""
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
"""No two of its flips and turns look alike."""


class HostileImage(NamedTuple):
    """A file, under the words that docs/input.md has for its kind; `outcome` is LABELED, an error code, or BROKEN."""

    what: str
    outcome: str
    data: bytes


def encoded(pixels: Any = PIXELS, format_: str = "PNG", **options: Any) -> bytes:
    """A file that Pillow writes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, color: int = 2) -> bytes:
    """A PNG of these chunks; all but the header may be missing."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks)
    )


@functools.cache
def hostile_images() -> dict[str, HostileImage]:
    """All, by a name that is good for a file."""
    broken = (_no_images, _giants, _cut_off, _damaged, _bombs, _tile_bomb)
    kinds = (*broken, _modes, _frames, _orientations, _shapes, _odd_but_fine)
    return {name: HostileImage(*rest) for kind in kinds for name, *rest in kind()}


Rows = Iterator[tuple[str, str, str, bytes]]


def _no_images() -> Rows:
    yield "empty", "zero bytes", "empty", b""
    text = {
        "text": b"Not found\n",
        "html": b"<!doctype html><title>404</title>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        "xpm": b"/* XPM */\nstatic char *x[] = {",
        "json": b'{"error": "denied"}',
        "byte": b"\xff",
        "zeros": bytes(100),
    }
    for name, data in text.items():
        yield name, "text, HTML, SVG or zeros under an image's name", "not_an_image", data
    documents = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id > hacked) (w) file\n",
        "psd": b"8BPS\0\1" + bytes(99),
        "pdf": b"%PDF-1.7\n1 0 obj",
        "fits": b"SIMPLE  =                    T" + b" " * 2850,
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(99),
        "icns": b"icns\0\0\0\x20" + bytes(24),
        "dds": b"DDS |\0\0\0" + bytes(120),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(99),
    }
    for name, data in documents.items():
        yield name, "EPS, PSD, PDF, FITS, WMF and whatever else would start another program", "not_an_image", data
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").writestr("x.png", encoded())
    for name, data in {"pickle": pickle.dumps([1]), "zip": archive.getvalue(), "elf": b"\x7fELF" + bytes(99)}.items():
        yield name, "a pickle, an archive or a program under an image's name", "not_an_image", data


def _giants() -> Rows:
    what = "a header that says more than `--max-image-pixels` (50,000 x 50,000 in a few bytes)"
    data = zlib.compress(bytes(2**20))
    yield "giant.png", what, "too_large", png(50_000, 50_000, (b"IDAT", data), (b"IEND", b""))
    yield "giant gray.png", what, "too_large", png(50_000, 50_000, (b"IDAT", data), bits=1, color=0)
    yield "giant by a row.png", what, "too_large", png(10_000, 17_896, (b"IDAT", data))
    yield "giant.gif", what, "too_large", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;"
    bmp = bytearray(encoded(format_="BMP"))
    bmp[18:26] = struct.pack("<ii", 40_000, 40_000)
    yield "giant.bmp", what, "too_large", bytes(bmp)
    yield "giant.ppm", what, "too_large", b"P6 99999 99999 255\n" + bytes(99)
    yield "giant.jpg", what, "too_large", lying_jpeg(65_000, 65_000)
    yield "giant.tif", what, "too_large", lying_tiff(60_000)
    yield "giant.webp", what, "too_large", lying_webp(16_000)
    jp2 = bytearray(encoded(format_="JPEG2000"))
    place = jp2.index(b"ihdr") + 4
    jp2[place : place + 8] = struct.pack(">II", 50_000, 50_000)
    yield "giant.jp2", what, "too_large", bytes(jp2)


def lying_jpeg(height: int, width: int) -> bytes:
    """A JPEG whose header says so."""
    data = bytearray(encoded(format_="JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def lying_tiff(size: int) -> bytes:
    """A TIFF whose header says that it is so high and wide."""
    data = bytearray(encoded(format_="TIFF"))
    ifd = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, ifd)[0]):
        place = ifd + 2 + 12 * entry
        tag, kind = struct.unpack_from("<HH", data, place)
        if tag in (256, 257):
            struct.pack_into("<I" if kind == 4 else "<H", data, place + 8, size)
    return bytes(data)


def lying_webp(size: int) -> bytes:
    """A WebP whose canvas is said to be so high and wide."""
    data = bytearray(encoded(Image.fromarray(PIXELS).convert("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0II*\0"))
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (size - 1).to_bytes(3, "little") * 2
    return bytes(data)


def _cut_off() -> Rows:
    """Each at four places: in the header, behind it, in the middle, before the end."""
    for place in (300, 400, 700, 1_000, -2):
        jpeg = encoded(format_="JPEG")[:place]
        yield f"cut at {place}.jpg", "a JPEG that ends too soon (never half an image)", "truncated", jpeg
    for format_ in ("PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "AVIF", "PPM"):
        whole = encoded(format_=format_)
        for number, place in enumerate((20, len(whole) // 8, len(whole) // 2, len(whole) - 40)):
            yield f"cut {number}.{format_.lower()}", "any other file that ends too soon", BROKEN, whole[:place]
    progressive = encoded(format_="JPEG", progressive=True)[:1_500]
    yield "cut progressive.jpg", "a JPEG that ends too soon (never half an image)", "truncated", progressive
    yield "lying.jpg", "a JPEG whose header says more pixels than there are", "truncated", lying_jpeg(4_000, 4_000)


def _damaged() -> Rows:
    what = "a damaged file"
    whole = encoded()
    idat = whole.index(b"IDAT")
    yield "no pixels.png", what, BROKEN, png(5, 5, (b"IEND", b""))
    yield "no width.png", what, BROKEN, png(0, 5, (b"IEND", b""))
    yield "broken checksum.png", what, BROKEN, whole[: idat - 9] + b"\0\0\0\0" + whole[idat - 4 :]
    yield "broken pixels.png", what, BROKEN, whole[: idat + 9] + bytes(50) + whole[idat + 59 :]
    yield "bits.png", what, BROKEN, png(5, 5, (b"IDAT", b""), bits=3)
    tiff = bytearray(encoded(format_="TIFF"))
    tiff[4:8] = struct.pack("<I", len(tiff) - 2)
    yield "directory at the end.tif", what, BROKEN, bytes(tiff)
    yield "nothing.tif", what, BROKEN, b"II*\0" + struct.pack("<I", 2**32 - 1)
    yield "directory of 65,535.tif", what, BROKEN, b"II*\0\x08\0\0\0\xff\xff" + bytes(99)
    yield "header alone.bmp", what, BROKEN, b"BM" + bytes(99)
    yield "start alone.jpg", what, BROKEN, b"\xff\xd8\xff\xe0"
    yield "digits.ppm", what, BROKEN, b"P6 99999999999999999999 1 255\n"
    yield "words.ppm", what, BROKEN, b"P6 a b c\n"
    yield "header alone.webp", what, BROKEN, b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(20)
    yield "box.avif", what, BROKEN, b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1A" + bytes(40)
    yield "box.jp2", what, BROKEN, b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 0, b"jp2h")
    yield "entries.ico", what, BROKEN, b"\0\0\1\0\xff\xff" + bytes(99)


def _bombs() -> Rows:
    what = "a text or profile in a PNG that unpacks to many megabytes"
    mebibytes = zlib.compress(bytes(2**26), 9)
    pixels = (b"IDAT", zlib.compress(bytes(5 * 16)))
    chunks = {
        "zTXt": b"comment\0\0" + mebibytes,
        "iTXt": b"comment\0\1\0\0\0" + mebibytes,
        "iCCP": b"profile\0\0" + mebibytes,
    }
    for kind, data in chunks.items():
        yield f"bomb {kind}.png", what, "unreadable", png(5, 5, (kind.encode(), data), pixels, (b"IEND", b""))
    many = [(b"tEXt", b"k\0" + bytes(2**20))] * 70
    yield "bomb of many texts.png", what, "unreadable", png(5, 5, *many, pixels, (b"IEND", b""))
    inner = png(50_000, 50_000, (b"IDAT", b""))
    ico = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner
    yield "giant inside.ico", "an icon that holds a giant", "too_large", ico


def _tile_bomb() -> Rows:
    what = "a TIFF of a few pixels whose tile is a giant, decoded whole (1.6 GB in 1.6 MB)"
    size = 40_960
    tile = _packed_zeros(size * size // 2**20)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: size, 323: size, 324: 134, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    yield "bomb tile.tif", what, "too_large", b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile


def _packed_zeros(mebibytes: int) -> bytes:
    """As zlib packs them, without ever having them: one packed mebibyte, again and again."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    one = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (mebibytes * 2**20 % 65_521) << 16 | 1
    return b"\x78\x9c" + one * mebibytes + packer.flush() + struct.pack(">I", checksum)


def _modes() -> Rows:
    what = "gray, palette, CMYK, LAB, alpha, 1, 16 and 32 bits"
    image = Image.fromarray(PIXELS)
    for mode, format_ in {
        "1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "RGBA": "PNG", "CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF",
    }.items():  # fmt: skip
        yield f"{mode}.{format_.lower()}", what, LABELED, encoded(image.convert(mode), format_)
    gray = PIXELS[..., 0]
    yield "16 bits.png", what, LABELED, encoded(gray.astype(np.uint16) << 8)
    yield "12 bits.tif", what, LABELED, encoded(gray.astype(np.uint16) << 4, "TIFF")
    yield "32 bits.tif", what, LABELED, encoded(gray.astype(np.int32) - 99, "TIFF")
    floats = gray.astype(np.float32)
    floats[0, 0], floats[1, 1] = np.nan, np.inf
    yield "floats.tif", what, LABELED, encoded(floats, "TIFF")
    yield "transparent color.png", what, LABELED, encoded(image, transparency=(0, 0, 0))
    wide = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS)
    yield "48 bits.png", what, LABELED, png(64, 48, (b"IDAT", zlib.compress(wide)), (b"IEND", b""), bits=16)


def _frames() -> Rows:
    first, *others = (Image.fromarray(np.roll(PIXELS, 9 * k, axis=1)) for k in range(3))
    for format_ in ("GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"):
        what = "an animation, several pages, MPO: the first"
        yield f"frames.{format_.lower()}", what, LABELED, encoded(first, format_, save_all=True, append_images=others)


def _orientations() -> Rows:
    for value in (*range(1, 9), 0, 99, 65_535):
        exif = Image.Exif()
        exif[0x0112] = value
        what = "EXIF orientation 2-8 (made upright), any other (left as it is)"
        yield f"orientation {value}.jpg", what, LABELED, encoded(format_="JPEG", exif=exif)
    for name, garbage in {
        "words": b"Exif\0\0garbage",
        "end": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "none": b"Exif\0\0",
    }.items():
        yield f"exif {name}.jpg", "EXIF that makes no sense", LABELED, encoded(format_="JPEG", exif=garbage)


def _shapes() -> Rows:
    for size in ((1, 1), (1, 20_000), (20_000, 1)):
        yield f"{size[0]} x {size[1]}.png", "1 x 1, 1 x 20,000", LABELED, encoded(Image.new("RGB", size, "red"))


def _odd_but_fine() -> Rows:
    jpeg = encoded(format_="JPEG")
    yield "junk behind.jpg", "a whole image with something behind it", LABELED, jpeg + b"junk" * 999
    yield "html behind.gif", "a whole image with something behind it", LABELED, encoded(format_="GIF") + b"<script>"
    yield "two.jpg", "a whole image with something behind it", LABELED, jpeg + jpeg
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "<script>alert(1)</script>")
    yield "script.png", "a script in an image's metadata", LABELED, encoded(pnginfo=text)
    yield "script.jpg", "a script in an image's metadata", LABELED, encoded(format_="JPEG", comment=b"<script>")
