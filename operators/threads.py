"""Work done ahead on threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    ahead: int,
    weigh: Callable[[T], int] = lambda _: 0,
    most: int = 0,
) -> Iterator[R]:
    """Like `map`, on threads, with at most `ahead` results waiting: `Executor.map` would hold them all.

    The weights of what is begun and not yet taken add up to `most`, unless a single item is heavier.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future[R]]] = deque()
        held = 0
        for item in items:
            weight = weigh(item)
            while waiting and (len(waiting) > ahead or held + weight > most > 0):
                lighter, future = waiting.popleft()
                yield future.result()
                del future
                held -= lighter
            waiting.append((weight, pool.submit(function, item)))
            held += weight
        while waiting:
            yield waiting.popleft()[1].result()
