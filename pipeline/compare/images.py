"""Two jobs' images side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from prelabel.pipeline.dataset import LabelDataset

GROUPS = {
    "other_bytes": "of them with other bytes",
    "failed_before": "failed before only",
    "failed_after": "failed after only",
    "failed_both": "failed in both",
    "only_before": "there before only",
    "only_after": "there after only",
}
"""Images that are set apart, and what is said of them; those with other bytes are compared all the same."""


class Image(NamedTuple):
    """What is compared of an image's own row, and where its other rows are."""

    image_id: int
    unit: int
    key: str
    shard: str
    digest: str | None
    status: str


Sides = tuple[Image | None, Image | None]


class Images:
    """The images that could be read in both jobs; iterating, once, gives their rows before and after.

    Attributes:
        counts: how many were compared, and are in each of GROUPS, so far
        examples: the keys of the first images of each of GROUPS
    """

    def __init__(self, before: LabelDataset, after: LabelDataset, examples: int) -> None:
        self._before, self._after, self._most = before, after, examples
        self.counts = dict.fromkeys(["compared", *GROUPS], 0)
        self.examples: dict[str, list[str]] = {group: [] for group in GROUPS}

    @property
    def common(self) -> int:
        """How many both jobs have, so far, failed or not."""
        return sum(self.counts[group] for group in ("compared", "failed_before", "failed_after", "failed_both"))

    def __iter__(self) -> Iterator[tuple[Image, Image]]:
        for ours, theirs in _side_by_side(self._before, self._after):
            if ours is None or theirs is None:
                self._set_apart("only_before" if ours else "only_after", ours or theirs)
            elif ours.status != "ok" or theirs.status != "ok":
                both = ours.status == theirs.status
                where = "both" if both else "after" if ours.status == "ok" else "before"
                self._set_apart(f"failed_{where}", ours)
            else:
                self.counts["compared"] += 1
                if ours.digest != theirs.digest:
                    self._set_apart("other_bytes", ours)
                yield ours, theirs

    def _set_apart(self, group: str, image: Image | None) -> None:
        self.counts[group] += 1
        if image and len(self.examples[group]) < self._most:
            self.examples[group].append(image.key)


def _side_by_side(before: LabelDataset, after: LabelDataset) -> Iterator[Sides]:
    """Every image of either job, with the same one of the other; None where that has none.

    Images are the same that have the same key; where a job has a key twice, the same shard and key. Jobs that number
    their common images alike, as those over one source do, are read in step; else the rows of the images after are
    held in memory.
    """
    if _are_numbered_alike(before, after):
        return _by_id(before, after)
    are_unique = _has_unique_keys(before) and _has_unique_keys(after)
    return _by_name(before, after, attrgetter("key") if are_unique else attrgetter("shard", "key"))


def _images(dataset: LabelDataset) -> Iterator[Image]:
    for batch in dataset.batches("images", list(Image._fields)):
        yield from map(Image._make, zip(*(batch[name].to_pylist() for name in Image._fields), strict=True))


def _by_id(before: LabelDataset, after: LabelDataset) -> Iterator[Sides]:
    def image_id(one: tuple[Image, int]) -> int:
        return one[0].image_id

    sides = ((image, 0) for image in _images(before)), ((image, 1) for image in _images(after))
    for _, same in groupby(merge(*sides, key=image_id), key=image_id):
        found = {side: image for image, side in same}
        yield found.get(0), found.get(1)


def _are_numbered_alike(before: LabelDataset, after: LabelDataset) -> bool:
    """Whether they have ids in common, all of which stand for the same key in both, and for the same shard.

    Where no shard is in both, the images have moved to another place: then the keys are enough.
    """
    common, same_shards = False, True
    shards: tuple[set[str], set[str]] = (set(), set())
    for both in _by_id(before, after):
        for image, known in zip(both, shards, strict=True):
            if image:
                known.add(image.shard)
        ours, theirs = both
        if ours and theirs:
            if ours.key != theirs.key:
                return False
            common, same_shards = True, same_shards and ours.shard == theirs.shard
    return common and (same_shards or shards[0].isdisjoint(shards[1]))


def _has_unique_keys(dataset: LabelDataset) -> bool:
    keys = [image.key for image in _images(dataset)]
    return len(set(keys)) == len(keys)


def _by_name(before: LabelDataset, after: LabelDataset, name: Callable[[Image], Any]) -> Iterator[Sides]:
    theirs = {name(image): image for image in _images(after)}
    for ours in _images(before):
        yield ours, theirs.pop(name(ours), None)
    for image in theirs.values():
        yield None, image
