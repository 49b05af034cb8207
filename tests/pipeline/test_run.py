"""Whole jobs on Ray: what goes in, what comes out, and what survives."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from shards import write_files, write_list, write_parquet, write_tar

from prelabel.pipeline import Job, graph, open_dataset, resume, run, status
from prelabel.pipeline.progress import Progress
from prelabel.pipeline.runner import dry_run
from prelabel.schemas.errors import JobError, ModelError, PrelabelError, SourceError, UserError
from prelabel.schemas.tables import TABLES

HERE = Path(__file__).parent
CHANNELS = {"model": "python:tiny_models:channels", "python_path": str(HERE)}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    os.environ.setdefault("RAY_worker_niceness", "0")
    with graph.cluster(None):
        yield


def test_a_cluster_that_runs_here_is_joined_by_its_address_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def init(address: str, **how: Any) -> None:
        asked.append(address)
        raise ConnectionError("nobody")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    for address in (None, "auto"):
        with pytest.raises(UserError, match="nobody"), graph.cluster(address):
            pass
    assert asked == ["local", "auto"]


def pictures(count: int) -> dict[str, bytes]:
    """Images of noise and of several sizes, by file name."""
    files = {}
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (3 + number % 4, 4 + number % 3, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files[f"picture {number:03d}.png"] = file.getvalue()
    return files


def source_of(folder: Path, count: int = 20) -> str:
    write_files(str(folder), pictures(count))
    return str(folder)


def rows(output: str, table: str) -> list[dict[str, Any]]:
    return open_dataset(output).table(table).to_table().to_pylist()


def files_of(output: Path) -> dict[str, str]:
    """Path -> SHA-256 of everything in the folders of the tables."""
    paths = [path for table in TABLES for path in (output / table).rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def command(*arguments: str, cwd: Path = HERE) -> subprocess.Popen[str]:
    code = "from prelabel.pipeline.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )


def test_a_job_from_images_to_tables(tmp_path: Path) -> None:
    source, output = source_of(tmp_path / "in"), str(tmp_path / "out")
    seen: list[Progress] = []
    summary = run(Job.of(source, output=output, unit_images=6, workers="1", **CHANNELS), seen.append)
    assert (summary.images, summary.labeled, summary.units, summary.committed) == (20, 20, 4, 4)
    assert summary.exit_code == 0
    end = seen[-1]
    assert (end.phase, end.done, end.total, end.failed, end.wanted) == ("label", 20, 20, 0, 1)
    assert (end.committed, end.units) == (4, 4)
    assert {one.phase for one in seen} == {"start", "plan", "label"}
    assert set(summary.timings) == {"read", "decode", "wait", f"predict {CHANNELS['model']}", "rows", "write"}
    images, annotations = rows(output, "images"), rows(output, "annotations")
    assert [row["image_id"] for row in images] == list(range(20))
    assert [row["key"] for row in images] == sorted(pictures(20))
    assert [row["unit"] for row in images] == [number // 6 for number in range(20)]
    assert len(annotations) == summary.annotations == sum(row["num_annotations"] for row in images)
    for row in annotations:
        pixels = np.asarray(Image.open(images[row["image_id"]]["uri"]))
        channel = pixels[:, :, row["category_id"] - 1]
        assert (coco_mask.decode(row["segmentation"]) == (channel > 127)).all()
        assert row["area"] == (channel > 127).sum()
        assert row["score"] == pytest.approx(channel.mean() / 255, abs=1e-6)


def test_every_source_gives_the_same_annotations(tmp_path: Path) -> None:
    files = pictures(12)
    names = list(files)
    folder = source_of(tmp_path / "folder", 12)
    for number in range(3):
        write_tar(f"{tmp_path}/tars/{number}.tar", {name: files[name] for name in names[number * 4 : number * 4 + 4]})
    write_parquet(f"{tmp_path}/table.parquet", files)
    write_list(f"{tmp_path}/list.csv", [f"folder/{name}" for name in names])
    sources = (folder, f"{tmp_path}/tars/{{0..2}}.tar", f"{tmp_path}/table.parquet", f"{tmp_path}/list.csv")
    found = []
    for number, source in enumerate(sources):
        run(Job.of(source, output=f"{tmp_path}/out{number}", unit_images=5, **CHANNELS))
        found.append(rows(f"{tmp_path}/out{number}", "annotations"))
    assert found[0]
    assert all(other == found[0] for other in found[1:])


def test_bad_images_are_rows_in_order_and_cost_nothing_else(tmp_path: Path) -> None:
    good = pictures(1)["picture 000.png"]
    pixel, photo = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1, 1), (255, 0, 0)).save(pixel, "PNG")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(photo, "JPEG")
    files = {
        "a empty.png": b"",
        "b text.jpg": b"not at all an image",
        "c cut.jpg": photo.getvalue()[:800],
        "d pixel.png": pixel.getvalue(),
        'e it\'s "odd"\n 한국어.png': good,
    }
    write_files(str(tmp_path / "in"), files)
    summary = run(Job.of(str(tmp_path / "in"), output=str(tmp_path / "out"), **CHANNELS))
    images = rows(str(tmp_path / "out"), "images")
    assert [row["key"] for row in images] == list(files)
    assert [row["error_code"] for row in images] == ["empty", "not_an_image", "truncated", None, None]
    assert [row["status"] for row in images] == ["failed"] * 3 + ["ok"] * 2
    assert summary.failed == {"empty": 1, "not_an_image": 1, "truncated": 1}
    assert summary.exit_code == 0
    assert {row["image_id"] for row in rows(str(tmp_path / "out"), "annotations")} == {3, 4}


def test_killed_drivers_leave_what_a_whole_run_gives(tmp_path: Path) -> None:
    source = source_of(tmp_path / "in", 60)
    options = ("--model", CHANNELS["model"], "--unit-images", "4")
    run(Job.of(source, output=str(tmp_path / "whole"), unit_images=4, **CHANNELS))
    output = tmp_path / "killed"
    arguments = ("run", source, "--output", str(output), *options)
    for commits in (0, 3, 8):
        process = command(*arguments)
        wait_for(lambda: (output / "_manifest/job.json").exists(), process)
        wait_for(lambda least=commits: len(list((output / "_manifest").glob("commits/*"))) >= least, process)
        process.kill()
        process.communicate()
        arguments = ("resume", str(output))
    assert resume(str(output)).is_complete
    assert files_of(output) == files_of(tmp_path / "whole")
    again = resume(str(output))
    assert not again.worked
    assert again.exit_code == 0


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition():
        if process.poll() is not None:
            assert condition(), process.communicate()[1]
        time.sleep(0.05)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = command("--log-json", "run", source_of(tmp_path / "in"), "-o", str(output), "-m", CHANNELS["model"])
    wait_for(lambda: (output / "_manifest/job.json").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    told = [json.loads(line) for line in said.splitlines()]
    assert {"progress", "interrupted"} == {one["event"] for one in told}
    assert f"prelabel resume {output}" in told[-1]["message"]
    assert told[-1]["exit_code"] == 130
    assert not (output / "_manifest/lock.json").exists()


@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_a_unit_that_fails_is_told_and_can_be_worked_again(tmp_path: Path, fault: str) -> None:
    module = f"faulty_{fault}"
    text = f"import sys\nsys.path.append({str(HERE)!r})\nfrom tiny_models import Faulty\n"
    (tmp_path / f"{module}.py").write_text(f"{text}def build():\n    return Faulty({str(tmp_path)!r})\n")
    (tmp_path / fault).touch()
    output = str(tmp_path / "out")
    model = f"python:{module}:build"
    source = source_of(tmp_path / "in", 3)  # the second is 5 pixels wide
    seen: list[Progress] = []
    summary = run(Job.of(source, output=output, model=model, python_path=str(tmp_path), unit_images=1), seen.append)
    if fault == "raise":
        assert seen[-1].failed_units == 1
        assert (summary.committed, summary.exit_code) == (2, 3)
        assert [(failure["unit"], failure["message"]) for failure in summary.failures] == [(1, "a fault to order")]
        assert not resume(output).worked
        (tmp_path / fault).unlink()
        summary = resume(output, retry_failed=True)
    assert (summary.committed, summary.exit_code) == (3, 0)
    assert summary.failures == []


def test_what_cannot_run_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source, output = source_of(tmp_path / "in", 2), tmp_path / "out"
    (tmp_path / "nothing").mkdir()
    wrong: list[tuple[type[PrelabelError], str, dict[str, Any]]] = [
        (SourceError, "no images", {"source": str(tmp_path / "nothing")}),
        (SourceError, "nothing is at", {"source": str(tmp_path / "absent")}),
        (ModelError, "there is no model", {"model": "torchvision:maskrcn_resnet50_fpn"}),
        (ModelError, "can't", {"task": ["classify"]}),
    ]
    for error, message, change in wrong:
        options = {"source": source, **CHANNELS} | change
        with pytest.raises(error, match=message):
            run(Job.of(options.pop("source"), output=str(output), **options))
    assert not output.exists()


def test_trial_says_how_fast_a_job_will_be_and_writes_nothing(tmp_path: Path) -> None:
    source, output = source_of(tmp_path / "in", 30), tmp_path / "out"
    (tmp_path / "in" / "picture 000 broken.png").touch()
    found = dry_run(Job.of(source, output=str(output), unit_images=7, workers="1", **CHANNELS), trial_images=16)
    trial = found.calibration
    assert (found.images, found.units) == (31, 5)
    assert str(found.pool).startswith("a worker with ")
    assert trial is not None
    assert (trial.images, trial.failed, trial.workers) == (16, 1, 1)
    assert trial.hours == pytest.approx(31 / trial.images_per_second / 3600)
    assert not output.exists()


def test_an_output_in_use_is_left_alone(tmp_path: Path) -> None:
    source, output = source_of(tmp_path / "in", 2), tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").touch()
    with pytest.raises(JobError, match="not empty"):
        run(Job.of(source, output=str(output), **CHANNELS))
    (output / "mine.txt").unlink()
    run(Job.of(source, output=str(output), **CHANNELS))
    with pytest.raises(JobError, match="prelabel resume"):
        run(Job.of(source, output=str(output), **CHANNELS))


def test_resume_refuses_another_job(tmp_path: Path) -> None:
    write_tar(f"{tmp_path}/in.tar", pictures(4))
    output = tmp_path / "out"
    run(Job.of(f"{tmp_path}/in.tar", output=str(output), unit_images=2, **CHANNELS))
    (output / "_manifest/commits/00000001.json").unlink()
    job_file = output / "_manifest/job.json"
    job = job_file.read_text()

    record = json.loads(job)
    record["job"]["labels"]["max_image_pixels"] = 10
    job_file.write_text(json.dumps(record))
    with pytest.raises(JobError, match="configuration"):
        resume(str(output))
    record = json.loads(job)
    record["models"][0]["digest"] = record["fingerprint"] = "other"
    job_file.write_text(json.dumps(record))
    with pytest.raises(JobError, match=r"the model .* changed"):
        resume(str(output))

    job_file.write_text(job)
    write_tar(f"{tmp_path}/in.tar", pictures(40))
    with pytest.raises(SourceError, match="changed since"):
        resume(str(output))
    write_tar(f"{tmp_path}/in.tar", pictures(4))
    assert resume(str(output)).is_complete
    assert status(str(output)).committed == 2


def test_tables_read_with_no_help(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(Job.of(source_of(tmp_path / "in", 5), output=str(output), unit_images=2, **CHANNELS))
    for name in ("images", "annotations"):
        read = ds.dataset(output / name)
        assert read.schema.equals(TABLES[name], check_metadata=False), name
        assert read.count_rows() == len(rows(str(output), name))
        assert b"prelabel.fingerprint" in read.schema.metadata
