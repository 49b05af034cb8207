"""Every order in which the storage calls of several runners can come, with crashes, one after the other.

Each runner is a greenlet that is switched away from before each of its storage calls. A run of them is made again from
its beginning for each order; orders that lead to what has been seen before (the same files, the same answers to each
runner) are not followed further, which leaves out nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from greenlet import getcurrent, greenlet
from simulated import Bucket, CrashError

from prelabel.pipeline import lock
from prelabel.schemas.errors import PrelabelError

Body = Callable[[], Any]
Choice = tuple[int, bool]
"""Whose turn it is, and whether it crashes there."""
WRITES = ("put", "create", "rm")
UNSEEN = ("/images/",)
"""What no other runner looks at: such a call commutes with all of the others'."""


class Simulated(greenlet):
    """A runner, from its start to its end or crash."""

    def __init__(self, number: int, body: Body) -> None:
        super().__init__(self._live)
        self.number, self.body = number, body
        self.seen = 0
        self.next_call = ""
        self.crashed = False
        self.result: Any = None

    def _live(self) -> None:
        try:
            self.result = self.body()
        except (PrelabelError, CrashError) as error:
            self.result = error

    @property
    def is_over(self) -> bool:
        return self.crashed or self.dead

    def crash(self) -> None:
        self.crashed = True
        if self:
            self.throw(CrashError)


def _fault(call: str, path: str, effect: Callable[[], Any]) -> Any:
    here = getcurrent()
    if not isinstance(here, Simulated):  # a thread that reads ahead
        return effect()
    if not any(part in path for part in UNSEEN):
        _wait_for_turn(here, call, path)
    if here.crashed:
        raise CrashError
    try:
        answer = effect()
    except OSError as error:
        here.seen = hash((here.seen, call, path, type(error)))
        raise
    here.seen = hash((here.seen, call, path, tuple(answer) if isinstance(answer, list) else answer))
    return answer


class Explorer:
    """Depth first over all orders.

    Args:
        files: what there is at the beginning
        bodies: of the runners
        crashes: how many of them may crash
        check: told the runners at the end of each order; raises where something is wrong
    """

    def __init__(
        self, files: dict[str, bytes], bodies: list[Body], crashes: int, check: Callable[[list[Simulated]], object]
    ) -> None:
        self.files, self.bodies, self.crashes, self.check = files, bodies, crashes, check
        self.states: set[Any] = set()
        self.ends = 0

    def explore(self) -> None:
        todo: list[list[Choice]] = [[]]
        with self._no_clock():
            while todo:
                self._follow(todo.pop(), todo)

    def _follow(self, order: list[Choice], todo: list[list[Choice]]) -> None:
        Bucket.reset(dict(self.files), _fault)
        self.runners = [Simulated(number, body) for number, body in enumerate(self.bodies)]
        made = []
        try:
            for choice in order:
                self._take(choice)
            made = list(order)
            while choices := self._choices():
                if self._is_known():
                    return
                todo += [[*made, other] for other in choices[1:]]
                self._take(choices[0])
                made.append(choices[0])
            if not self._is_known():
                self.ends += 1
                Bucket.reset(dict(Bucket.files))
                self.check(self.runners)
        except AssertionError as error:
            raise AssertionError(f"after {made or order}: {error}") from error
        finally:
            for one in self.runners:
                if not one.is_over:
                    one.crash()

    def _choices(self) -> list[Choice]:
        alive = [one for one in self.runners if not one.is_over]
        choices = [(one.number, False) for one in alive]
        if sum(one.crashed for one in self.runners) < self.crashes:
            # A crash before a read is one before the write that comes after it: nobody can tell them apart.
            choices += [(one.number, True) for one in alive if one.next_call in WRITES]
        return choices

    def _take(self, choice: Choice) -> None:
        number, crashes = choice
        one = self.runners[number]
        if crashes:
            one.crash()
        else:
            one.switch()

    def _is_known(self) -> bool:
        ways = tuple((one.seen, one.crashed, one.is_over) for one in self.runners)
        state = (frozenset(Bucket.files.items()), ways)
        known = state in self.states
        self.states.add(state)
        return known

    @contextmanager
    def _no_clock(self) -> Iterator[None]:
        """A process is alive as long as its greenlet; a pause ends when its turn comes."""
        owner = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=str(_process()["pid"])))
        changes = {
            "_this_process": _process,
            "_is_alive": lambda held: held.get("pid") in [one.number for one in self.runners if not one.is_over],
            "uuid": owner,
            "time": SimpleNamespace(sleep=_pause),
        }
        with patch.multiple(lock, **changes):
            yield


def _process() -> dict[str, Any]:
    here = getcurrent()
    return {"host": "here", "machine": "here", "pid": getattr(here, "number", -1), "started": 0.0}


def _pause(seconds: float) -> None:
    here = getcurrent()
    if isinstance(here, Simulated):
        _wait_for_turn(here, "pause")


def _wait_for_turn(here: Simulated, *asked: str) -> None:
    here.seen, here.next_call = hash((here.seen, asked)), asked[0]
    here.parent.switch()
    if here.crashed:
        raise CrashError
