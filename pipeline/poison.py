"""Finding the images that take their worker's process down: their units are halved, and each half is tried.

A trial writes nothing. An image is found when a process that held it and no other has died of it twice; so a process
that the system killed by chance, for its memory, costs no image. What a search may cost is bounded: a unit of n images
is halved log2(n) times, and when more than MOST_PIECES of its pieces kill their workers it is given up, for then it is
hardly the images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from prelabel.pipeline.portions import HARMLESS, Portion, Skip

MOST_PIECES = 16
"""Of a unit: more that kill their workers, and the fault is not the images'."""
Probe = Callable[[Sequence[Portion]], list["Skip | None"]]
"""Tries portions; says of each whether, and how, its worker died of it: once, or twice if it holds one image."""


@dataclass
class Suspect:
    """A unit whose workers died.

    Attributes:
        portion: what they worked on
        pieces: of it that are still to be tried
        found: the images that kill their workers
        why_not: why no image is to blame, once that is known
    """

    portion: Portion
    pieces: list[tuple[int, ...]] = field(default_factory=list)
    found: dict[int, Skip] = field(default_factory=dict)
    why_not: str = ""

    @classmethod
    def of(cls, portion: Portion, stuck: Collection[int] = ()) -> Suspect:
        """`stuck`: images that the worker was at when time ran out; where they are known, no other is tried."""
        ids = portion.at_risk
        known: list[tuple[int, ...]] = [(image_id,) for image_id in ids if image_id in stuck]
        return cls(portion, known or (_halves(ids) if len(ids) > 1 else [ids]))

    def learn(self, outcomes: Sequence[Skip | None]) -> None:
        """Takes in what the trials of all pieces came to."""
        deadly = [(piece, how) for piece, how in zip(self.pieces, outcomes, strict=True) if how]
        self.pieces = [half for piece, _ in deadly if len(piece) > 1 for half in _halves(piece)]
        self.found |= {piece[0]: how for piece, how in deadly if len(piece) == 1}
        if len(self.found) + len(self.pieces) / 2 > MOST_PIECES:
            self.give_up(f"more than {MOST_PIECES} pieces of it do so each, so it is hardly the images")

    def give_up(self, why_not: str) -> None:
        """No image is to blame."""
        self.why_not, self.pieces, self.found = why_not, [], {}


def search(suspects: Sequence[Suspect], probe: Probe) -> None:
    """Fills in `found` and `why_not`; all suspects are halved at once, since every trial loads the models again."""
    while open_ones := [one for one in suspects if one.pieces]:
        portions = [one.portion.only(piece) for one in open_ones for piece in one.pieces]
        # Whenever single images are accused, one that harms nobody must live under the same conditions.
        controls = [one for one in open_ones if any(len(piece) == 1 for piece in one.pieces)]
        outcomes = iter(probe([*portions, *map(_control, controls)]))
        for one in open_ones:
            one.learn([next(outcomes) for _ in one.pieces])
        for one, died in zip(controls, outcomes, strict=True):
            if died:
                one.give_up("a worker that is given a harmless image dies as well")


def _control(suspect: Suspect) -> Portion:
    image_id = suspect.portion.image_ids[0]
    return suspect.portion.only([image_id]).without({image_id: HARMLESS})


def _halves(ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    middle = len(ids) // 2
    return [ids[:middle], ids[middle:]]
