"""What every source promises, then what is special about each kind."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shards import (
    read,
    tar_bytes,
    tiny_images,
    units_of,
    write_file,
    write_files,
    write_list,
    write_parquet,
    write_source,
    write_table,
    write_tar,
)

from prelabel.pipeline.sources import SOURCES, open_source, source_of_kind
from prelabel.pipeline.sources.base import READ_SCHEMA, SourceOptions, Unit
from prelabel.pipeline.sources.names import unescape
from prelabel.schemas.errors import SourceError

IMAGES = tiny_images()
X = b"bytes of an image"


@pytest.fixture(autouse=True)
def _no_memory() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with brackets in its name, which must never count as a glob."""
    return f"{tmp_path}/data [1]" if request.param == "local" else "memory://data [1]"


def keys(url: object, options: SourceOptions | None = None) -> list[str]:
    source = open_source(str(url), options)
    return [ref.key for shard in source.shards() for ref in source.index(shard)]


def error(url: object, options: SourceOptions | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        read(url, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class ParamValidationError(Exception):
    """As botocore's."""


class ServerError(Exception):
    """As an HTTP client's: not an OSError, with the server's status."""

    def __init__(self, status: int) -> None:
        self.status = status


# Every source


@pytest.mark.parametrize("kind", SOURCES)
def test_same_images_from_every_source(kind: str, root: str) -> None:
    url = write_source(kind, root, IMAGES)
    source = open_source(url)
    assert isinstance(source, type(source_of_kind(kind, url)))
    (shard,) = source.shards()
    refs = list(source.index(shard))
    assert shard.kind == kind
    assert [unescape(ref.key).removeprefix("images/") for ref in refs] == list(IMAGES)
    if kind in ("folder", "webdataset"):
        assert [ref.size for ref in refs] == [len(data) for data in IMAGES.values()]

    (unit,) = units_of(source)
    table = source.read(unit)
    assert table.schema == READ_SCHEMA
    assert table["image_id"].to_pylist() == list(range(len(IMAGES)))
    assert table["key"].to_pylist() == unit.keys
    assert table["bytes"].to_pylist() == list(IMAGES.values())
    assert table["error_code"].null_count == len(IMAGES)
    assert len(set(table["uri"].to_pylist())) == len(IMAGES)
    worker = pickle.loads(pickle.dumps(source_of_kind(kind, url)))
    assert worker.read(pickle.loads(pickle.dumps(unit))).equals(table)


@pytest.mark.parametrize("kind", SOURCES)
def test_any_range_of_a_shard_can_be_read(kind: str, root: str) -> None:
    source = open_source(write_source(kind, root, IMAGES))
    (whole,) = units_of(source)
    data = list(IMAGES.values())
    for start in range(len(whole)):
        for end in range(start + 1, len(whole) + 1):
            some = Unit(3, whole.shard, 50, whole.keys[start:end], whole.offsets[start:end], whole.sizes[start:end])
            table = source.read(some)
            assert table["bytes"].to_pylist() == data[start:end]
            assert table["image_id"].to_pylist() == list(range(50, 50 + end - start))


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
@pytest.mark.parametrize("failure", [TimeoutError("slow"), ServerError(503)], ids=repr)
def test_storage_that_fails_for_now(kind: str, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_source(kind, "memory://b", IMAGES))
    (unit,) = units_of(source)

    def fail(self: object, path: str, *_: object, **__: object) -> bytes:
        raise failure

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    monkeypatch.setattr(MemoryFileSystem, "open", fail)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match=str(failure)):
        source.read(unit)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_shard_that_changed_since_the_plan(kind: str, root: str) -> None:
    url = write_source(kind, root, IMAGES)
    source = open_source(url)
    (unit,) = units_of(source)
    write_source(kind, root, tiny_images(30))
    with pytest.raises(SourceError, match="has changed since the plan"):
        source.read(unit)
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm_file(path)
    with pytest.raises(SourceError, match="is gone"):
        source.read(unit)


def test_copy_of_a_shard_may_take_its_place(tmp_path: Path) -> None:
    write_tar(f"{tmp_path}/x.tar", IMAGES)
    source = open_source(f"{tmp_path}/x.tar")
    (unit,) = units_of(source)
    os.utime(tmp_path / "x.tar", ns=(1, 1))
    assert len(source.read(unit)) == len(IMAGES)


def test_image_of_a_folder_that_changed_since_the_plan(root: str) -> None:
    write_files(root, IMAGES)
    source = open_source(root)
    (unit,) = units_of(source)
    write_file(f"{root}/{unit.keys[2]}", X)
    rows = source.read(unit).to_pylist()
    assert [row["error_code"] for row in rows].count(None) == len(IMAGES) - 1
    assert f"has changed since the plan was made: {len(X)} bytes, planned" in rows[2]["error"]


# Finding the kind


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_folders_globs_and_braces_stand_for_shards(kind: str, root: str) -> None:
    suffix, write = {"webdataset": (".tar", write_tar), "parquet": (".parquet", write_parquet)}[kind]
    for number in range(8, 12):
        write(f"{root}/s-{number:03d}{suffix}", {f"{number}.png": X})
    write_file(f"{root}/.s-999{suffix}", b"hidden")
    write_file(f"{root}/README.md", b"beside the shards")
    for pattern, numbers in {
        "": [8, 9, 10, 11],
        f"/*{suffix}": [8, 9, 10, 11],
        f"/s-01?{suffix}": [10, 11],
        f"/s-{{009..011}}{suffix}": [9, 10, 11],
        f"/s-0{{08,1*}}{suffix}": [8, 10, 11],
    }.items():
        assert keys(root + pattern) == [f"{number}.png" for number in numbers]
        assert type(open_source(root + pattern)).__name__.lower() == f"{kind}source"
    assert f"s-012{suffix}" in error(f"{root}/s-{{009..012}}{suffix}")


def test_kind_is_told_from_what_is_there(root: str) -> None:
    write_tar(f"{root}/both/0.tar", IMAGES)
    write_parquet(f"{root}/both/0.parquet", IMAGES)
    assert len(keys(f"{root}/both")) == 7  # img2dataset's folders: the Parquet file describes the tar
    write_file(f"{root}/both/x.png", X)
    assert keys(f"{root}/both") == ["x.png"]
    assert read(f"{root}/both/x.png")[0]["bytes"] == X
    write_file(f"{root}/both/y.png", X)
    assert "can't tell" in error(f"{root}/both/*")
    assert "include" in error(f"{root}/both/*.p[n]g")


def test_nothing_there(root: str, tmp_path: Path) -> None:
    write_file(f"{root}/notes.doc", b"")
    for url in ("absent", "absent.tar", "absent/*.tar", "*.tar", "{a,b}.tar"):
        message = error(f"{root}/{url}")
        assert "nothing is at" in message
        assert f"{root}/{url}" in message
    assert "can't tell" in error(f"{root}/notes.doc")
    assert keys(root) == []
    assert keys(tmp_path) == []


# Folders


def test_folder_order_is_that_of_whole_keys(root: str) -> None:
    names = ["a/z.png", "a.png", "a-b/x.png", "a0.png", "a/b/c/d.png", "B.png", "é.png"]
    write_files(root, dict.fromkeys(names, X))
    assert keys(root) == sorted(names)


def test_folder_takes_images_only(root: str) -> None:
    write_files(root, dict.fromkeys(["x.png", "y.txt", ".hidden.png", ".git/z.png", "d.png/inside.jpg", "w.raw"], X))
    assert keys(root) == ["d.png/inside.jpg", "x.png"]
    assert keys(root, SourceOptions(include=("*.raw", "d*/*"))) == ["d.png/inside.jpg", "w.raw"]


def test_links_pipes_and_loops_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(X)
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "to.png").symlink_to("a/x.png")
    os.mkfifo(tmp_path / "pipe.png")
    rows = {row["key"]: row["error_code"] for row in read(tmp_path)}
    assert rows == {"a/x.png": None, "gone.png": "missing", "self.png": "missing", "to.png": None}


def test_file_and_folder_that_are_gone_at_read_time(root: str) -> None:
    write_files(root, {"a.png": X, "b.png": X})
    source = open_source(root)
    (unit,) = units_of(source)
    fs, path = fsspec.core.url_to_fs(root)
    fs.rm_file(f"{path}/a.png")
    first, second = source.read(unit).to_pylist()
    assert (first["bytes"], first["error_code"], second["bytes"]) == (None, "missing", X)
    fs.rm_file(f"{path}/b.png")
    if not root.startswith("memory"):
        with pytest.raises(SourceError, match="is its disk mounted"):
            source.read(unit)
    fs.rmdir(path)
    with pytest.raises(SourceError, match="gone"):
        source.read(unit)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_fails_for_now_makes_no_image_missing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(str(tmp_path), {"a.png": X, "b.png": X})
    (tmp_path / "list.txt").write_text("b.png")
    sources = open_source(str(tmp_path)), open_source(str(tmp_path / "list.txt"))
    units = [next(iter(units_of(source))) for source in sources]
    stat = os.stat

    def failing(path: str, **options: Any) -> os.stat_result:
        if str(path).endswith("b.png"):
            raise OSError(number, os.strerror(number), path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", failing)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    for source, unit in zip(sources, units, strict=True):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            source.read(unit)


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (PermissionError("403"), SourceError), (OSError("reset"), OSError), (FileNotFoundError(), "missing"),
        (ServerError(503), OSError), (ServerError(429), OSError), (ServerError(403), "read_error"),
        (ServerError(410), "missing"), (ParamValidationError("Invalid bucket name"), "read_error"),
    ],
)  # fmt: skip
def test_answers_of_a_bucket(failure: Exception, outcome: object, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files("memory://b", IMAGES)
    source = open_source("memory://b")
    (unit,) = units_of(source)

    def cat_file(self: object, path: str, **_: object) -> bytes:
        raise failure

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    if isinstance(outcome, str):
        assert set(source.read(unit)["error_code"].to_pylist()) == {outcome}
    else:
        with pytest.raises(outcome):
            source.read(unit)


# Tars


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def test_tar_members_are_names_only(root: str, caplog: pytest.LogCaptureFixture) -> None:
    far = b"\0" * (3 << 20)
    members = [
        ("x.png", b"1"), ("x.json", far), ("../up.png", b"2"), ("/abs.png", b"3"), (link("link.png"), b""),
        (link("hard.png", tarfile.LNKTYPE), b""), (link("dev.png", tarfile.CHRTYPE), b""), ("x.png", b"4"),
        ("._x.png", b"-"), ("model.pt", b"-"), (link("dir.png", tarfile.DIRTYPE), b""), ("x.png", b"5"),
        ("empty.png", b""), ("n" * 300 + ".png", b"6"),
    ]  # fmt: skip
    write_tar(f"{root}/a.tar", members)
    rows = read(f"{root}/a.tar")
    wanted = {"x.png": b"1", "../up.png": b"2", "/abs.png": b"3", "x.png#2": b"4", "x.png#3": b"5", "empty.png": b""}
    assert {row["key"]: row["bytes"] for row in rows} == {**wanted, "n" * 300 + ".png": b"6"}
    assert rows[1]["uri"].startswith("tar://../up.png::")
    assert "3 links" in caplog.text


def test_cut_tar_never_gives_fewer_rows(tmp_path: Path) -> None:
    whole = tar_bytes(IMAGES)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in [*range(0, end + 1, 512), 100, 700, end - 1]:
        (tmp_path / "x.tar").write_bytes(whole[:size])
        assert "x.tar is damaged or cut off" in error(tmp_path / "x.tar")


def test_tars_that_are_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes({"a.png": X}) + tar_bytes({"b.png": X}))
    assert keys(path) == ["a.png", "b.png"]
    path.write_bytes(tar_bytes({}))
    assert keys(path) == []
    broken = bytearray(tar_bytes(IMAGES))
    broken[1024 + 20] ^= 1  # in the second header
    path.write_bytes(broken)
    assert "at byte 1024" in error(path)
    for suffix in ("tar.gz", "tgz", "tar.zst"):
        (tmp_path / f"y.{suffix}").write_bytes(b"")
        assert "is compressed" in error(tmp_path / f"y.{suffix}")


def members_of(data: bytes) -> list[tuple[str, int, int]]:
    """Those that `tarfile` finds."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(one.name, one.offset_data, one.size) for one in tar if one.isreg()]


def header(name: str, **changes: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in changes.items():
        setattr(member, field, value)
    return member


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_every_writer(kind: int, tmp_path: Path) -> None:
    """Whoever wrote it: plain headers, times as fractions (webdataset's), names beyond a header, numbers in binary."""
    members = [
        header("a.png"), header("folder/" * 20 + "b.png"), header("c.png", mtime=1.7e9 if kind else 0),
        header("d.png", mtime=1_700_000_000.123 if kind == tarfile.PAX_FORMAT else 5), header("\udce9.png"),
        header("e.png", uid=3_000_000 if kind != tarfile.USTAR_FORMAT else 1), header("é.png", uname="é"),
        header("f.png", mtime=2.5 if kind == tarfile.PAX_FORMAT else 5, uid=7),
    ]  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind, errors="surrogateescape") as tar:
        for number, member in enumerate(members):
            member.size = 100 * number
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    (tmp_path / "x.tar").write_bytes(file.getvalue())
    source = open_source(f"{tmp_path}/x.tar")
    found = [(unescape(ref.key), *ref[1:]) for ref in source.index(next(source.shards()))]
    assert found == members_of(file.getvalue())
    assert len(found) == len(members)


def test_headers_that_apply_to_all_that_follow(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", pax_headers={"path": "same.png"}) as tar:
        tar.addfile(header("a.png"))
        tar.addfile(header("b.png", mtime=0.5))
    (tmp_path / "x.tar").write_bytes(file.getvalue())
    assert keys(tmp_path / "x.tar") == ["same.png", "same.png#2"]


@pytest.mark.parametrize("mtime", [1_700_000_000, 1_700_000_000.5])
def test_every_damaged_byte_of_a_header_is_found(mtime: float, tmp_path: Path) -> None:
    whole = tar_bytes([(header("a.png", mtime=mtime), b"")])
    places = [place for place in range(len(whole.rstrip(b"\0")) + 1) if not 512 <= place < 1024 or mtime % 1 == 0]
    for place in places[::7]:
        broken = bytearray(whole)
        broken[place] ^= 4
        (tmp_path / "x.tar").write_bytes(broken)
        assert "x.tar is damaged or cut off" in error(tmp_path / "x.tar")


# Parquet


def test_parquet_keys_and_nulls(root: str) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": X, "path": "a.png"}, {"bytes": None, "path": "b.png"}, None, {"bytes": b"", "path": ""}]
    table = pa.table({"id": [5, 6, None, 8], "image": pa.array(images, kind), "label": [1, 2, 3, 4]})
    write_table(f"{root}/x.parquet", table)
    rows = read(f"{root}/x.parquet")
    assert [row["key"] for row in rows] == ["a.png", "b.png", "row-2", "8"]
    assert [row["bytes"] for row in rows] == [X, None, None, b""]
    assert [row["error_code"] for row in rows] == [None, "missing", "missing", None]
    assert rows[3]["uri"].endswith("/x.parquet#row=3")


def test_keys_of_a_table_hold_no_secret(tmp_path: Path) -> None:
    signed = "https://me:pw@host/x.jpg?sig=S3CRET&w=1"
    write_table(f"{tmp_path}/x.parquet", pa.table({"image": pa.array([X]), "path": [signed]}))
    assert [row["key"] for row in read(f"{tmp_path}/x.parquet")] == ["https://***@host/x.jpg?sig=***&w=1"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_parquet_column_is_found_by_type(kind: pa.DataType, tmp_path: Path) -> None:
    path, data = tmp_path / "x.parquet", pa.array([X, X], kind)
    write_table(str(path), pa.table({"url": ["u", "v"], "photo": data}))
    assert [(row["key"], row["bytes"]) for row in read(path)] == [("row-0", X), ("row-1", X)]
    write_table(str(path), pa.table({"mask": data, "jpg": pa.array([b"1", b"2"], kind), "__key__": ["k1", "k2"]}))
    assert [(row["key"], row["bytes"]) for row in read(path)] == [("k1", b"1"), ("k2", b"2")]
    assert read(path, SourceOptions(image_column="mask"))[0]["bytes"] == X
    write_table(str(path), pa.table({"left": data, "right": data}))
    assert "--image-column" in error(path)
    assert "no_such" in error(path, SourceOptions(image_column="no_such"))


def test_corrupt_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(str(path), IMAGES)
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], whole[:200] + b"\xff" * 60 + whole[260:]):
        path.write_bytes(data)
        assert "x.parquet is damaged" in error(path)


def test_damaged_parquet_footer_never_gives_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(str(path), IMAGES)
    whole = path.read_bytes()
    for position in range(len(whole) - 300, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
        with suppress(SourceError):
            assert len(read(path)) == len(IMAGES)


# Lists


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_list_formats(suffix: str, root: str) -> None:
    write_files(f"{root}/images", IMAGES)
    uris = [f"images/{name}" for name in IMAGES]
    write_list(f"{root}/list.{suffix}", [uris[1], "images/absent.png", uris[0], uris[1]])
    rows = read(f"{root}/list.{suffix}")
    data = list(IMAGES.values())
    assert [row["key"] for row in rows] == [uris[1], "images/absent.png", uris[0], uris[1]]
    assert [row["bytes"] for row in rows] == [data[1], None, data[0], data[1]]
    assert [row["error_code"] for row in rows] == [None, "missing", None, None]
    assert rows[0]["uri"].endswith(f"data [1]/{uris[1]}")


def test_a_list_s_disk_that_is_not_mounted_makes_no_image_missing(tmp_path: Path) -> None:
    disk, uris = tmp_path / "mnt/disk", [f"mnt/disk/{name}.png" for name in ("a", "b")]
    write_list(f"{tmp_path}/list.txt", uris)
    with pytest.raises(OSError, match=r"mnt/disk, where all 2 images should be, is gone or empty"):
        read(tmp_path / "list.txt")
    disk.mkdir(parents=True)
    with pytest.raises(OSError, match="mounted"):
        read(tmp_path / "list.txt")
    (disk / "other.png").write_bytes(X)
    assert [row["error_code"] for row in read(tmp_path / "list.txt")] == ["missing", "missing"]
    write_list(f"{tmp_path}/list.txt", ["x" * 5_000 + "/a.png"] * 2)
    assert [row["error_code"] for row in read(tmp_path / "list.txt")] == ["missing", "missing"]


def test_list_lines_and_columns(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# comment\r\n\r\na.png\r\n  b\xe9.png \n")
    assert keys(tmp_path / "list.txt") == ["a.png", "b\\xe9.png"]
    (tmp_path / "list.csv").write_text('id,URL,path\n1,"x,\ny.png",p\n\n2\n')
    assert keys(tmp_path / "list.csv") == ["x,\ny.png", ""]
    assert [row["error_code"] for row in read(tmp_path / "list.csv")] == ["missing", "missing"]
    assert keys(tmp_path / "list.csv", SourceOptions(image_column="path")) == ["p", ""]
    (tmp_path / "list.csv").write_text("one,two\na,b\n")
    assert "--image-column" in error(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("")
    assert "--image-column" in error(tmp_path / "list.csv")


def test_list_in_a_bucket_reaches_its_bucket_only(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(X)
    outside = [
        f"file://{secret}", str(secret), f"FILE://{secret}", f"local://{secret}", f"simplecache::file://{secret}",
        f"memory://b/x::file://{secret}", "http://169.254.169.254/latest", f"dir::file://{tmp_path}", "//host/x.png",
    ]  # fmt: skip
    write_list("memory://b/list.txt", outside)
    rows = read("memory://b/list.txt")
    assert [row["bytes"] for row in rows] == [None] * len(outside)
    assert all(row["error_code"] == "read_error" and "not allowed" in row["error"] for row in rows)


def test_list_on_disk_reaches_disk_and_known_schemes(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(X)
    write_list(f"{tmp_path}/list.csv", [f"file://{tmp_path}/x.png", f"{tmp_path}/x.png", "memory://x.png", ".", "a\0b"])
    codes = [row["error_code"] for row in read(tmp_path / "list.csv")]
    assert codes == [None, None, "read_error", "read_error", "read_error"]
