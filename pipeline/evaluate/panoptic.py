"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), counted as COCO's panopticapi does."""

from __future__ import annotations

import io
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.truth import Truth
from prelabel.pipeline.storage import read_input
from prelabel.schemas import rle
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

VOID = 0
_COMPARED_PIXELS = 2**20
"""As many are compared at a time, however large the image is."""

Rows = list[dict[str, Any]]


class Tally:
    """What was found of one category: matched pairs and the sum of their IoU, and what has no partner."""

    def __init__(self) -> None:
        self.iou = 0.0
        self.matched = self.false_positives = self.false_negatives = 0

    def qualities(self) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ; None where nothing was there and nothing was found."""
        segments = self.matched + 0.5 * self.false_positives + 0.5 * self.false_negatives
        if not segments:
            return None
        return self.iou / segments, self.iou / self.matched if self.matched else 0.0, self.matched / segments


def measure_panoptic(dataset: LabelDataset, truth: Truth) -> dict[str, dict[str, float]]:
    """PQ, SQ and RQ, means over the truth's categories, and PQ of things and of stuff; -1 where there are none.

    Raises:
        UserError: the job has no panoptic segments, or a PNG of the truth is missing or does not fit.
    """
    if "fuse_panoptic" not in dataset.record.tasks:
        raise UserError(f"{dataset.url} has no panoptic segments: label with --task fuse_panoptic")
    annotations = {annotation["image_id"]: annotation for annotation in truth.document["annotations"]}
    images = {ours: annotations[theirs] for ours, theirs in truth.images.items() if theirs in annotations}
    tallies: defaultdict[int, Tally] = defaultdict(Tally)
    for image_id, found in _panoptic_segments(dataset):
        if annotation := images.pop(image_id, None):
            categories = [truth.categories.get(segment["category_id"]) for segment in found]
            overlaps = _overlaps(truth, annotation, [Rle(**segment["segmentation"]) for segment in found])
            _count(overlaps, annotation["segments_info"], categories, tallies)
    for annotation in images.values():
        _count(Counter(), annotation["segments_info"], [], tallies)
    return {"panoptic": _means(tallies, truth)}


def _means(tallies: defaultdict[int, Tally], truth: Truth) -> dict[str, float]:
    things = {entry["id"]: bool(entry["isthing"]) for entry in truth.document["categories"]}
    qualities = {one: found for one in things if (found := tallies[one].qualities())}

    def mean(quality: int, of: Sequence[bool] = (True, False)) -> float:
        values = [found[quality] for one, found in qualities.items() if things[one] in of]
        return float(np.mean(values)) if values else -1.0

    figures = {name: mean(quality) for quality, name in enumerate(("PQ", "SQ", "RQ"))}
    return figures | {"PQ_things": mean(0, [True]), "PQ_stuff": mean(0, [False])}


def _panoptic_segments(dataset: LabelDataset) -> Iterator[tuple[int, Rows]]:
    """The segments of each image that has any."""
    columns = ["image_id", "category_id", "segmentation", "kind"]
    rows = (row for batch in dataset.batches("segments", columns) for row in batch.to_pylist())
    panoptic = (row for row in rows if row["kind"] == "panoptic")
    for image_id, segments in groupby(panoptic, key=itemgetter("image_id")):
        yield image_id, list(segments)


def _overlaps(truth: Truth, annotation: dict[str, Any], masks: Sequence[Rle]) -> Counter[tuple[int, int]]:
    """Pixels by the truth's segment id and the number, from 1, of the mask that they lie in; VOID is none of either."""
    height, width = masks[0].size
    colors = _read_png(truth, annotation, (height, width))
    ours = np.zeros((height, width), np.int32, order="F")  # as masks are decoded
    for number, mask in enumerate(masks, start=1):
        ours[rle.decode(mask)] = number
    counts: Counter[tuple[int, int]] = Counter()
    step = max(1, _COMPARED_PIXELS // width)
    for rows in (slice(top, top + step) for top in range(0, height, step)):
        theirs = colors[rows] @ np.array([1, 256, 256**2], np.int64)
        pairs, areas = np.unique(theirs * (len(masks) + 1) + ours[rows], return_counts=True)
        for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True):
            counts[divmod(pair, len(masks) + 1)] += area
    ids = {segment["id"] for segment in annotation["segments_info"]}
    if ids and ids.isdisjoint(segment_id for segment_id, _ in counts):
        name = annotation["file_name"]
        raise UserError(f"--truth {truth.url}: {name} has none of its segments: a color is id = R + 256 G + 65536 B")
    return counts


def _count(
    overlaps: Counter[tuple[int, int]],
    expected: Rows,
    categories: Sequence[int | None],
    tallies: defaultdict[int, Tally],
) -> None:
    """Adds one image to the tallies.

    Args:
        overlaps: pixels by the truth's segment and ours; VOID lies in none
        expected: the truth's segments
        categories: of our segments, which are numbered from 1, by the truth's ids; None: the truth has none such
        tallies: by the truth's category id
    """
    theirs, ours = Counter[int](), Counter[int]()
    for (segment_id, number), area in overlaps.items():
        theirs[segment_id] += area
        ours[number] += area
    partners: dict[int, int] = {}
    segments = {segment["id"]: segment["category_id"] for segment in expected if not segment["iscrowd"]}
    for (segment_id, number), area in overlaps.items():
        category = categories[number - 1] if number != VOID else None
        if category is None or segments.get(segment_id) != category:
            continue
        union = theirs[segment_id] + ours[number] - area - overlaps[VOID, number]
        if 2 * area > union:  # so a segment has one partner at most
            tallies[category].matched += 1
            tallies[category].iou += area / union
            partners[segment_id] = number
    for segment_id, category in segments.items():
        tallies[category].false_negatives += segment_id not in partners
    crowds = [(segment["category_id"], segment["id"]) for segment in expected if segment["iscrowd"]]
    for number, category in enumerate(categories, start=1):
        if category is None or number in partners.values() or not ours[number]:
            continue
        ignored = overlaps[VOID, number] + sum(overlaps[crowd, number] for of, crowd in crowds if of == category)
        tallies[category].false_positives += 2 * ignored <= ours[number]


def _read_png(truth: Truth, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3). A header that says another size is refused before anything is decoded."""
    name = annotation["file_name"]
    if posixpath.isabs(name) or ".." in name.split("/"):
        raise UserError(f"--truth {truth.url}: file_name {name!r} leads out of the folder of the PNGs: name one in it")
    places = [truth.url.removesuffix(".json"), posixpath.join(posixpath.dirname(truth.url), "panoptic")]
    data = None
    for place in places:
        with suppress(UserError):
            data = data or read_input(posixpath.join(place, name), "--truth")
    if data is None:
        raise UserError(f"--truth {truth.url}: no {name} can be read in {places[0]} or {places[1]}: put it there")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (size[1], size[0]):
                raise ValueError(f"{image.width} x {image.height} pixels, the image has {size[1]} x {size[0]}")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow has many kinds for a damaged file
        reason = " ".join(str(error).split())
        raise UserError(f"--truth {truth.url}: {name} is not the image's PNG ({reason}): put the right one") from error
