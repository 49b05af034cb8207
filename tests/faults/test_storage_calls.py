"""Each storage call of a job fails in turn, in every way: going on ends with the very files of an undisturbed run."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jobs import write_images
from made_up import go_on, without_ray
from simulated import Bucket, CrashError, bury, told

from prelabel.pipeline.validate import validate
from prelabel.schemas.errors import PrelabelError

OUTPUT = "bucket://labels"
Effect = Callable[[], Any]


@pytest.fixture(autouse=True)
def _simulated(hasty: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_ray():
        yield
    Bucket.reset()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(str(tmp_path_factory.mktemp("images")))


def error(effect: Effect) -> None:
    raise OSError("503 SlowDown")


def timeout(effect: Effect) -> None:
    raise TimeoutError("no answer")


def lost_reply(effect: Effect) -> None:
    effect()
    raise TimeoutError("no answer")


def refusal(effect: Effect) -> None:
    raise PermissionError("403 Access Denied")


def no_space(effect: Effect) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def crash(effect: Effect) -> None:
    raise CrashError


def crash_after(effect: Effect) -> None:
    effect()
    raise CrashError


class Disturbed:
    """Lets calls through, but for the one of a number; with `for_good`, those that follow as well."""

    def __init__(self, number: int, fault: Callable[[Effect], Any], for_good: bool = False) -> None:
        self.number, self.fault, self.for_good = number, fault, for_good
        self.calls: list[str] = []

    def __call__(self, call: str, path: str, effect: Effect) -> Any:
        self.calls.append(call)
        here = len(self.calls) - 1
        return self.fault(effect) if here == self.number or (self.for_good and here > self.number) else effect()


@pytest.fixture
def undisturbed(source: str) -> tuple[dict[str, Any], int]:
    """The files of a job, and how many storage calls it makes."""
    counting = Disturbed(-1, error)
    Bucket.reset(fault=counting)
    assert go_on(source, OUTPUT).is_complete
    assert Counter(counting.calls).keys() == {"ls", "cat", "put", "create", "rm"}
    return told(Bucket.files), len(counting.calls)


def assert_whole(expected: dict[str, Any]) -> None:
    found = validate(OUTPUT)
    assert found.is_proven, list(found.lines(5))
    assert found.committed == found.units
    assert told(Bucket.files) == expected


@pytest.mark.parametrize("fault", [error, timeout, lost_reply])
def test_a_call_that_fails_once_costs_nothing(source: str, undisturbed: tuple, fault: Callable[[Effect], Any]) -> None:
    expected, count = undisturbed
    for number in range(count):
        Bucket.reset(fault=Disturbed(number, fault))
        assert go_on(source, OUTPUT).is_complete, number
        Bucket.reset(dict(Bucket.files))
        assert_whole(expected)
        assert "labels/_manifest/lock.json" not in Bucket.files


ENDS = [(error, True), (lost_reply, True), (refusal, False), (no_space, True), (crash, False), (crash_after, False)]


@pytest.mark.parametrize(("fault", "for_good"), ENDS)
def test_a_call_that_ends_the_run_leaves_a_job_that_can_go_on(
    source: str, undisturbed: tuple, fault: Callable[[Effect], Any], for_good: bool
) -> None:
    expected, count = undisturbed
    for number in range(count):
        Bucket.reset(fault=Disturbed(number, fault, for_good))
        try:
            summary = go_on(source, OUTPUT)
            assert summary.exit_code == (0 if summary.is_complete else 3), number
        except (PrelabelError, CrashError):  # anything else would be a traceback
            pass
        Bucket.reset(dict(Bucket.files))
        bury(Bucket.files)
        assert go_on(source, OUTPUT).is_complete, number
        assert_whole(expected)
