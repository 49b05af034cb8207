"""Keys come back as the names they were, and say which names are images."""

import os

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prelabel.pipeline.sources.names import escape, is_image, unescape


@given(st.lists(st.binary(min_size=1, max_size=12) | st.sampled_from([b"\\x41", b"\\x5cx41", b"\\\\x", b"\xff"])))
def test_escaped_names_are_text_and_come_back(names: list[bytes]) -> None:
    decoded = {os.fsdecode(name) for name in names}
    escaped = {escape(name) for name in decoded}
    assert {unescape(key) for key in escaped} == decoded
    assert len(escaped) == len(decoded)
    pa.array(escaped, pa.string())


@pytest.mark.parametrize(
    ("key", "is_one"),
    [
        ("a.b.JPG", True), ("./x.tiff", True), ("../x.jp2", True), ("dir.v1/x.jpg", True), ("dir.jpg/x", False),
        ("jpg", False), ("x.jpg.txt", False), (".x.jpg", False), (".git/x.jpg", False), ("a/.b/x.jpg", False),
    ],
)  # fmt: skip
def test_names_that_say_image(key: str, is_one: bool) -> None:
    assert is_image(key) == is_one
