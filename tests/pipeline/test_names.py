"""Keys come back as the names they were, and say which names are images."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import read, write_list, write_tar

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


HOSTILE = [
    b"a b.png", b"'\"`$(x).png", b"new\nline.png", "한국어.png".encode(), b"caf\xc3\xa9.png", b"cafe\xcc\x81.png",
    b"caf\xe9.png", b"\\xe9.png", b"[ab]*?{0..1}.png", b"a::b.png", b"http:x.png", b"#1.png", b"%41.png", b"a\\b.png",
    "\u202egnp.png".encode(),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "webdataset", "uris"])
def test_hostile_names_round_trip(kind: str, tmp_path: Path) -> None:
    files = {os.fsdecode(name): name for name in HOSTILE}
    if kind == "webdataset":
        write_tar(f"{tmp_path}/x.tar", files)
        url = f"{tmp_path}/x.tar"
    else:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        url = str(tmp_path)
    if kind == "uris":
        url, files = f"{tmp_path}/list.csv", {n: d for n, d in files.items() if "\udce9" not in n}
        write_list(url, list(files))
    rows = read(url)
    assert {os.fsencode(unescape(row["key"])): row["bytes"] for row in rows} == {
        os.fsencode(n): files[n] for n in files
    }
    if kind == "folder":
        assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
