"""Readers see the rows of committed units, all of them and no others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jobs import CATEGORIES, FAILED, pending, tables_of, write_images, write_job
from pyarrow.fs import PyFileSystem

from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.manifest import COMMITS, unit_name
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.errors import JobError
from prelabel.schemas.tables import ANNOTATIONS, SEGMENTS, part_name


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(str(tmp_path_factory.mktemp("source")))


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return f"{tmp_path}/labels [1] ü" if request.param == "local" else "memory://labels [1] ü"


def test_finished_job(source: str, output: str) -> None:
    write_job(source, output)
    dataset = open_dataset(output)
    assert dataset.is_complete
    assert dataset.categories == CATEGORIES
    images = dataset.table("images").to_table()
    assert images["image_id"].to_pylist() == list(range(7))
    assert images.filter(pc.equal(images["status"].cast("string"), "failed"))["image_id"].to_pylist() == [FAILED]
    assert dataset.table("annotations").to_table()["image_id"].to_pylist() == [1, 2, 2, 5, 5]


def test_batches_are_the_table_in_order(source: str, output: str) -> None:
    dataset = write_job(source, output, unit_images=1)
    for name in ("images", "annotations"):
        rows = [row for batch in dataset.batches(name) for row in batch.to_pylist()]
        assert rows == dataset.table(name).to_table().to_pylist()
    (batch, *_) = dataset.batches("images", ["key", "image_id"])
    assert batch.schema.names == ["key", "image_id"]


def test_filter_by_category_name(source: str, output: str) -> None:
    annotations = write_job(source, output).table("annotations")
    found = annotations.to_table(filter=(pc.field("category") == "ball") & (pc.field("score") > 0.85))
    assert found["annotation_id"].to_pylist() == [2 * 65536]


def test_parts_without_a_commit_do_not_count(source: str, output: str) -> None:
    write_job(source, output, units=2)
    storage = Storage(output)
    (last,) = pending(storage)
    for name, table in tables_of(last).items():
        storage.put(f"{name}/{part_name(last.number)}", to_parquet(table, {}))
    dataset = open_dataset(output)
    assert dataset.units == [0, 1]
    assert not dataset.is_complete
    assert dataset.table("images").count_rows() == 6


def test_job_without_a_commit_has_no_rows(source: str, output: str) -> None:
    dataset = write_job(source, output, units=0)
    assert dataset.table("images").to_table().num_rows == 0
    assert list(dataset.batches("annotations")) == []


def test_table_that_the_job_did_not_write_is_empty(source: str, output: str) -> None:
    segments = write_job(source, output).table("segments").to_table()
    assert segments.num_rows == 0
    assert segments.schema == SEGMENTS


def test_unknown_table_is_an_error_that_names_the_others(source: str, output: str) -> None:
    with pytest.raises(JobError, match="images, annotations, segments"):
        write_job(source, output).table("pictures")


def test_place_without_a_job_is_an_error(output: str) -> None:
    with pytest.raises(JobError, match="no job"):
        open_dataset(output)


def test_damaged_page_is_an_error_and_not_other_rows(source: str, output: str) -> None:
    dataset = write_job(source, output)
    storage = Storage(output)
    part = f"annotations/{part_name(0)}"
    data = storage.read(part)
    chunk = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(ANNOTATIONS.names.index("score"))
    place = chunk.data_page_offset + chunk.total_compressed_size - 3
    storage.put(part, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(JobError, match=r"(?i)crc|checksum"):
        list(dataset.batches("annotations"))
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        dataset.table("annotations").to_table()


def test_part_that_is_gone_is_an_error_and_not_fewer_rows(source: str, output: str) -> None:
    dataset = write_job(source, output)
    Storage(output).delete(f"images/{part_name(1)}")
    with pytest.raises(JobError, match=part_name(1)):
        list(dataset.batches("images"))


def test_commit_of_a_dataset_that_is_open_does_not_change_it(source: str, output: str) -> None:
    dataset = write_job(source, output)
    Storage(output).delete(f"{COMMITS}/{unit_name(1)}")
    assert dataset.table("images").count_rows() == 7
    assert open_dataset(output).table("images").count_rows() == 4


def test_parts_on_a_disk_are_read_without_python(tmp_path: Path) -> None:
    """What Arrow calls back into swallows the KeyboardInterrupt that it meets there: Ctrl-C would do nothing."""
    labels = write_job(write_images(f"{tmp_path}/images", 2), f"{tmp_path}/labels")
    assert not isinstance(labels.table("images").filesystem, PyFileSystem)
