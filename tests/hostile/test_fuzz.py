"""A short look at what fuzz_images.py and fuzz_tars.py look at for longer."""

from __future__ import annotations

from contextlib import suppress

from fsspec.implementations.memory import MemoryFileSystem
from hostile_images import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import tar_bytes, tiny_images

from prelabel.operators.images import ImageError, decode
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import Shard
from prelabel.schemas.errors import SourceError

FILES = [encoded(format_=format_) for format_ in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "PPM")]
TAR = tar_bytes(tiny_images())
SOURCE = source_of_kind("webdataset", "memory://fuzz/x.tar")
edits = st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=6)


def edited(data: bytes, changes: list[tuple[int, bytes]], length: int) -> bytes:
    """Some bytes written over, the end cut off."""
    changed = bytearray(data)
    for place, patch in changes:
        place %= len(data)
        changed[place : place + len(patch)] = patch
    return bytes(changed[: max(1, len(data) - length)])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), edits, st.integers(0, 400))
def test_any_bytes_are_pixels_or_an_image_error(data: bytes, changes: list[tuple[int, bytes]], cut: int) -> None:
    with suppress(ImageError):
        image = decode(edited(data, changes, cut), 2**20)
        assert image.pixels.shape == (3, image.height, image.width)


@settings(max_examples=150, deadline=None)
@given(edits, st.sampled_from([0, 0, 0, 512, 1_024, 1_300, 5_000]))
def test_any_bytes_are_members_inside_of_the_file_or_a_source_error(changes: list[tuple[int, bytes]], cut: int) -> None:
    data = edited(TAR, changes, cut)
    MemoryFileSystem().pipe_file("/fuzz/x.tar", data)
    with suppress(SourceError):
        for image in SOURCE.index(Shard("webdataset", SOURCE.url, len(data))):
            assert 0 < image.offset <= image.offset + image.size <= len(data)
