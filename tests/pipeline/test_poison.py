"""Images that end or block the process that works on them cost themselves alone, and can be worked again."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from shards import units_of, write_files

from prelabel.operators.images import decode
from prelabel.pipeline import Job, graph, open_dataset, resume, run
from prelabel.pipeline.graph.count import LEAST_JUDGED, Count
from prelabel.pipeline.graph.worker import failure_recorded
from prelabel.pipeline.poison import MOST_PIECES, Suspect, search
from prelabel.pipeline.portions import Portion, Skip, runs_of
from prelabel.pipeline.sources import open_source
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.validate import validate

HERE = Path(__file__).parent
DEAD = Skip("crashed_worker")


# The search


class Trials:
    """Says which portions end a worker, and how many deaths that took."""

    def __init__(self, poison: set[int], chance: int = 0, always: bool = False) -> None:
        self.poison, self.chance, self.always = poison, chance, always
        self.deaths = self.rounds = 0

    def __call__(self, portions: Sequence[Portion]) -> list[Skip | None]:
        self.rounds += 1
        return [self._try(portion) for portion in portions]

    def _try(self, portion: Portion) -> Skip | None:
        dies = self.always or self.chance > 0 or not self.poison.isdisjoint(portion.at_risk)
        self.chance -= 1
        self.deaths += dies * (2 if len(portion) == 1 else 1)
        return DEAD if dies else None


def portion_of(images: int, first: int = 100) -> Portion:
    from prelabel.pipeline.sources.base import Shard

    zeros = np.zeros(images, np.int64)
    return Portion.whole(Unit(3, Shard("folder", "/in", None), first, [f"{k}" for k in range(images)], zeros, zeros))


@pytest.mark.parametrize("poison", [{100}, {355}, {611}, {101, 102}, {100, 300, 301, 302, 611}])
def test_images_are_found_in_a_bounded_number_of_trials(poison: set[int]) -> None:
    suspect, trials = Suspect.of(portion_of(512)), Trials(poison)
    search([suspect], trials)
    assert suspect.found == dict.fromkeys(poison, DEAD)
    assert trials.rounds == 9
    assert trials.deaths <= len(poison) * (8 + 2)


def test_a_unit_of_one_image_is_tried_alone() -> None:
    suspect = Suspect.of(portion_of(1))
    search([suspect], Trials({100}))
    assert suspect.found == {100: DEAD}


def test_what_the_system_kills_by_chance_is_not_blamed_on_images() -> None:
    suspect = Suspect.of(portion_of(64))
    search([suspect], Trials(set(), chance=2))
    assert (suspect.found, suspect.why_not) == ({}, "")


def test_images_that_were_under_way_when_time_ran_out_are_tried_first() -> None:
    suspect, trials = Suspect.of(portion_of(512), [140, 141]), Trials({141})
    search([suspect], trials)
    assert suspect.found == {141: DEAD}
    assert trials.rounds == 1


@pytest.mark.parametrize(("images", "reason"), [(512, f"more than {MOST_PIECES} pieces"), (4, "image dies as well")])
def test_workers_that_die_whatever_they_do_are_not_the_images_fault(images: int, reason: str) -> None:
    suspect, trials = Suspect.of(portion_of(images)), Trials(set(), always=True)
    search([suspect], trials)
    assert suspect.found == {}
    assert reason in suspect.why_not
    assert trials.deaths <= 4 * MOST_PIECES


def test_a_shortage_that_comes_late_is_not_the_images_fault_either() -> None:
    """Of 3 images one is tried alone in the first round, the others in the second."""
    suspect, trials = Suspect.of(portion_of(3)), Trials({101})

    def probe(portions: Sequence[Portion]) -> list[Skip | None]:
        trials.always = trials.rounds == 1
        return trials(portions)

    search([suspect], probe)
    assert suspect.found == {}
    assert "harmless image dies as well" in suspect.why_not


def test_the_control_is_an_image_that_is_looked_at(tmp_path: Path) -> None:
    write_files(str(tmp_path), {"0.png": b"poison"})
    source = open_source(str(tmp_path))
    (unit,) = units_of(source)
    controls: list[Portion] = []

    def probe(portions: Sequence[Portion]) -> list[Skip | None]:
        controls.append(portions[-1])
        return [DEAD, None]

    search([suspect := Suspect.of(Portion.whole(unit))], probe)
    assert suspect.found == {0: DEAD}
    (row,) = controls[0].read(source).to_pylist()
    assert row["error_code"] is None
    assert decode(row["bytes"]).pixels.shape == (3, 480, 640)


def test_images_left_out_are_rows_and_need_not_be_read(tmp_path: Path) -> None:
    write_files(str(tmp_path), {f"{k}.png": b"bytes" for k in range(5)})
    source = open_source(str(tmp_path))
    (unit,) = units_of(source)
    portion = Portion.whole(unit).without({1: Skip("timeout"), 3: Skip("crashed_worker", unread=True)})
    (tmp_path / "3.png").unlink()
    rows = portion.read(source)
    assert rows["image_id"].to_pylist() == [0, 1, 2, 3, 4]
    assert rows["error_code"].to_pylist() == [None, "timeout", None, "crashed_worker", None]
    assert [data and data.as_py() for data in rows["bytes"]][1::2] == [pa.scalar(None, pa.large_binary()).as_py()] * 2
    assert rows["uri"].to_pylist()[1] == f"{tmp_path}/1.png"
    assert list(runs_of([2, 3, 5, 8, 9])) == [(2, 3), (5, 5), (8, 9)]


# When a run ends early


@pytest.mark.parametrize(
    ("most", "images", "failed", "stops"),
    [(3, 5, 3, False), (3, 5, 4, True), ("10%", LEAST_JUDGED - 1, 50, False), ("10%", LEAST_JUDGED, 11, True)],
)
def test_too_many_failed_images_end_a_run(most: int | str, images: int, failed: int, stops: bool) -> None:
    count = Count(graph.Limits(tries=(2, 2), max_failed=most, images=2, failed=1))
    assert count.begin(0, 0)
    count.add(0, 1, 1, 0.0)  # of a worker that dies: it does not count twice
    assert count.begin(0, 0)
    count.add(0, images - 2, failed - 1, 0.0)
    assert count.begin(1, 0) == (not stops)


@pytest.mark.parametrize(("error", "final"), [(OSError("x"), False), (MemoryError(), False), (ValueError("x"), True)])
def test_a_unit_is_given_up_for_what_does_not_pass(error: Exception, final: bool) -> None:
    told: list[dict[str, Any]] = []
    work: Any = SimpleNamespace(output="", counter=SimpleNamespace(fail=SimpleNamespace(remote=told.append)))
    with pytest.raises(type(error)), failure_recorded(work, 3):
        raise error
    assert [(failure["unit"], failure["final"]) for failure in told] == [(3, final)]


# Whole jobs


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    os.environ.setdefault("RAY_worker_niceness", "0")
    with graph.cluster(None):
        yield


POISONOUS = """
import os, sys, time
sys.path.append({here!r})
from pathlib import Path
from prelabel.operators import label
from tiny_models import Channels

decode = label.decode

def deadly(data, *limits):
    if data == b"deadly":
        os.abort()
    return decode(data, *limits)

class Poisonous(Channels):
    def predict(self, images, tasks):
        for image in images:
            if image.shape[1:] == (1, 7):
                time.sleep(1_000)
            with open({folder!r} + "/seen", "a") as seen:
                seen.write("+")
        return super().predict(images, tasks)

def build():
    label.decode = deadly
    return Poisonous()
"""


def png(number: int, height: int = 4, width: int = 5) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def model_in(folder: Path, name: str) -> dict[str, Any]:
    (folder / f"{name}.py").write_text(POISONOUS.format(here=str(HERE), folder=str(folder)))
    return {"model": f"python:{name}:build", "python_path": str(folder), "unit_images": 4}


def table(output: Path, name: str) -> pa.Table:
    return open_dataset(str(output)).table(name).to_table()


def part(output: Path, name: str, unit: int) -> bytes:
    return (output / name / f"part-{unit:08d}.parquet").read_bytes()


def test_poison_costs_itself_and_can_be_worked_again(tmp_path: Path) -> None:
    good = {f"{k}.png": png(k) for k in range(8)}
    bad = good | {"2.png": b"deadly", "5.png": png(5, 1, 7), "6.png": b""}
    write_files(str(tmp_path / "in"), bad)
    options, output = model_in(tmp_path, "poisonous"), tmp_path / "out"
    summary = run(Job.of(str(tmp_path / "in"), output=str(output), image_timeout=8, **options))
    assert summary.failed == {"crashed_worker": 1, "empty": 1, "timeout": 1}
    assert summary.exit_code == 0
    codes = table(output, "images")["error_code"].to_pylist()
    assert codes == [None, None, "crashed_worker", None, None, "timeout", "empty", None]
    assert validate(str(output)).is_proven

    write_files(str(tmp_path / "in"), good)
    (tmp_path / "seen").unlink()
    assert resume(str(output), retry_failed=True).labeled == 8
    assert (tmp_path / "seen").read_text() == "+++"
    assert validate(str(output)).is_proven
    assert not resume(str(output), retry_failed=True).worked

    whole = tmp_path / "whole"
    run(Job.of(str(tmp_path / "in"), output=str(whole), **options))
    for name in ("images", "annotations"):
        for unit in range(2):
            assert part(output, name, unit) == part(whole, name, unit), (name, unit)


def test_too_many_failed_images_can_be_tolerated_later(tmp_path: Path) -> None:
    write_files(str(tmp_path / "in"), {f"{k}.png": b"" for k in range(8)})
    options, output = model_in(tmp_path, "untouched") | {"unit_images": 1}, str(tmp_path / "out")
    summary = run(Job.of(str(tmp_path / "in"), output=output, max_failed=2, **options))
    assert summary.exit_code == 3
    assert 2 < summary.failed_images < 8
    assert summary.failures == []
    summary = resume(output, max_failed="100%")
    assert (summary.failed_images, summary.exit_code) == (8, 0)
