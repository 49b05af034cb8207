"""Hostile input ends as a row with the right code, or as one clear line: the table of docs/input.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_images import PIXELS, HostileImage, encoded, hostile_images
from hostile_sources import SOURCES
from outcomes import LABELED, everything_below, outcome_of, outcomes, rows_of
from shards import write_files, write_tar

from prelabel.pipeline import open_dataset

PAGE = Path(__file__).parents[2] / "docs" / "input.md"
PIPELINE_TESTS = Path(__file__).parents[1] / "pipeline"


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_hostile_images_cost_their_neighbours_nothing(kind: str, tmp_path: Path) -> None:
    """All in one source, a good one after each; neighbours end as if they were alone."""
    good = encoded()
    files = {}
    for number, (name, image) in enumerate(hostile_images().items()):
        files[f"{number:03d} {name}.png"] = image.data
        files[f"{number:03d} {name} neighbor.png"] = good
    if kind == "folder":
        write_files(str(tmp_path / "images"), files)
    else:
        write_tar(str(tmp_path / "images.tar"), files)
    source = str(tmp_path / ("images" if kind == "folder" else "images.tar"))
    rows = rows_of(source, tmp_path / "labels", unit_images=100)
    assert not isinstance(rows, str)
    assert len(rows) == len(files)
    found = {row["key"]: row for row in rows}
    assert {found[key]["digest"] for key in files if "neighbor" in key} == {found["000 empty neighbor.png"]["digest"]}
    assert all(outcome_of(row) == LABELED for key, row in found.items() if "neighbor" in key)
    for number, (name, image) in enumerate(hostile_images().items()):
        row = found[f"{number:03d} {name}.png"]
        assert outcome_of(row) in image.outcome, name
        assert (row["error"] is None) == (image.outcome == LABELED)
        assert "\n" not in (row["error"] or "")


@pytest.mark.parametrize("name", SOURCES)
def test_hostile_sources(name: str, tmp_path: Path) -> None:
    case = SOURCES[name]
    (tmp_path / "in").mkdir()
    source = case.make(tmp_path / "in")
    before = everything_below(tmp_path)
    found = outcomes(source, tmp_path / "out", **(case.options or {}))
    if isinstance(case.outcome, str):
        assert isinstance(found, str), found
        assert case.outcome in found
    else:
        assert not isinstance(found, str), found
        assert dict(found) == case.outcome
        assert len(found) == len(case.outcome)
    after = [path for path in everything_below(tmp_path) if not path.startswith("out")]
    assert after == before


def test_hostile_files_that_crashed_other_readers(shared_data: Path, tmp_path: Path) -> None:
    """Pillow's own collection, each beside a good one."""
    files = {}
    for path in sorted((shared_data / "hostile").iterdir()):
        files |= {f"{path.name}.png": path.read_bytes(), f"{path.name} neighbor.png": encoded(PIXELS[:4, :5])}
    write_tar(str(tmp_path / "x.tar"), files)
    found = dict(outcomes(str(tmp_path / "x.tar"), tmp_path / "out"))
    assert list(found) == list(files)
    failed = {key for key, outcome in found.items() if outcome != LABELED}
    assert not any("neighbor" in key for key in failed)
    assert len(failed) <= 20
    assert {found[key] for key in failed} <= {"truncated", "unreadable", "too_large"}


def test_a_real_job_over_all_hostile_images(tmp_path: Path) -> None:
    """Through the command line and Ray: the same outcomes, no traceback, nothing written elsewhere."""
    images = hostile_images()
    write_tar(str(tmp_path / "x.tar"), [(f"{name}.png", image.data) for name, image in images.items()])
    command = ["run", str(tmp_path / "x.tar"), "-o", str(tmp_path / "out"), "-m", "python:tiny_models:channels"]
    done = subprocess.run(
        [sys.executable, "-c", "from prelabel.pipeline.cli import main; main()", *command, "--unit-images", "50"],
        cwd=PIPELINE_TESTS,
        env={**os.environ, "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = open_dataset(str(tmp_path / "out")).table("images").to_table().to_pylist()
    assert [row["key"] for row in rows] == [f"{name}.png" for name in images]
    assert all(outcome_of(row) in images[row["key"].removesuffix(".png")].outcome for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.tar"]


def test_no_image_takes_much_memory() -> None:
    """Of a process that decodes them all; the numbers in their headers would be hundreds of gigabytes."""
    code = (
        "import resource; from hostile_images import hostile_images; from prelabel.operators.images import *\n"
        "images = hostile_images(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for image in images.values():\n"
        "    try: decode(image.data)\n"
        "    except ImageError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(PIPELINE_TESTS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 512 * 1024


def _then(image: HostileImage) -> str:
    return (
        LABELED if image.outcome == LABELED else "row " + " or ".join(f"`{one}`" for one in image.outcome.split(", "))
    )


def test_the_page_and_the_table_say_the_same() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("## Images")[2].partition("## Web servers")[0]
    told = set(re.findall(r"^\| (.+?) \| (.+?) \|$", page, re.MULTILINE)) - {("what", "then"), ("---", "---")}
    images = {(image.what, _then(image)) for image in hostile_images().values()}
    assert told == images | {(source.what, source.then) for source in SOURCES.values()}
    assert len(hostile_images()) + len(SOURCES) >= 150
