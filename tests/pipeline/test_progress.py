"""What is told of a job while it runs: to people on a terminal or in a log, to programs, and to who watches it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import job_of, pending, plan, work, write_images
from rich.console import Console

from prelabel.pipeline import status
from prelabel.pipeline.calibrate import Spread
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.logs import event, json_lines, tell
from prelabel.pipeline.progress import Meter, Progress, Tally, duration
from prelabel.pipeline.sources.base import Shard, Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.summary import Summary, watch
from prelabel.pipeline.terminal import Display, print_summary, progress_bar

LABELING = Progress("label", 1200, 40_000, 3, 2, 80, 1, 7, 8, 0, 12.5, 0.875)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


# Figures


def test_rates_are_those_of_the_last_half_minute(clock: list[float]) -> None:
    seen: list[Progress] = []
    meter = Meter(seen.append, Progress("label", 50, 1050, committed=5, units=105, wanted=2))
    meter.begin(1000)
    clock[0] += 100  # the models load
    images = busy = 0.0
    for second in range(120):
        images, busy = images + (10 if second < 60 else 4), busy + (2 if second < 60 else 1)
        clock[0] += 1
        meter(Tally(int(images), 7, units=3, busy=busy, workers=2))
        if second == 50:
            assert (seen[-1].rate, seen[-1].busy) == (10, 1)
    assert (seen[-1].rate, seen[-1].busy) == (4, 0.5)
    assert (seen[-1].done, seen[-1].failed, seen[-1].committed) == (50 + 600 + 240, 7, 8)
    assert seen[-1].seconds_left == 160 / 4


def test_waves_add_up_and_images_that_were_worked_twice_count_once() -> None:
    seen: list[Progress] = []
    meter = Meter(seen.append, Progress("label", 0, 30, committed=0, units=3))
    for tally in (Tally(25, 2, units=2, workers=1), Tally(10, 1, units=1, workers=1)):
        meter.begin(20 if tally.images == 25 else 10)
        meter(tally)
        meter.end(2 if tally.images == 25 else 3, 0)
    assert [one.done for one in seen] == [0, 20, 20, 20, 30, 30]
    assert (seen[-1].failed, seen[-1].committed, seen[-1].is_over) == (3, 3, True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3900, "1 h 05 min"), (200_000, "2 d 7 h")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def units_of(sizes: list[int]) -> Iterator[Unit]:
    first = 0
    for number, size in enumerate(sizes):
        keys = [str(first + position) for position in range(size)]
        yield Unit(number, Shard("folder", "/a", None), first, keys, np.zeros(size, np.int64), np.ones(size, np.int64))
        first += size


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100))
def test_trial_images_are_spread_over_the_whole_plan(sizes: list[int], wanted: int) -> None:
    spread, total = Spread(wanted), sum(sizes)
    for unit in units_of(sizes):
        spread.add(unit)
    trial = spread.images()
    ids = [unit.first_image_id for unit in trial]
    assert [unit.keys for unit in trial] == [[str(one)] for one in ids]
    assert len(ids) == min(wanted, total)
    assert len(spread.kept) < 2 * wanted
    gaps = np.diff([*ids, total])
    assert ids[0] == 0
    assert (gaps > 0).all()
    assert gaps.max() <= 4 * max(1, total / wanted)


# People


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), width=40)
    with Display(console) as shown:
        for second in range(32):
            clock[0] += 1
            shown(Progress("plan", second) if second < 3 else LABELING)
        shown(Progress("label", 40_000, 40_000, committed=80, units=80))
        shown(Progress("label", 40_000, 40_000, committed=80, units=80, failed=1))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "planning",
        "labeling: 1,200 of 40,000 images, 12.5 images/s, 52 min left, 7 of 8 workers, models busy 88%, "
        "2 of 80 units committed, 1 unit failed, 3 images failed",
        "labeling: 40,000 of 40,000 images, 80 of 80 units committed",
    ]


def test_a_terminal_shows_all_of_it_and_is_left_clean() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Display(console) as shown:
        shown(LABELING)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for fact in ("1,200/40,000", "12.5 images/s", "52 min left", "7 of 8 workers", "models busy 88%", "3 images"):
        assert fact in text
    assert text.endswith("\x1b[2K") or text.endswith("\x1b[1A\x1b[2K")


def test_the_summary_says_what_the_time_went_to() -> None:
    timings = {"read": 2.0, "decode": 50.0, "wait": 1.0, "predict a:b": 7.5, "rows": 1.5, "write": 0.5}
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, Summary("labels", 30, 29, {"empty": 1}, 9, 3, 3, timings=timings))
    rows = [line.split("  ") for line in console.file.getvalue().splitlines()[-6:]]  # type: ignore[attr-defined]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["read, ahead of workers", "2.0", "15.0"],
        ["decode, on their threads", "50.0", "0.6"],
        ["workers waited for images", "1.0", "10%"],
        ["predict a:b", "7.5", "75%", "4.0"],
        ["masks and rows", "1.5", "15%", "20.0"],
        ["write, after workers", "0.5", "60.0"],
    ]


# Programs


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_each_line_is_an_object_whatever_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    with json_lines():
        logging.getLogger("prelabel").warning("versions %s", "differ")
        tell("done", 'two\nlines of "text"', images=3, odd=b"\xff", path=Path("a"))
        print("a name that is no text: \udcff", file=sys.stderr)
        sys.stderr.write("half a line, ")
        Console(stderr=True).print("[red]and the rest")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            event("error", "a bug", logging.CRITICAL, exc_info=True, exit_code=1)
        sys.stderr.write("no end")
    found = told(capsys)
    assert all({"time", "level", "event", "message"} <= set(one) for one in found)
    assert [(one["level"], one["event"]) for one in found[:2]] == [("warning", "log"), ("info", "done")]
    assert found[1] | {"message": 'two\nlines of "text"', "images": 3, "path": "a"} == found[1]
    messages = [one["message"] for one in found if one["event"] == "message"]
    assert messages == ["a name that is no text: \udcff", "half a line, and the rest", "no end"]
    assert "ZeroDivisionError" in found[-2]["traceback"]
    tell("done", "for people")
    event("done", "for programs")
    assert capsys.readouterr().err == "for people\n"


def test_progress_and_failures_are_events(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    failure = {"unit": 3, "error": "RuntimeError", "message": "a fault", "final": True}
    with json_lines(), Display(Console(stderr=True)) as shown:
        meter = Meter(shown, Progress("label", 0, 20, committed=0, units=2))
        meter.begin(20)
        for images in range(1, 20):
            clock[0] += 1
            meter(Tally(images, workers=1, busy=images / 2, failures=(failure,)))
    found = told(capsys)
    assert [one["event"] for one in found] == ["progress", "unit_failed", *["progress"] * 3]
    assert found[1] | {"level": "warning", "unit": 3, "error": "RuntimeError", "reason": "a fault"} == found[1]
    assert found[-1] | {"phase": "label", "total": 20, "rate": 1, "busy": 0.5, "failed_units": 1} == found[-1]


def test_any_long_work_may_have_a_bar(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with progress_bar(100, "rows") as advance:
        for _ in range(20):
            clock[0] += 1
            advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "exporting: 75 of 100 rows, 5.0 rows/s, 5 s left",
        "exporting: 100 of 100 rows, 5.0 rows/s",
    ]


# Who watches


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return job_of(write_images("images"), str(tmp_path / "labels"))


def test_watching_reads_each_commit_once_and_ends_with_the_job(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(job.output)
    plan(storage, job)
    read: list[str] = []
    real = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, name: (read.append(name), real(self, name))[1])
    monkeypatch.setattr("time.sleep", lambda seconds: work(storage, job, pending(storage)[:1]))
    with Lock(storage):
        seen = list(watch(job.output, 2))
    assert [one.committed for one in seen] == [0, 1, 2, 3]
    assert [one.done for one in seen] == [0, 3, 6, 7]
    assert [name for name in read if "commits/" in name] == [f"_manifest/commits/{unit:08d}.json" for unit in range(3)]
    assert replace(seen[-1], runner=None) == status(job.output)


def test_watching_ends_where_nobody_works(job: Any) -> None:
    plan(Storage(job.output), job)
    work(Storage(job.output), job, pending(Storage(job.output))[:1])
    (only,) = watch(job.output, 2)
    assert (only.committed, only.runner, only.seconds_left) == (1, None, None)


def test_a_runner_elsewhere_whose_heart_has_stopped_is_none(
    job: Any, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    storage = Storage(job.output)
    plan(storage, job)
    storage.put("_manifest/lock.json", json.dumps({"owner": "a", "machine": "another", "beat": 1}).encode())
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    seen = list(watch(job.output, 5))
    assert 3 < len(seen) < 12
    assert [one.runner is None for one in seen] == [False] * (len(seen) - 1) + [True]


@pytest.mark.parametrize(
    ("last", "rate"),
    [
        ("02.500", 1 / 2),  # one image two seconds after the second unit; the first is of another night
        ("00.501", 1 / 1.25),  # two workers that began together
    ],
)
def test_rate_is_that_of_the_last_commits(last: str, rate: float, job: Any) -> None:
    storage = Storage(job.output)
    plan(storage, job)
    work(storage, job, pending(storage))
    for unit, time in enumerate(("01:00:00.000", "03:00:00.500", f"03:00:{last}")):
        path = Path(job.output, f"_manifest/commits/{unit:08d}.json")
        commit = json.loads(path.read_bytes()) | {"committed": f"2026-01-01T{time}+00:00"}
        path.write_text(json.dumps(commit | {"timings": {"read": 0.5, "predict a": 1.25}}))
    found = status(job.output)
    assert found.rate == rate
    assert found.timings == {"read": 1.5, "predict a": 3.75}


def test_failed_images_that_stay_so_are_told_and_count() -> None:
    console = Console(file=io.StringIO(), width=200)
    summary = Summary("labels", 30, 29, {"timeout": 1}, 9, 3, 3, kept_units=1)
    print_summary(console, summary)
    assert "1 units could not be worked again" in console.file.getvalue()
    assert "prelabel resume labels --retry-failed" in console.file.getvalue()
    assert summary.exit_code == 3
