"""Writes tiny sources of every kind, for tests; paths are anything fsspec opens."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prelabel.pipeline.sources import open_source
from prelabel.pipeline.sources.base import Source, SourceOptions, Unit


def tiny_images(count: int = 7) -> dict[str, bytes]:
    """PNG files of different sizes and colors by key, in the order of their keys, some in a folder."""
    images = {}
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (4 + number, 3), (40 * number % 256, 90, 200)).save(file, "PNG")
        images[f"{'sub/' if number % 2 else ''}image-{number}.png"] = file.getvalue()
    return dict(sorted(images.items()))


def write_file(path: str, data: bytes) -> None:
    fs, inner = fsspec.core.url_to_fs(str(path))
    fs.makedirs(fs._parent(inner), exist_ok=True)
    fs.pipe_file(inner, data)


def write_files(folder: str, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_file(f"{folder}/{name}", data)


def tar_bytes(files: Mapping[str, bytes] | Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of members in the given order; a TarInfo stands for itself, as links and folders need."""
    pairs = list(files.items()) if isinstance(files, Mapping) else files
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for name, data in pairs:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: str, files: Mapping[str, bytes] | Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    write_file(path, tar_bytes(files))


def write_table(path: str, table: pa.Table, row_group_size: int = 3) -> None:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=row_group_size)
    write_file(path, file.getvalue())


def write_parquet(path: str, files: Mapping[str, bytes | None], row_group_size: int = 3) -> None:
    """Hugging Face's layout: a struct of bytes and path, called image."""
    images = [{"bytes": data, "path": name} for name, data in files.items()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_table(path, pa.table({"image": pa.array(images, kind)}), row_group_size)


def write_list(path: str, uris: Sequence[str], column: str = "url") -> None:
    """A list of URIs in the format that the path's suffix names: .txt, .csv or .parquet."""
    if path.endswith(".parquet"):
        write_table(path, pa.table({column: pa.array(uris, pa.string())}))
    elif path.endswith(".csv"):
        text = io.StringIO()
        csv.writer(text).writerows([[column], *([uri] for uri in uris)])
        write_file(path, text.getvalue().encode())
    else:
        write_file(path, "".join(f"{uri}\n" for uri in uris).encode())


def write_source(kind: str, folder: str, files: Mapping[str, bytes]) -> str:
    """The same images as a source of any kind; its URL."""
    if kind == "webdataset":
        write_tar(f"{folder}/shard-000.tar", files)
        return f"{folder}/shard-000.tar"
    if kind == "parquet":
        write_parquet(f"{folder}/shard-000.parquet", files)
        return f"{folder}/shard-000.parquet"
    write_files(f"{folder}/images", files)
    if kind == "folder":
        return f"{folder}/images"
    write_list(f"{folder}/list.txt", [f"images/{name}" for name in files])
    return f"{folder}/list.txt"


def units_of(source: Source, size: int | None = None) -> Iterator[Unit]:
    """All units of a source, of at most `size` images each."""
    number = image_id = 0
    for shard in source.shards():
        refs = list(source.index(shard))
        step = size or len(refs) or 1
        for first in range(0, len(refs), step):
            some = refs[first : first + step]
            offsets, sizes = (np.array([getattr(ref, name) for ref in some], np.int64) for name in ("offset", "size"))
            yield Unit(number, shard, image_id, [ref.key for ref in some], offsets, sizes)
            number, image_id = number + 1, image_id + len(some)


def read(url: object, options: SourceOptions | None = None) -> list[dict]:
    """All rows of a source, as its `read` gives them."""
    source = open_source(str(url), options)
    return [row for unit in units_of(source) for row in source.read(unit).to_pylist()]
