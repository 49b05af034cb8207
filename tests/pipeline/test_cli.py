"""The command line as its users meet it: exit codes, one clear line for a mistake, a traceback for a bug."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from jobs import job_of, pending, work, write_images, write_job

from prelabel.pipeline import Summary, cli, runner
from prelabel.pipeline.calibrate import Calibration
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.pool import Pool
from prelabel.pipeline.storage import Storage
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.job import Job


class Ended(NamedTuple):
    code: object
    out: str
    err: str


Prelabel = Callable[..., Ended]


@pytest.fixture
def prelabel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Prelabel]:
    """Runs a command in an empty folder, with no PRELABEL_ variables."""
    for name in [name for name in os.environ if name.startswith("PRELABEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["prelabel", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(ended.value.code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were to be run; none is."""
    asked: list[Job] = []

    def run(job: Job, progress: object) -> Summary:
        asked.append(job)
        return summary(job.output)

    monkeypatch.setattr(runner, "run", run)
    return asked


def summary(output: str, failed: int = 0, **other: Any) -> Summary:
    codes = {"truncated": failed} if failed else {}
    counts = {"images": 9, "labeled": 9 - failed, "failed": codes, "annotations": 20, "units": 1, "committed": 1}
    return Summary(output=output, **counts | other)


def is_one_line(ended: Ended) -> bool:
    return ended.err.count("\n") == 1 and ended.err.startswith("prelabel: ") and ended.out == ""


GIVEN = ("run", "images", "--output", "labels", "--model", "scenes:maskrcnn")


# Help


@pytest.mark.parametrize("command", [None, *cli.cli.commands])
def test_help(prelabel: Prelabel, command: str | None) -> None:
    ended = prelabel(*([command] if command else []), "--help")
    assert ended.code == 0
    assert "Usage: prelabel" in ended.out
    for name in cli.cli.commands if command is None else ():
        assert name in ended.out


@pytest.mark.parametrize("command", cli.cli.commands)
def test_every_option_is_explained(command: str) -> None:
    for parameter in cli.cli.commands[command].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name


def test_version(prelabel: Prelabel) -> None:
    assert prelabel("--version").out.startswith("prelabel")


# Where a value comes from


def test_command_line_wins_then_environment_then_file(
    prelabel: Prelabel, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"score-threshold": 0.1, "unit_images": 1, "limit": 1, "batch-size": 1, "workers": 2}
    Path("job.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("PRELABEL_UNIT_IMAGES", "2")
    monkeypatch.setenv("PRELABEL_LIMIT", "2")
    assert prelabel(*GIVEN, "--config", "job.yaml", "--limit", 3).code == 0
    (job,) = jobs
    assert job.labels.models[0].score_threshold == 0.1
    assert (job.labels.unit_images, job.labels.limit) == (2, 3)
    assert (job.runtime.batch_size, job.runtime.workers) == (1, "2")


def test_whole_job_may_come_from_a_file(prelabel: Prelabel, jobs: list[Job]) -> None:
    Path("job.yaml").write_text(
        "sources: [a, b c]\noutput: labels\nmodel: scenes:maskrcnn\ntask: [detect]\ninclude: '*.foo'\njson: true\n"
    )
    ended = prelabel("run", "--config", "job.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["annotations"] == 20
    (job,) = jobs
    assert job.labels.sources == ("a", "b c")
    assert (job.labels.tasks, job.labels.include) == (("detect",), ("*.foo",))


def test_a_file_that_is_no_file_shows_no_secret(prelabel: Prelabel) -> None:
    ended = prelabel("run", "--config", "https://me:S3CRET@host/job.yaml")
    assert (ended.code, "No such file" in ended.err, "S3CRET" in ended.err) == (2, True, False)


def test_whole_job_may_come_from_the_environment(
    prelabel: Prelabel, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("job.yaml").write_text("limit: 5\nsources: images")
    values = {"CONFIG": "job.yaml", "OUTPUT": "labels", "MODEL": "scenes:maskrcnn", "TASK": "detect segment_instances"}
    for name, value in values.items():
        monkeypatch.setenv(f"PRELABEL_{name}", value)
    assert prelabel("run").code == 0
    (job,) = jobs
    assert (job.output, job.labels.limit, job.labels.sources) == ("labels", 5, ("images",))
    assert job.labels.tasks == ("detect", "segment_instances")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "unknown key 'colour'; there are .*batch-size"),
        ("limit: many", "--limit.*not a valid integer"),
        ("limit: [1, 2]", "limit takes one value"),
        ("model: {name: mine}", "model takes one value"),
        ("- limit", "expected lines like"),
        ("", "expected lines like"),
        ("limit: [", "job.yaml"),
        (None, "No such file"),
    ],
)
def test_file_that_makes_no_sense_is_an_error_that_says_where(
    prelabel: Prelabel, jobs: list[Job], text: str | None, message: str
) -> None:
    if text is not None:
        Path("job.yaml").write_text(text)
    ended = prelabel(*GIVEN, "--config", "job.yaml")
    assert ended.code == 2
    assert re.search(message, ended.err)
    assert "Traceback" not in ended.err
    assert jobs == []


# A user's mistake is one line and exit code 2


def test_output_that_exists_is_refused(prelabel: Prelabel) -> None:
    write_job(write_images("images"), "labels")
    ended = prelabel(*GIVEN)
    assert ended.code == 2
    assert is_one_line(ended)
    assert "prelabel resume" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "nowhere"),
        ("resume", "nowhere"),
        ("export", "coco", "nowhere", "--to", "labels.json"),
        ("evaluate", "nowhere", "--truth", "truth.json"),
    ],
)
def test_place_without_a_job_is_refused(prelabel: Prelabel, arguments: tuple[str, ...]) -> None:
    ended = prelabel(*arguments)
    assert ended.code == 2
    assert is_one_line(ended)
    assert "nowhere holds no job: check the path" in ended.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "kitti", "labels", "--to", "out"), "there is no export format 'kitti': choose from coco"),
        (("export", "coco", "labels", "--to", "."), "there is something in"),
        (("evaluate", "labels", "--truth", "nowhere.json"), "check the path"),
        (("status", "s4://bucket/labels"), "check the part before ://"),
        (("status", "\x1b[31mred\u202e"), r"\\x1b\[31mred\\u202e holds no job"),
        ((*GIVEN, "--workers", "many"), "--workers: .*neither a number nor MIN:MAX"),
        (("demo", "--output", "labels"), "not empty"),
    ],
)
def test_mistake_is_one_line(prelabel: Prelabel, arguments: tuple[str, ...], message: str) -> None:
    write_job(write_images("images"), "labels")
    ended = prelabel(*arguments)
    assert ended.code == 2
    assert is_one_line(ended)
    assert re.search(message, ended.err)


@pytest.mark.parametrize(
    "arguments",
    [("run",), (*GIVEN, "--limit", "0"), (*GIVEN, "--colour", "red"), ("export", "coco", "labels"), ("labels",)],
)
def test_command_that_cannot_be_parsed_is_explained(prelabel: Prelabel, arguments: tuple[str, ...]) -> None:
    ended = prelabel(*arguments)
    assert ended.code == 2
    assert is_one_line(ended)
    assert "--help" in ended.err


# What a job came to


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ({}, 0),
        ({"failed": 2}, 0),
        ({"failed": 2, "max_failed": 2}, 0),
        ({"failed": 2, "max_failed": 1}, 3),
        ({"failed": 2, "max_failed": "30%"}, 0),
        ({"failed": 2, "max_failed": "1.5%"}, 3),
        ({"units": 2}, 3),
    ],
)
def test_exit_code_of_run(
    prelabel: Prelabel, monkeypatch: pytest.MonkeyPatch, outcome: dict[str, int], code: int
) -> None:
    monkeypatch.setattr(runner, "run", lambda job, progress: summary(job.output, **outcome))
    ended = prelabel(*GIVEN)
    assert (ended.code, ended.out) == (code, "")
    assert "20 annotations" in ended.err


def test_interrupted_run_says_how_to_go_on(prelabel: Prelabel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(job: Job, progress: object) -> None:
        if job.labels.limit:
            write_job(write_images("images"), job.output, units=1)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "run", interrupted)
    early = prelabel(*GIVEN)
    assert early.code == 130
    assert "the same command again" in early.err
    late = prelabel("run", "images", "-o", "my labels", "-m", "scenes:maskrcnn", "--limit", 9)
    assert late.code == 130
    assert "prelabel resume 'my labels'" in late.err


def test_bug_shows_a_traceback_and_a_mistake_none(tmp_path: Path) -> None:
    program = (
        "from prelabel.pipeline import cli, manifest\n"
        "if {bug}: manifest.Manifest.read_job = lambda self: 1 / 0\n"
        "cli.main()"
    )
    for bug, code in ((True, 1), (False, 2)):
        command = [sys.executable, "-c", program.format(bug=bug), "status", str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == code
        assert ("Traceback" in ended.stderr) == ("ZeroDivisionError" in ended.stderr) == bug


# For programs


def told(ended: Ended) -> list[dict[str, Any]]:
    assert ended.out == ""
    return [json.loads(line) for line in ended.err.splitlines()]


def test_stderr_is_json_lines_on_request(prelabel: Prelabel, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    (done,) = told(prelabel("--log-json", *GIVEN))
    assert (done["event"], done["annotations"], done["complete"], done["exit_code"]) == ("summary", 20, True, 0)
    monkeypatch.setenv("PRELABEL_LOG_JSON", "1")
    for arguments, message in (
        (("status", "nowhere"), "nowhere holds no job: check the path"),
        (("status", "--colour"), "No such option"),
        (("labels",), "No such command"),
    ):
        (error,) = told(prelabel(*arguments))
        assert message in error["message"]
        assert (error["level"], error["event"], error["exit_code"]) == ("error", "error", 2)
    monkeypatch.setattr(runner, "run", lambda job, progress: logging.getLogger("prelabel").debug("why") or 1 / 0)
    debug, _ = told(prelabel("-v", *GIVEN))
    assert (debug["level"], debug["message"]) == ("debug", "why")
    (bug,) = told(prelabel(*GIVEN))
    assert (bug["message"], bug["exit_code"]) == ("ZeroDivisionError: division by zero", 1)
    assert "Traceback" in bug["traceback"]
    monkeypatch.delenv("PRELABEL_LOG_JSON")
    assert is_one_line(prelabel("status", "nowhere"))


def test_trial_is_told_with_what_the_job_will_cost(prelabel: Prelabel, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Calibration(64, 3, 4, 8.0, 125.0, {"read": 1.0})

    def dry_run(job: Job, progress: object, trial_images: int) -> runner.DryRun:
        pool = Pool(((0,),), 4, 4, 1, 0, 1)
        calibration = trial if trial_images else None
        return runner.DryRun(3_600_000, 7032, 9, 10**9, ("detect",), CategorySet([]), pool, calibration)

    monkeypatch.setattr(runner, "dry_run", dry_run)
    people = prelabel(*GIVEN, "--dry-run", "--calibrate", 64, "--price-per-hour", 2.5)
    assert people.code == 0
    assert "by 4 workers with 1 thread, batches of up to 1" in people.err
    assert "64 images on trial, of which 3 failed: 8.00 images/s by 4 workers, 2.00 each" in people.err
    assert "the whole job: about 5 d 5 h, 312.50 at 2.5 an hour" in people.err
    programs = json.loads(prelabel(*GIVEN, "--dry-run", "--calibrate", 64, "--price-per-hour", 2.5, "--json").out)
    expected = {"images_per_second": 8, "images_per_second_per_worker": 2, "hours": 125, "cost": 312.5, "failed": 3}
    assert programs["calibration"] | expected == programs["calibration"]
    assert "calibration" not in json.loads(prelabel(*GIVEN, "--dry-run", "--json").out)
    for mistake in (("--calibrate", 9), ("--dry-run", "--price-per-hour", 1)):
        assert is_one_line(prelabel(*GIVEN, *mistake))
    assert is_one_line(prelabel(*GIVEN, "--dry-run", "--calibrate", 9, "--price-per-hour", "nan"))


# Looking at labels


def test_status_of_an_unfinished_job(prelabel: Prelabel) -> None:
    write_job(write_images("images"), "labels", units=2)
    ended = prelabel("status", "labels")
    assert (ended.code, ended.out) == (0, "")
    assert "5 images labeled, 1 failed, 5 annotations; 2 of 3 units committed" in ended.err
    assert "prelabel resume" in ended.err
    found = json.loads(prelabel("status", "labels", "--json").out)
    assert found | {"labeled": 5, "failed": {"truncated": 1}, "units": 3, "committed": 2, "complete": False} == found


def test_a_manifest_that_cannot_be_read_is_told_in_a_line(prelabel: Prelabel) -> None:
    write_job(write_images("images"), "labels", units=2)
    Path("labels/_manifest/commits/00000002.json").mkdir()
    for watch in ((), ("--watch",)):
        ended = prelabel("status", "labels", *watch)
        assert (ended.code, is_one_line(ended)) == (2, True)


def test_status_may_be_watched(prelabel: Prelabel, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(write_images("images"), "labels", units=1)
    storage = Storage("labels")
    monkeypatch.setattr("time.sleep", lambda seconds: work(storage, job_of("images", "labels"), pending(storage)[:1]))
    with Lock(storage):
        ended = prelabel("status", "labels", "--watch", "--every", 1)
    assert ended.code == 0
    lines = [line.split(",")[0] for line in ended.err.splitlines() if line.startswith("labeling")]
    assert lines == [f"labeling: {done} of 7 images" for done in (3, 6, 7)]
    assert "all units committed" in ended.err


def test_who_stops_watching_has_done_nothing_wrong(prelabel: Prelabel, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(write_images("images"), "labels", units=1)
    monkeypatch.setattr("time.sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    with Lock(Storage("labels")):
        assert "is working on it" in prelabel("status", "labels").err
        ended = prelabel("status", "labels", "--watch")
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert prelabel("status", "labels", "--watch").code == 3


def test_export_says_that_a_job_is_not_finished(prelabel: Prelabel) -> None:
    write_job(write_images("images"), "labels", units=1)
    ended = prelabel("export", "coco", "labels", "--to", "out/labels.json")
    assert ended.code == 0
    assert "labels is not finished: 1 of 3 units are exported" in ended.err
    assert len(json.loads(Path("out/labels.json").read_bytes())["images"]) == 3


def test_evaluate_prints_figures_for_people_or_programs(prelabel: Prelabel) -> None:
    write_job(write_images("images"), "labels")
    prelabel("export", "coco", "labels", "--to", "truth.json")
    people = prelabel("evaluate", "labels", "--truth", "truth.json")
    assert people.out == ""
    assert "boxes: AP 1.000" in people.err
    programs = prelabel("evaluate", "labels", "--truth", "truth.json", "--json")
    assert json.loads(programs.out)["masks"]["AP"] == pytest.approx(1)
