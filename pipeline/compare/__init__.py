"""What differs between two jobs over the same images: a new model, a new threshold, corrected labels."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from itertools import islice

from prelabel.pipeline.compare.changes import Change, Comparison, ImageChange
from prelabel.pipeline.compare.images import Images
from prelabel.pipeline.compare.kinds import Kind, kinds_in_both
from prelabel.pipeline.dataset import LabelDataset
from prelabel.schemas.errors import UserError

_IMAGES_AT_ONCE = 64
"""As many are looked up together in the job after, where they may be in another order."""


def compare(
    before: LabelDataset, after: LabelDataset, iou: float = 0.5, score_threshold: float = 0.0, most: int = 10
) -> Comparison:
    """Compares the objects of all images that could be read in both jobs, and their panoptic and semantic segments.

    Images are matched by key, objects one to one by IoU (see `matching.match`), categories by name, or by id where no
    name is in both. Memory does not grow with the number of objects, and with that of images only where the jobs
    number the same ones differently.

    Args:
        before, after: the jobs
        iou: the lowest at which two objects are the same, above 0, up to 1
        score_threshold: objects below it count in neither job; those without a score always do
        most: how many images to name: of those that changed most, and of each group of those set apart

    Raises:
        UserError: the jobs have no image in common, or no kind of labels, or the IoU is none.
        JobError: a part of a table is missing or damaged.
    """
    if not 0 < iou <= 1:
        raise UserError(f"--iou is {iou}: give a number above 0, up to 1")
    kinds = kinds_in_both(before, after, iou, score_threshold)
    images = Images(before, after, most)
    changed = (one for one in changes_by_image(images, kinds) if one.change.amount)
    first = nsmallest(max(1, most), changed, key=lambda one: (-one.change.amount, one.key))[:most]
    if not images.common:
        raise UserError(f"{before.url} and {after.url} have no image in common: images are the same by their key")
    changes = {name: kind.changes for name, kind in kinds.items()}
    return Comparison(before.url, after.url, images.counts, images.examples, changes, tuple(first))


def changes_by_image(images: Images, kinds: dict[str, Kind]) -> Iterator[ImageChange]:
    """What became of the labels of each image that both jobs could read, whether anything has changed or not."""
    pairs = iter(images)
    while some := list(islice(pairs, _IMAGES_AT_ONCE)):
        counted = [kind.count(some) for kind in kinds.values()]
        for (ours, theirs), *changes in zip(some, *counted, strict=True):
            total = Change()
            for change in changes:
                total.add(change)
            yield ImageChange(ours.key, ours.image_id, theirs.image_id, total)
