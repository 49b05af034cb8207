"""One runner per job, told by what is seen to change and never by a clock."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from prelabel.pipeline.lock import BEATS_TO_WAIT, LOCK, Lock, holder
from prelabel.pipeline.storage import Storage
from prelabel.schemas.errors import JobError

BEAT = 0.02


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


class Beating(Storage):
    """Where someone's lock has beaten once more whenever it is read."""

    def read(self, name: str) -> bytes:
        content = orjson.loads(super().read(name))
        if content["owner"] == "someone":
            self.put(name, orjson.dumps(content | {"beat": content["beat"] + 1}))
        return orjson.dumps(content)


def lock(storage: Storage, **options: Any) -> Lock:
    return Lock(storage, beat_seconds=BEAT, **options)


def held_by(storage: Storage, **changes: Any) -> dict[str, Any]:
    """Leaves a lock as if its runner were gone without a word, with other facts about that runner."""
    with lock(storage):
        content = orjson.loads(storage.read(LOCK))
    content |= {"owner": "someone", **changes}
    storage.put(LOCK, orjson.dumps(content))
    return content


def owner_in(storage: Storage) -> str:
    return str(orjson.loads(storage.read(LOCK))["owner"])


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def assert_refused(storage: Storage) -> None:
    with pytest.raises(JobError, match=r"is being worked on by process .*--take-over") as caught, lock(storage):
        pass
    assert "\n" not in str(caught.value)


def test_lock_is_there_only_while_it_is_held(storage: Storage) -> None:
    with lock(storage) as mine:
        mine.check()
        found = holder(storage)
        assert found is not None
        assert found["owner"] == mine.owner["owner"]
    assert not storage.exists(LOCK)
    assert holder(storage) is None


def test_lock_is_released_when_the_work_fails(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), lock(storage):
        raise ZeroDivisionError
    assert not storage.exists(LOCK)


def test_second_runner_on_this_machine_is_refused(storage: Storage) -> None:
    with lock(storage) as first:
        assert_refused(storage)
        first.check()


@pytest.mark.parametrize("how", ["dead", "its pid is another process's now"])
def test_lock_of_a_dead_process_here_is_taken_whatever_its_beat(storage: Storage, how: str) -> None:
    held_by(storage, **({"pid": dead_pid()} if how == "dead" else {"started": 1.0}))
    assert holder(storage) is None
    with lock(Beating(storage.url)) as mine:
        assert owner_in(storage) == mine.owner["owner"]


def test_lock_of_another_machine_is_refused_while_it_beats(storage: Storage) -> None:
    held_by(storage, machine="another")
    assert_refused(Beating(storage.url))
    assert owner_in(storage) == "someone"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"], ids=["whole", "empty", "cut off", "no object"])
def test_lock_that_stands_still_is_taken(storage: Storage, content: bytes | None) -> None:
    held_by(storage, machine="another")
    if content is not None:
        storage.put(LOCK, content)
    with lock(storage) as mine:
        assert owner_in(storage) == mine.owner["owner"]


def test_taking_over_makes_the_first_runner_notice(storage: Storage) -> None:
    with lock(storage) as first, lock(storage, take_over=True) as second:
        assert first.lost.wait(10)
        with pytest.raises(JobError, match="another runner has taken over"):
            first.check()
        second.check()
        assert owner_in(storage) == second.owner["owner"]
    assert holder(storage) is None


def test_loser_does_not_release_the_winners_lock(storage: Storage) -> None:
    first = lock(storage)
    with first:
        second = lock(storage, take_over=True)
        second.__enter__()
    assert owner_in(storage) == second.owner["owner"]
    second.__exit__()


def test_of_many_that_find_a_stale_lock_one_goes_on(storage: Storage) -> None:
    held_by(storage, pid=dead_pid())
    at_once, all_tried, judged = threading.Barrier(4, timeout=30), threading.Barrier(5, timeout=30), threading.Event()
    winners: list[Lock] = []

    def race() -> None:
        at_once.wait()
        try:
            with lock(storage) as mine:
                winners.append(mine)
                all_tried.wait()
                judged.wait()
        except JobError:
            all_tried.wait()

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    all_tried.wait()
    losers = [one for one in winners if one.owner["owner"] != owner_in(storage)]
    assert all(one.lost.wait(10) for one in losers)
    assert len(winners) - len(losers) == 1
    judged.set()
    for thread in threads:
        thread.join()


def test_lock_that_could_not_be_released_is_no_hindrance(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(name: str) -> None:
        raise PermissionError("403")

    with monkeypatch.context() as patch, lock(storage) as mine:
        patch.setattr(storage, "delete", deny)
        mine.__exit__()
    assert storage.exists(LOCK)
    assert holder(storage) is None
    with lock(storage) as second:
        assert owner_in(storage) == second.owner["owner"]


def test_beat_that_storage_swallows_is_no_reason_to_stop(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Semaphore(0)

    def fail(name: str, data: bytes) -> None:
        failed.release()
        raise OSError("503")

    with lock(storage) as mine:
        monkeypatch.setattr(storage, "put", fail)
        assert all(failed.acquire(timeout=10) for _ in range(BEATS_TO_WAIT))
        mine.check()
