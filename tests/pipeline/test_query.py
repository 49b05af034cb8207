"""SQL over the committed parts: the right rows, in every format, and no way to anything else."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jobs import annotation_row, files_of, pending, ring, tables_of, write_images, write_job

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query import CommittedParts, ask, batches_of, connect, query
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.errors import JobError, UserError
from prelabel.schemas.tables import TABLES, part_name

ONE_PART = f"parts://annotations/{part_name(0)}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(str(tmp_path_factory.mktemp("source")))


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return f"{tmp_path}/labels [1] 'ü*" if request.param == "local" else "memory://labels [1] 'ü*"


@pytest.fixture(scope="module")
def labels(source: str, tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_job(source, str(tmp_path_factory.mktemp("job") / "labels"))


@pytest.fixture
def answer(labels: LabelDataset, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., bytes]:
    """What a query writes to stdout."""

    def call(sql: str, *arguments: Any) -> bytes:
        query(labels, sql, *arguments)
        return capfdbinary.readouterr().out

    return call


# The views


def test_views_are_the_tables(source: str, output: str) -> None:
    dataset = write_job(source, output)
    with connect(dataset) as connection:
        for name in TABLES:
            assert ask(connection, f"FROM {name}").columns == TABLES[name].names
        found = ask(connection, "FROM annotations").to_arrow_table().to_pylist()
        assert found == dataset.table("annotations").to_table().to_pylist()
        assert ask(connection, "SELECT count(*) FROM images").fetchall() == [(7,)]
        assert ask(connection, "FROM segments UNION ALL BY NAME FROM proposals").fetchall() == []


def test_only_committed_parts_count(source: str, output: str) -> None:
    dataset = write_job(source, output, units=2)
    (last,) = pending(dataset.storage)
    name = f"images/{part_name(last.number)}"
    dataset.storage.put(name, to_parquet(tables_of(last)["images"], {}))
    with connect(dataset) as connection:
        assert ask(connection, "SELECT count(*) FROM images").fetchall() == [(6,)]
        with pytest.raises(UserError, match="No files found"):
            ask(connection, f"FROM read_parquet('parts://{name}')")


def test_job_without_a_commit_has_no_rows(source: str, output: str) -> None:
    with connect(write_job(source, output, units=0)) as connection:
        assert ask(connection, "SELECT count(*), max(bbox.x) FROM annotations").fetchall() == [(0, None)]


def test_threads_share_the_views(source: str, output: str) -> None:
    with connect(write_job(source, output)) as connection, connection.cursor() as cursor:
        assert ask(cursor, "SELECT count(*) FROM annotations").fetchall() == [(5,)]
        with pytest.raises(UserError, match="disabled"):
            ask(cursor, "FROM read_text('/etc/hostname')")


def test_filter_leaves_parts_unread(source: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    opened = CommittedParts.open

    def noting(self: CommittedParts, path: str, *arguments: Any) -> Any:
        part = opened(self, path, *arguments)
        fetch = part.read
        monkeypatch.setattr(part, "read", lambda size: read.append(path) or fetch(size))
        return part

    monkeypatch.setattr(CommittedParts, "open", noting)
    with connect(write_job(source, output, unit_images=1)) as connection:
        ask(connection, "SELECT max(score) FROM annotations").fetchall()  # all footers are known from here on
        read.clear()
        assert ask(connection, "SELECT count(score) FROM annotations WHERE image_id = 5").fetchall() == [(2,)]
    assert set(read) == {f"parts://annotations/{part_name(5)}"}


@pytest.mark.parametrize("part", [0, 1])
def test_part_that_is_gone_is_an_error_and_not_fewer_rows(source: str, output: str, part: int) -> None:
    dataset = write_job(source, output)
    dataset.storage.delete(f"annotations/{part_name(part)}")
    with pytest.raises(JobError, match=f"{part_name(part)}.*put it back"):
        query(dataset, "SELECT sum(score) FROM annotations", "csv")


def test_damaged_part_is_an_error(source: str, output: str) -> None:
    dataset = write_job(source, output)
    dataset.storage.put(f"annotations/{part_name(1)}", b"PAR1" + bytes(100))
    with pytest.raises(JobError, match=f"{part_name(1)}.*prelabel validate"):
        query(dataset, "SELECT sum(score) FROM annotations", "csv")


# What SQL can't do

FORBIDDEN = [
    "COPY (SELECT 1) TO '{place}'",
    "COPY (SELECT 1) TO '{part}' (USE_TMP_FILE false)",
    "WITH a AS (COPY (SELECT 1) TO '{place}') FROM a",
    "WITH a AS (COPY (SELECT 1) TO '{part}' (USE_TMP_FILE false)) FROM a",
    "FROM query('WITH a AS (COPY (SELECT 1) TO ''{place}'') FROM a')",
    "EXPORT DATABASE '{place}'",
    "ATTACH '{place}'",
    "ATTACH ':memory:' AS other",
    "CREATE TABLE t AS SELECT 1",
    "DROP VIEW images",
    "INSERT INTO images VALUES (1)",
    "WITH a AS (DELETE FROM images RETURNING *) FROM a",
    "SELECT 1; DROP VIEW images",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "CALL pragma_version()",
    pytest.param(
        "FROM enable_logging(storage := 'file', storage_path := '{place}')",
        marks=pytest.mark.skipif(duckdb.__version__ < "2", reason="DuckDB 1 accepts it, and then can't write the file"),
    ),
    "FROM '/etc/passwd'",
    "FROM read_csv('/etc/passwd')",
    "FROM read_text('/etc/passwd')",
    "FROM read_blob('file:///etc/passwd')",
    "FROM read_json('/etc/passwd')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM glob('/etc/*')",
    "FROM read_parquet('{file}')",
    "FROM parquet_metadata('{file}')",
    "FROM read_parquet('{folder}/annotations/*.parquet')",
    "FROM read_csv('https://example.com/a.csv')",
    "FROM read_parquet('s3://bucket/a.parquet')",
    "FROM sqlite_scan('{place}', 't')",
    "FROM variable_of_python",
    "SELECT getenv('HOME')",
    "",
    "SELECT 'ü",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_nothing_else_can_be_reached(labels: LabelDataset, tmp_path: Path, sql: str) -> None:
    variable_of_python = pa.table({"secret": [1]})
    before = files_of(labels.url)
    place, file = tmp_path / "place", f"{labels.url}/annotations/{part_name(0)}"
    for part in (file, ONE_PART):
        asked = sql.format(place=place, part=part, file=file, folder=labels.url)
        with pytest.raises(UserError) as caught:
            query(labels, asked, "csv")
        assert "\n" not in str(caught.value)
    assert files_of(labels.url) == before
    assert not place.exists()
    assert len(variable_of_python) == 1


def test_python_users_have_their_own_files_and_variables_too(labels: LabelDataset, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("image_id,verdict\n2,accept\n")
    mine = pa.table({"image_id": [2]})
    connection = labels.duckdb()
    joined = f"SELECT count(*) FROM annotations JOIN '{tmp_path}/mine.csv' USING (image_id) JOIN mine USING (image_id)"
    assert connection.sql(joined).fetchall() == [(2,)]
    assert len(mine) == 1
    with pytest.raises(Exception, match="to be written"):
        connection.sql(f"COPY (SELECT 1) TO '{ONE_PART}'")


def test_connection_that_is_left_open_says_nothing_at_exit(labels: LabelDataset) -> None:
    code = "import sys; from prelabel.pipeline import open_dataset; c = open_dataset(sys.argv[1]).duckdb(); print(c)"
    done = subprocess.run([sys.executable, "-c", code, labels.url], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# Errors


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT scroe FROM annotations", 'Referenced column "scroe" not found.*"score"'),
        ("SELEC 1", "syntax error"),
        ("SELECT error('no') FROM annotations", "no"),
        ("SELECT 'x'::INT", "Could not convert"),
        ("SELECT 1; SELECT 2", "single SELECT"),
        ("EXPLAIN SELECT 1", "single SELECT"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "table"])
def test_error_is_one_line_of_duckdb(labels: LabelDataset, sql: str, message: str, form: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        query(labels, sql, form)
    assert "\n" not in str(caught.value)


def test_file_is_not_left_half_written(labels: LabelDataset, tmp_path: Path) -> None:
    late = "SELECT CASE WHEN i > 90_000 THEN error('late') ELSE i END FROM range(100_000) AS t(i)"
    for form in ("csv", "json", "parquet", "arrow"):
        with pytest.raises(UserError, match="late"):
            query(labels, late, to=f"{tmp_path}/answer.{form}")
    assert list(tmp_path.iterdir()) == []


def test_formats_that_do_not_suit(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--format csv\|json\|parquet\|arrow"):
        query(labels, "SELECT 1", to=f"{tmp_path}/answer.xlsx")
    with pytest.raises(UserError, match="a table is for the terminal"):
        query(labels, "SELECT 1", "table", to=f"{tmp_path}/answer.txt")
    with pytest.raises(UserError, match="cast the column"):
        query(labels, "SELECT INTERVAL 2 DAYS AS i", to=f"{tmp_path}/answer.parquet")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler: a shell's background jobs are born deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_is_heard_while_duckdb_works(labels: LabelDataset) -> None:
    endless = "SELECT max(hash(i)) FROM range(1_000_000_000_000_000) AS t(i)"
    for form in ("csv", "table"):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            query(labels, endless, form)


# Formats

EVERYTHING = """
SELECT key, category, score, bbox, segmentation
FROM annotations JOIN images USING (image_id)
ORDER BY annotation_id
"""


def test_csv(answer: Callable[..., bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(answer(EVERYTHING).decode())))
    assert [row["category"] for row in rows] == ["leaf", "ball", "leaf", "leaf", "ball"]
    assert rows[0]["score"] == "0.9"
    assert json.loads(rows[0]["segmentation"]) == annotation_row(1, 0)["segmentation"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_text_is_no_formula(answer: Callable[..., bytes], text: str) -> None:
    written = answer(f"SELECT '{text}' AS text, -1 AS number, ['{text}'] AS nested, 'a=b' AS plain", "csv").decode()
    (row,) = csv.DictReader(io.StringIO(written, newline=""))
    assert row["text"] == f"'{text}"
    assert (row["number"], row["plain"]) == ("-1", "a=b")
    assert json.loads(row["nested"]) == [text]


def test_json_is_one_array(answer: Callable[..., bytes]) -> None:
    assert json.loads(answer(EVERYTHING, "json"))[0]["segmentation"] == annotation_row(1, 0)["segmentation"]
    odd = r"""
        SELECT sum(i) AS whole, 'nan'::DOUBLE AS nan, '\xC3\xA9'::BLOB AS bytes, 1.5 AS decimal, 2**70 AS big,
            NULL AS none
        FROM range(3) AS t(i)
    """
    (row,) = json.loads(answer(odd, "json"))
    assert row == {"whole": 3, "nan": None, "bytes": "c3a9", "decimal": 1.5, "big": 2.0**70, "none": None}
    assert json.loads(answer("FROM images WHERE false", "json")) == []


def test_parquet_and_arrow(answer: Callable[..., bytes], labels: LabelDataset, tmp_path: Path) -> None:
    query(labels, EVERYTHING, to=f"{tmp_path}/answer.parquet")
    table = pq.read_table(f"{tmp_path}/answer.parquet")
    assert pa.ipc.open_stream(answer(EVERYTHING, "arrow")).read_all().equals(table)
    assert pq.read_table(io.BytesIO(answer(EVERYTHING, "parquet"))).equals(table)
    assert table["segmentation"][0].as_py() == annotation_row(1, 0)["segmentation"]


def test_file_on_a_bucket(labels: LabelDataset) -> None:
    query(labels, "SELECT count(*) AS n FROM images", to="memory://answers/count.csv")
    assert MemoryFileSystem().cat_file("/answers/count.csv") == b'"n"\n7\n'


def test_answer_comes_in_batches(labels: LabelDataset) -> None:
    with connect(labels) as connection:
        _, batches = batches_of(connection, ask(connection, "FROM range(1_000_000_000_000)"))
        assert sum(len(next(batches)) for _ in range(3)) < 100_000


# On a terminal


def test_table(answer: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = answer(
        "SELECT key, category FROM annotations JOIN images USING (image_id) ORDER BY 1, annotation_id", "table", None, 2
    ).decode()
    assert "│ image-2.png │ leaf     │" in shown
    assert "first 2 of 5 rows" in shown
    assert "1 row\n" in answer("SELECT 1 AS one", "table").decode()
    assert "0 rows" in answer("FROM segments", "table").decode()


def test_table_with_long_and_hostile_cells(answer: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = answer(r"SELECT {'counts': repeat('0', 5000)} AS rle, chr(27) || '[31m[red]' AS sly", "table").decode()
    assert r"\x1b[31m[red]" in shown
    assert "{counts: 0000" in shown
    assert "…" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_table_far_too_wide_has_a_column_to_a_line(answer: Callable[..., bytes], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = answer("FROM annotations", "table", None, 1).decode()
    assert all(
        any(line.startswith(f"│ {name} ") for line in shown.splitlines()) for name in TABLES["annotations"].names
    )
    assert max(map(len, shown.splitlines())) <= 80


# Python


def test_polars_frames(source: str, output: str) -> None:
    pl = pytest.importorskip("polars")
    dataset = write_job(source, output)
    frame = dataset.polars("annotations")
    assert frame.filter(pl.col("score") > 0.85).select("image_id").collect()["image_id"].to_list() == [1, 2, 5]
    assert dataset.polars("segments").collect().shape == (0, len(TABLES["segments"]))


def test_polars_that_is_not_there(labels: LabelDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UserError, match="pip install polars"):
        labels.polars("images")


def test_rows_and_masks_of_an_image(source: str, output: str) -> None:
    dataset = write_job(source, output, unit_images=2, units=3)
    for image_id in range(-1, 8):
        expected = [annotation_row(image_id, rank) for rank in range(image_id % 3) if image_id in (1, 2, 5)]
        found = dataset.rows("annotations", image_id)
        assert found["annotation_id"].to_pylist() == [row["annotation_id"] for row in expected]
        assert len(dataset.rows("images", image_id)) == (0 <= image_id < 6)
        masks = dataset.masks(image_id)
        assert list(masks) == [row["annotation_id"] for row in expected]
        assert all(np.array_equal(mask, ring(rank)) for rank, mask in enumerate(masks.values()))
    assert dataset.rows("annotations", 7).schema == TABLES["annotations"]
    assert dataset.rows("proposals", 2).schema == TABLES["proposals"]
