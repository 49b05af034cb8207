"""Fuzzes the image door with atheris: bytes end as pixels or as an ImageError, whatever they are.

Not run by pytest. In an environment of its own:

    pip install --constraint constraints.txt atheris .
    python tests/hostile/fuzz_images.py -max_total_time=300 -rss_limit_mb=4096 -timeout=60 CORPUS

CORPUS is a folder that begins with some images, such as those of `hostile_images.py`, or an empty one.
"""

import sys

import atheris

with atheris.instrument_imports(include=["PIL", "prelabel"]):
    from prelabel.operators.images import ImageError, decode, pixels_in

MAX_PIXELS = 2**20


def decode_once(data: bytes) -> None:
    """Anything but an ImageError is a finding, and so is a hang, a crash or too much memory."""
    pixels_in(data)
    try:
        image = decode(data, MAX_PIXELS)
    except ImageError as error:
        if "\n" in error.message:
            raise
        return
    assert image.pixels.shape == (3, image.height, image.width)
    assert image.height * image.width <= MAX_PIXELS
    assert 1 <= image.orientation <= 8


if __name__ == "__main__":
    atheris.Setup(sys.argv, decode_once)
    atheris.Fuzz()
