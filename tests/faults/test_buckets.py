"""Jobs in a bucket: the S3 protocol over loopback (moto's server), with faults to order in between."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import Proxy, environment, now_and_then, proxy, s3_server
from click.testing import CliRunner
from jobs import files_of, job_of, write_images
from made_up import go_on, without_ray
from simulated import told

from prelabel.pipeline import runner
from prelabel.pipeline.cli.tables import export
from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.lock import LOCK, Lock
from prelabel.pipeline.query import query
from prelabel.pipeline.storage import Storage, writing
from prelabel.pipeline.validate import validate
from prelabel.schemas.errors import JobError, PrelabelError

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def server(port: int, hasty: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the server; its `choose` may be set."""
    with proxy(port) as server, without_ray():
        for name, value in environment(server.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(server: Proxy) -> str:
    url = f"s3://labels-{next(NUMBERS)}"
    s3fs.S3FileSystem().mkdir(url)
    return url


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(str(tmp_path_factory.mktemp("images")))


@pytest.fixture
def expected(source: str, tmp_path: Path, server: Proxy) -> dict[str, Any]:
    """The tables of the job on a disk."""
    go_on(source, f"{tmp_path}/labels")
    return tables_of(f"{tmp_path}/labels")


def tables_of(url: str) -> dict[str, Any]:
    return {name: data for name, data in told(files_of(url)).items() if "/_manifest/" not in name}


def assert_whole(url: str, expected: dict[str, Any]) -> None:
    found = validate(url)
    assert found.is_proven, list(found.lines(5))
    assert found.committed == found.units
    assert tables_of(url) == expected


def test_a_job_in_a_bucket_is_the_one_on_a_disk(
    source: str, bucket: str, server: Proxy, expected: dict[str, Any], tmp_path: Path
) -> None:
    url = f"{bucket}/two/labels"
    assert go_on(source, url).is_complete
    assert not go_on(source, url).worked
    assert_whole(url, expected)
    with pytest.raises(JobError, match="holds a job already"):
        runner.run(job_of(source, url))
    result = CliRunner().invoke(export, ["coco", url, "--to", f"{tmp_path}/labels.json"], standalone_mode=False)
    assert result.exception is None
    assert len(json.loads((tmp_path / "labels.json").read_bytes())["annotations"]) == 5
    query(open_dataset(url), "SELECT count(*) FROM annotations", "csv", f"{tmp_path}/count.csv")
    assert (tmp_path / "count.csv").read_text().split()[1] == "5"
    assert open_dataset(url).table("images").count_rows() == 7
    copies = [path for method, path in server.requests if method == "PUT" and "copy" in path]
    assert not copies, "there is no rename on buckets"
    puts = [path for method, path in server.requests if method == "PUT" and "/images/" in path]
    assert len(puts) == len(set(puts)) == 3, "a part is one put"


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_fails_now_and_then_costs_nothing(
    source: str, bucket: str, server: Proxy, expected: dict[str, Any], seed: int
) -> None:
    server.choose = now_and_then(seed, 0.1, ("503", "reset", "lost"))
    assert go_on(source, bucket).is_complete
    assert_whole(bucket, expected)
    assert server.faults.total() > server.faults[""], "no fault came"


def test_a_server_that_is_down_for_good_is_one_line_and_the_job_goes_on_later(
    source: str, bucket: str, server: Proxy, expected: dict[str, Any]
) -> None:
    parts = itertools.count()
    server.choose = lambda method, path: "503" if "/images/" in path and next(parts) else ""
    summary = go_on(source, bucket)
    assert (summary.committed, summary.exit_code) == (1, 3)
    assert {failure["error"] for failure in summary.failures} == {"OSError"}
    server.choose = lambda method, path: "503"
    with pytest.raises(PrelabelError, match=r"can't read s3://labels-.*try again later") as caught:
        validate(bucket)
    assert "\n" not in str(caught.value)
    server.choose = lambda method, path: ""
    assert go_on(source, bucket).is_complete
    assert_whole(bucket, expected)


def test_a_refusal_names_the_object_and_shows_no_secret(source: str, bucket: str, server: Proxy) -> None:
    go_on(source, bucket)
    server.choose = lambda method, path: "deny"
    for door in (open_dataset, validate, lambda url: runner.run(job_of(source, url))):
        before = len(server.requests)
        with pytest.raises(JobError, match=rf"can't read {bucket}: labels-\d+.*(Access Denied|Forbidden)") as caught:
            door(bucket)
        assert environment("")["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
        assert len(server.requests) - before <= 2, "a refusal is not asked again"


def test_credentials_are_nowhere_in_a_job(source: str, bucket: str) -> None:
    go_on(source, bucket)
    kept = b"".join(files_of(bucket).values())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment("")[name].encode() not in kept
    with pytest.raises(PrelabelError, match="holds a secret") as caught:
        go_on(source, f"s3://someone:a-secret@{bucket[5:]}/labels")
    assert "a-secret" not in str(caught.value)


def test_of_two_that_lock_at_once_one_does(bucket: str) -> None:
    for number in range(10):
        at_once, got = threading.Barrier(2), []
        storages = [Storage(f"{bucket}/{number}") for _ in range(2)]

        def race(storage: Storage, at_once: threading.Barrier = at_once, got: list = got) -> None:
            at_once.wait()
            got.append(storage.create(LOCK, str(id(storage)).encode()))

        threads = [threading.Thread(target=race, args=(storage,)) for storage in storages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False, True]


def test_a_lock_whose_reply_is_lost_is_ones_own(bucket: str, server: Proxy) -> None:
    server.choose = lambda method, path: "lost" if method == "PUT" and server.faults["lost"] == 0 else ""
    with Lock(Storage(bucket)) as lock:
        lock.check()
    assert server.faults["lost"] == 1
    assert Storage(bucket).names("_manifest") == []


def test_what_another_machine_has_written_is_seen_at_once(bucket: str) -> None:
    storage, other = Storage(bucket), s3fs.S3FileSystem(skip_instance_cache=True)
    storage.put("_manifest/job.json", b"1")
    assert storage.names("_manifest") == ["job.json"]
    other.pipe_file(f"{bucket}/{LOCK}", b"theirs")
    assert storage.read(LOCK) == b"theirs"
    assert not storage.create(LOCK, b"mine")


def test_a_stalled_read_times_out_and_is_asked_for_again(bucket: str, server: Proxy, monkeypatch: Any) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.5)
    storage = Storage(bucket)
    storage.put("part", b"rows")
    server.choose = lambda method, path: "stall" if method == "GET" and server.faults["stall"] == 0 else ""
    assert storage.read("part") == b"rows"
    assert server.faults["stall"] == 1


def test_an_upload_in_pieces_that_fails_leaves_nothing(bucket: str, server: Proxy) -> None:
    server.choose = lambda method, path: "deny" if "partNumber=2" in path else ""
    with pytest.raises(JobError, match=r"can't write .*Access Denied"), writing(f"{bucket}/labels.json") as out:
        out.truncate(101 << 20)
    server.choose = lambda method, path: ""
    assert files_of(bucket) == {}
    uploads = s3fs.S3FileSystem().call_s3("list_multipart_uploads", Bucket=bucket[5:])
    assert not uploads.get("Uploads")
