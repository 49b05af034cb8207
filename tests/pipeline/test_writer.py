"""Parts as other tools find them: the schema, what a reader can skip, and what a damaged page does."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from jobs import CATEGORIES, HEIGHT, WIDTH, annotation_row, ring, write_images, write_job
from pycocotools import mask as coco_mask

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.tables import ANNOTATIONS, TABLES

BBOX = "struct<x: float not null, y: float not null, width: float not null, height: float not null>"
SEGMENTATION = "struct<size: fixed_size_list<item: int32>[2], counts: string>"
NAME = "dictionary<values=string, indices=int32, ordered=0>"
IMAGES_TEXT = f"""\
image_id: int64 not null
key: string not null
uri: string not null
shard: string not null
unit: int32 not null
width: int32
height: int32
orientation: int8
format: string
num_bytes: int64
digest: string
status: {NAME} not null
error_code: string
error: string
num_annotations: int32 not null
labels: list<item: struct<category_id: int32 not null, category: string not null, score: float not null>>"""
ANNOTATIONS_TEXT = f"""\
annotation_id: int64 not null
image_id: int64 not null
category_id: int32 not null
category: {NAME} not null
score: float not null
bbox: {BBOX} not null
area: double not null
segmentation: {SEGMENTATION}
keypoints: list<item: float>
iscrowd: bool not null
model: {NAME} not null"""
SEGMENTS_TEXT = f"""\
segment_id: int32 not null
image_id: int64 not null
category_id: int32 not null
category: {NAME} not null
isthing: bool not null
score: float
area: int64 not null
bbox: {BBOX} not null
segmentation: {SEGMENTATION} not null
annotation_id: int64
kind: {NAME} not null
model: {NAME} not null"""


def as_text(schema: pa.Schema) -> str:
    return "\n".join(str(field).replace("pyarrow.Field<", "").removesuffix(">") for field in schema)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("job")
    return write_job(write_images(f"{folder}/images"), f"{folder}/labels")


def parts(labels: LabelDataset, table: str) -> list[Path]:
    return sorted(Path(labels.url, table).iterdir())


def many_rows(count: int = 20_000) -> pa.Table:
    """Annotations whose scores fall and whose categories come in runs."""
    rows = [annotation_row(0, 0) | {"score": 1 - row / count, "annotation_id": row} for row in range(count)]
    for row in rows[: count // 2]:
        row |= {"category_id": 2, "category": "ball"}
    for row in rows[count // 2 :]:
        row |= {"category_id": 5, "category": "leaf"}
    return pa.Table.from_pylist(rows, schema=ANNOTATIONS)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "part.parquet"
    path.write_bytes(to_parquet(many_rows(), {}))
    return path


@pytest.mark.parametrize(
    ("table", "expected"), [("images", IMAGES_TEXT), ("annotations", ANNOTATIONS_TEXT), ("segments", SEGMENTS_TEXT)]
)
def test_tables_are_those_of_the_design(table: str, expected: str) -> None:
    assert as_text(TABLES[table]) == expected
    written = pq.read_schema(pa.BufferReader(to_parquet(TABLES[table].empty_table(), {})))
    assert written.equals(TABLES[table])


def test_each_file_says_what_it_is(labels: LabelDataset) -> None:
    for part in parts(labels, "images") + parts(labels, "annotations"):
        metadata = pq.read_schema(part).metadata
        assert metadata[b"prelabel.schema_version"] == b"1"
        assert metadata[b"prelabel.fingerprint"].decode() == labels.record.fingerprint
        assert metadata[b"prelabel.categories"].decode() == CATEGORIES.to_json()


def test_same_rows_give_the_same_bytes_however_they_came() -> None:
    rows = many_rows(50)
    pieces = [pa.Table.from_pylist(rows.slice(k, 1).to_pylist(), schema=ANNOTATIONS) for k in range(50)]
    assert to_parquet(pa.concat_tables(pieces), {"a": "b"}) == to_parquet(rows, {"a": "b"})


def test_column_chunks_have_what_readers_need_to_skip(large: Path) -> None:
    metadata = pq.ParquetFile(large).metadata
    assert metadata.num_row_groups == 5
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
        for chunk in chunks:
            assert chunk.compression == "ZSTD"
            assert chunk.has_offset_index
            assert chunk.has_column_index
            assert chunk.is_stats_set
        by_name = {chunk.path_in_schema: chunk.statistics for chunk in chunks}
        assert by_name["bbox.width"].min == 14
        found = {by_name["category"].min, by_name["category"].max}
        assert found == [{"ball"}, {"ball"}, {"ball", "leaf"}, {"leaf"}, {"leaf"}][group]


@pytest.mark.parametrize(
    ("where", "groups", "rows"),
    [
        (pc.field("score") > 0.9, 1, 2000),
        (pc.field("category_id") == 5, 3, 10_000),
        ((pc.field("category_id") == 2) & (pc.field("score") < 0.55), 1, 999),
        (pc.field("bbox", "width") > 100, 0, 0),
    ],
    ids=str,
)
def test_filters_skip_row_groups(large: Path, where: pc.Expression, groups: int, rows: int) -> None:
    """Not by a category's name: pyarrow 26 takes no statistics of a dictionary column, as DuckDB and Polars do."""
    dataset = ds.dataset(large)
    assert sum(len(fragment.split_by_row_group(where)) for fragment in dataset.get_fragments()) == groups
    assert dataset.count_rows(filter=where) == rows


def test_flipped_bits_in_a_page_are_noticed(large: Path, tmp_path: Path) -> None:
    data = large.read_bytes()
    group = pq.ParquetFile(large).metadata.row_group(2)
    damaged = tmp_path / "part.parquet"
    for number in range(group.num_columns):
        chunk = group.column(number)
        begin = chunk.dictionary_page_offset or chunk.data_page_offset
        place = begin + chunk.total_compressed_size - 2
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(OSError, match=r"(?i)checksum|crc"):
            pq.ParquetFile(damaged, page_checksum_verification=True).read()


# Other tools, with no help from this package


def test_pyarrow_reads_a_finished_job(labels: LabelDataset) -> None:
    annotations = ds.dataset(f"{labels.url}/annotations").to_table()
    images = ds.dataset(f"{labels.url}/images").to_table()
    assert images["image_id"].to_pylist() == list(range(7))
    assert annotations.schema.equals(ANNOTATIONS)
    assert annotations.equals(labels.table("annotations").to_table())


def test_masks_go_straight_into_pycocotools(labels: LabelDataset) -> None:
    rows = ds.dataset(f"{labels.url}/annotations").to_table().to_pylist()
    for row in rows:
        mask = coco_mask.decode(row["segmentation"])
        assert mask.shape == (HEIGHT, WIDTH)
        assert (mask == ring(row["annotation_id"] % 65536)).all()
        assert row["area"] == mask.sum()
        assert [row["bbox"][side] for side in ("x", "y", "width", "height")] == coco_mask.toBbox(
            row["segmentation"]
        ).tolist()


def test_duckdb_reads_a_finished_job(labels: LabelDataset) -> None:
    query = f"""
        SELECT category, count(*), max(bbox.width), any_value(segmentation.counts)
        FROM read_parquet('{labels.url}/annotations/*.parquet') JOIN read_parquet('{labels.url}/images/*.parquet')
        USING (image_id) WHERE status = 'ok' AND score > 0.85 GROUP BY category ORDER BY category"""
    counts = annotation_row(0, 0)["segmentation"]["counts"]
    assert duckdb.sql(query).fetchall() == [("ball", 1, 14.0, counts), ("leaf", 2, 14.0, counts)]


def test_polars_reads_a_finished_job(labels: LabelDataset) -> None:
    annotations = pl.scan_parquet(f"{labels.url}/annotations/*.parquet")
    best = annotations.filter((pl.col("score") > 0.85) & (pl.col("category") == "leaf"))
    found = best.select("image_id", pl.col("bbox").struct.field("width"), "segmentation").collect()
    assert found.select("image_id", "width").rows() == [(1, 14.0), (5, 14.0)]
    assert found["segmentation"].struct.field("size").to_list() == [[HEIGHT, WIDTH]] * 2
