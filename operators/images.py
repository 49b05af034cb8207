"""From the bytes of an image file to its upright RGB pixels, or a code that says why not."""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import (  # a plugin registers itself in Image.OPEN when it is imported
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    IcoImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    ImageFile,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from prelabel.schemas.compiled import compiled

_BLOCK = 64 * 2**20  # bytes: the system gets such blocks back at once; smaller ones stay with the threads that decode
Image.core.set_block_size(_BLOCK)

MAX_IMAGE_PIXELS = 178_956_970
"""The default limit: 512 MiB of RGB pixels, and where Pillow's own ends."""

# Decoders of pixels alone: none that starts Ghostscript, reads other files or draws text. JPEG brings MPO along.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "ICO")

# libjpeg makes up pixels that are missing; but Huffman codes take a bit at least for each block of 8 x 8 (ITU-T T.81).
_JPEG_PIXELS_PER_BYTE = 8 * 64

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """Bytes that give no image.

    Attributes:
        code: empty, not_an_image, too_large, truncated or unreadable
        message: one line for people
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image as people see it.

    Attributes:
        pixels: uint8 (3, height, width), contiguous, RGB, upright
        orientation: EXIF's, 1 to 8, that was applied to make it upright; 1 did nothing
        format: of the file, by its content: "jpeg", "png", "tiff"...
    """

    pixels: torch.Tensor
    orientation: int
    format: str

    @property
    def height(self) -> int:
        """Of the upright image, in pixels."""
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        """Of the upright image, in pixels."""
        return self.pixels.shape[2]


def decode(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> DecodedImage:
    """The first frame of an image file, upright, as 8-bit RGB. Safe to call from many threads at once.

    Color profiles are ignored. Alpha is composited on white. Color of 16 bits keeps its high byte. Gray of more than
    8 bits keeps the top 8 of the bits that the image uses, so that 12-bit pixels in a 16-bit file are not black; gray
    that is signed or floating-point is stretched from its minimum and maximum to 0 and 255.

    Args:
        data: the whole file
        max_pixels: an image whose header says more is refused before it is decoded

    Raises:
        ImageError: there is no image in it, or one that can't be decoded
        MemoryError: of the machine, which says nothing about the image
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    _quieten_pillow()
    try:
        return _decode(data, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # of a frame inside the file
        raise ImageError("too_large", str(error)) from error
    except Exception as error:  # on malformed files decoders raise anything
        code = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(code, f"{type(error).__name__}: {error}") from error


def pixels_in(data: bytes) -> int:
    """Of what is decoded, from the header alone; 0 where there is no image that it could be of."""
    _quieten_pillow()
    try:
        width, height = _decoded_size(_open(data))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  `decode` will say what is wrong
        return 0
    return width * height


def _decode(data: bytes, max_pixels: int) -> DecodedImage:
    image = _open(data)
    (width, height), decoded = image.size, _decoded_size(image)
    if decoded[0] * decoded[1] > max_pixels:
        raise ImageError("too_large", f"{decoded[0]} x {decoded[1]} pixels, at most {max_pixels} are allowed")
    if image.format in ("JPEG", "MPO") and width * height > _JPEG_PIXELS_PER_BYTE * len(data):
        raise ImageError("truncated", f"{len(data)} bytes can't hold the {width} x {height} pixels of the header")
    made_upright = image.format == "TIFF"  # by Pillow, in load
    orientation = _orientation(image) if made_upright else 1
    image.load()
    rgb = _to_rgb(image)
    if not made_upright:
        orientation = _orientation(image)  # PNG has it after the pixels
        rgb = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    return DecodedImage(_planes(rgb), orientation, str(image.format).lower())


def _decoded_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """The image's, or that of a TIFF's tile where it is larger: a tile is decoded whole."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.size
    tile = (int(image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0)), int(image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0)))
    return max(image.size, tile, key=math.prod)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header. Unlike Image.open, no limit that the whole process shares, and a broken PNG is still a PNG."""
    for format_ in _FORMATS:
        factory, accept = Image.OPEN[format_]
        accepted = accept is None or accept(data[:16])
        if isinstance(accepted, str):  # why this Pillow can't
            raise ImageError("unreadable", accepted)
        if accepted:
            return factory(io.BytesIO(data), "")
    raise ImageError("not_an_image", f"of no known format, it begins with {data[:16]!r}")


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _UPRIGHT else 1
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  what a camera wrote badly costs no image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(rgba, mask=rgba)
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy


def _to_8_bits(gray: np.ndarray) -> np.ndarray:
    if gray.dtype.kind != "f" and gray.min() >= 0:
        return (gray >> max(0, int(gray.max()).bit_length() - 8)).astype(np.uint8)
    finite = gray[np.isfinite(gray)].astype(np.float64)
    if not finite.size or finite.min() == finite.max():
        return np.zeros(gray.shape, np.uint8)
    low, high = finite.min(), finite.max()
    gray = np.nan_to_num(gray.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((gray - low) * (255 / (high - low))).astype(np.uint8)


def _planes(rgb: Image.Image) -> torch.Tensor:
    """The pixels, channel by channel: read where Pillow has them, a strip at a time that is one block of its memory."""
    planes = np.empty((3, rgb.height, rgb.width), np.uint8)
    rows = max(1, _BLOCK // (4 * rgb.width) - 1)
    for top in range(0, rgb.height, rows):
        bottom = min(top + rows, rgb.height)
        strip = rgb if rows >= rgb.height else rgb.crop((0, top, rgb.width, bottom))
        packed = pa.array(strip).flatten().to_numpy().view(np.uint32)
        _unpack(packed.reshape(bottom - top, rgb.width), planes[:, top:bottom])
    return torch.from_numpy(planes)


@compiled
def _unpack(packed: np.ndarray, planes: np.ndarray) -> None:
    """Red, green and blue are the lower bytes of each pixel, in this order."""
    for row in range(packed.shape[0]):
        for column in range(packed.shape[1]):
            pixel = packed[row, column]
            planes[0, row, column] = pixel & 255
            planes[1, row, column] = (pixel >> 8) & 255
            planes[2, row, column] = (pixel >> 16) & 255


_PILLOW_WARNS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _quieten_pillow() -> None:
    """Let Pillow's remarks on odd metadata neither fill logs nor, where warnings are errors, cost an image.

    `warnings.catch_warnings` would do so for one call, but swaps the filters of all threads.
    """
    if _PILLOW_WARNS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
