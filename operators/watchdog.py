"""A time limit for images: a decoder or a network that hangs can't be stopped, but its process can be ended."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic

LOOKS = 10
"""A time limit, divided by the time between two looks at the clock."""
PIXELS_A_TURN = 16 * 2**20
"""A model gets the time limit once for so many pixels that it has begun: large images are slow, not stuck."""


class Watchdog:
    """Ends this process when one piece of work on images has taken too long.

    What is watched is short: decoding one image, or one forward pass; so a unit may take as long as it needs.

    Args:
        seconds: the limit of a piece of work
        on_stuck: is told the ids of the images that the piece is about, just before the process ends
        end: ends the process; the default also ends one whose interpreter hangs as a whole, for twice the time, in
            code that keeps its lock: then nothing can be told
    """

    def __init__(
        self, seconds: float, on_stuck: Callable[[list[int]], object], end: Callable[[int], object] = os._exit
    ) -> None:
        self.seconds = seconds
        self.on_stuck = on_stuck
        self.end = end
        self._under_way: dict[int, tuple[float, list[int]]] = {}
        self._tokens = iter(range(2**63))
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, image_ids: Sequence[int], turns: int = 1) -> Iterator[None]:
        """Watches the block, which works on these images and may take so many times the limit."""
        token = next(self._tokens)
        self._under_way[token] = monotonic() + turns * self.seconds, list(image_ids)
        try:
            yield
        finally:
            del self._under_way[token]

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(self.seconds / LOOKS):
            if self.end is os._exit:
                faulthandler.dump_traceback_later(2 * self.seconds, exit=True, file=sys.__stderr__ or 2)
            now = monotonic()
            stuck = [one for due, image_ids in self._under_way.copy().values() if due < now for one in image_ids]
            if stuck:
                with suppress(Exception):  # whoever is told may be gone
                    self.on_stuck(stuck)
                self.end(1)
                return


def turns_for(pixels: Sequence[int]) -> int:
    """How many times the limit a forward pass over images of so many pixels may take."""
    return sum(1 + count // PIXELS_A_TURN for count in pixels)
