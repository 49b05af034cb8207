"""What must hold of the rows of a unit's tables, column by column.

Each check yields what is wrong with some rows of one part. Numbers that are float32 in the tables may miss a bound by
rounding: a score by SCORE_ROUNDING, a box by `box_rounding`, an area by AREA_ROUNDING of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prelabel.pipeline.validate.manifest import PlannedUnit
from prelabel.pipeline.validate.masks import FAULTS, Measures, Runs, measure, overlaps, runs_of
from prelabel.pipeline.validate.violations import Wrong
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.tables import ROWS_PER_IMAGE

SCORE_ROUNDING = 1e-6
AREA_ROUNDING = 1e-6
CLIPPING = ("torchvision", "scenes", "regions", "rcnn", "fast_rcnn")
"""Families of models whose boxes end at the image's borders; others give what their networks say."""


def box_rounding(side: np.ndarray) -> np.ndarray:
    """Pixels by which a box may reach over the image's border, of so many pixels: the design's 0.01, and float32's."""
    return 0.01 + 1e-6 * side


@dataclass(frozen=True)
class Vocabulary:
    """What a job's rows may name: its categories and its models."""

    categories: CategorySet
    models: tuple[str, ...]

    @cached_property
    def ids(self) -> np.ndarray:
        """int64, sorted."""
        return np.array(sorted(self.categories.ids), np.int64)

    @cached_property
    def names(self) -> pa.Array:
        """By `ids`."""
        return pa.array([self.categories[one].name for one in self.ids.tolist()], pa.string())

    @cached_property
    def isthing(self) -> np.ndarray:
        """By `ids`."""
        return np.array([self.categories[one].isthing for one in self.ids.tolist()], bool)

    @cached_property
    def keypoints(self) -> np.ndarray:
        """By `ids`: how many a category has; 0 where nobody said."""
        return np.array([len(self.categories[one].keypoints or ()) for one in self.ids.tolist()], np.int64)

    @cached_property
    def clips(self) -> pa.Array:
        """The models whose boxes are within the image."""
        return pa.array([name for name in self.models if name.split(":")[0] in CLIPPING], pa.string())

    def places(self, category_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where categories are in `ids`, and whether they are: int64 (N,), bool (N,)."""
        if not len(self.ids):
            return np.zeros(len(category_ids), np.int64), np.zeros(len(category_ids), bool)
        places = np.minimum(np.searchsorted(self.ids, category_ids), len(self.ids) - 1)
        return places, self.ids[places] == category_ids


class Images:
    """The images of a unit, as its other tables refer to them; the rows are known to be one for each, in order."""

    def __init__(self, unit: PlannedUnit, rows: pa.Table) -> None:
        self.first = unit.first_image_id
        self.ok = equals(rows["status"], "ok")
        self.height, self.width, self.objects = (numbers(rows[n], 0) for n in ("height", "width", "num_annotations"))

    def places(self, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which image each id is of, 0 if none: int64 (N,); and whether that has labels: bool (N,)."""
        places = image_ids - self.first
        inside = (places >= 0) & (places < len(self.ok))
        places = np.where(inside, places, 0)
        return places, inside & self.ok[places]


def numbers(column: pa.ChunkedArray, null: float | None = None) -> np.ndarray:
    """The numbers of a column; `null` stands for those that are absent."""
    return (column if null is None else column.fill_null(null)).to_numpy()


def equals(column: pa.ChunkedArray, value: str) -> np.ndarray:
    """bool (N,): which texts are this one."""
    return pc.equal(column.cast(pa.string()), value).fill_null(False).to_numpy()


def is_null(column: pa.ChunkedArray) -> np.ndarray:
    """bool (N,)."""
    return column.is_null().to_numpy()


# images


def check_image_ids(unit: PlannedUnit, rows: pa.Table) -> Iterator[Wrong]:
    """One row for each planned image, in order."""
    ids, planned = numbers(rows["image_id"]), unit.image_ids
    if np.array_equal(ids, planned):
        return
    missing = np.setdiff1d(planned, ids)
    yield Wrong("image", np.ones(min(1, len(missing)), bool), lambda _: f"image {missing[0]} has no row")
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    yield Wrong("image", ~first, lambda row: f"image {ids[row]} is there before")
    yield Wrong("image", ~np.isin(ids, planned), lambda row: f"image {ids[row]} is not planned in this unit")
    falls = np.append(False, np.diff(ids) < 0)
    yield Wrong("image", falls, lambda row: f"image {ids[row]} comes after image {ids[row - 1]}")


def check_images(unit: PlannedUnit, rows: pa.Table, vocabulary: Vocabulary) -> Iterator[Wrong]:
    """What each row says of its image."""
    expected = {"key": unit.keys, "shard": pa.scalar(unit.shard), "unit": pa.scalar(unit.number, pa.int32())}
    for name, value in expected.items():
        differs = pc.not_equal(rows[name], value).to_numpy()
        yield Wrong("image", differs, _saying("{name} {value!r} is not the plan's", rows, name))
    yield from _check_status(rows)
    yield from _check_labels(rows, vocabulary)


def _saying(text: str, rows: pa.Table, name: str) -> Callable[[int], str]:
    """Says the text with the {name} of a column and the {value} of a row."""
    return lambda row: text.format(name=name, value=rows[name][row].as_py())


def _check_status(rows: pa.Table) -> Iterator[Wrong]:
    ok, failed = equals(rows["status"], "ok"), equals(rows["status"], "failed")
    yield Wrong("status", ~(ok | failed), _saying("{name} {value!r}", rows, "status"))
    for name in ("format", "num_bytes", "digest"):
        yield Wrong("status", ok & is_null(rows[name]), _saying("ok, and {name} is {value}", rows, name))
    for name, most in (("width", 2**31), ("height", 2**31), ("orientation", 8)):
        values = numbers(rows[name], 0)
        yield Wrong("status", ok & ((values < 1) | (values > most)), _saying("ok, and {name} is {value}", rows, name))
    for name in ("error_code", "error"):
        yield Wrong("status", ok & ~is_null(rows[name]), _saying("ok, and {name} is {value!r}", rows, name))
    yield Wrong(
        "status", failed & is_null(rows["error_code"]), _saying("failed, and {name} is {value}", rows, "error_code")
    )
    yield Wrong("status", failed & ~is_null(rows["labels"]), lambda _: "failed, and there are labels")


def _check_labels(rows: pa.Table, vocabulary: Vocabulary) -> Iterator[Wrong]:
    """Image-level labels: told by the image's row."""
    lists = rows["labels"].combine_chunks()
    owners, labels = pc.list_parent_indices(lists).to_numpy(), pa.chunked_array([lists.flatten()])
    columns = {name: pc.struct_field(labels, name) for name in ("category_id", "category", "score")}
    for wrong in (*_check_category(columns, vocabulary), *_check_score(numbers(columns["score"]))):
        yield _of_owner(wrong, owners, len(rows))
    scores = numbers(columns["score"])
    rises = np.append(False, (np.diff(scores) > 0) & (np.diff(owners) == 0))[: len(scores)]
    yield _of_owner(
        Wrong("rank", rises, lambda one: f"label of score {scores[one]:g} after one of less"), owners, len(rows)
    )


def _of_owner(wrong: Wrong, owners: np.ndarray, count: int) -> Wrong:
    """What is wrong with elements of lists, told of the rows that hold them."""
    bad = np.zeros(count, bool)
    bad[owners[wrong.rows]] = True
    first = dict(zip(owners[wrong.rows[::-1]].tolist(), wrong.rows[::-1].tolist(), strict=True))
    return Wrong(wrong.kind, bad, lambda row: f"label: {wrong.say(first[row])}")


# What all tables of objects share


def _check_category(columns: dict[str, pa.ChunkedArray] | pa.Table, vocabulary: Vocabulary) -> Iterator[Wrong]:
    ids = numbers(columns["category_id"])
    places, known = vocabulary.places(ids)
    yield Wrong("reference", ~known, lambda row: f"the job has no category {ids[row]}")
    if known.any():
        names = vocabulary.names.take(pa.array(places))
        other = known & pc.not_equal(columns["category"].cast(pa.string()), names).to_numpy()
        say = lambda row: f"category {ids[row]} is {names[row].as_py()!r}, not {columns['category'][row].as_py()!r}"  # noqa: E731
        yield Wrong("reference", other, say)


def _check_score(scores: np.ndarray) -> Iterator[Wrong]:
    inside = (scores >= -SCORE_ROUNDING) & (scores <= 1 + SCORE_ROUNDING)
    yield Wrong("score", ~inside, lambda row: f"score {scores[row]:g}")


def _check_model(rows: pa.Table, vocabulary: Vocabulary) -> Iterator[Wrong]:
    known = pc.is_in(rows["model"].cast(pa.string()), pa.array(vocabulary.models, pa.string())).to_numpy()
    yield Wrong("reference", ~known, lambda row: f"the job has no model {rows['model'][row].as_py()!r}")


def _check_ranks(rows: pa.Table, id_name: str) -> Iterator[Wrong]:
    """Ids of image and rank, ranks from 0 by falling score; rows in that order."""
    image_ids, ids, scores = (numbers(rows[name]) for name in ("image_id", id_name, "score"))
    first = np.append(True, np.diff(image_ids) != 0)[: len(ids)]
    order = np.arange(len(ids))
    rank = order - np.maximum.accumulate(np.where(first, order, 0))
    expected = image_ids * ROWS_PER_IMAGE + rank
    yield Wrong("rank", ids != expected, lambda row: f"{id_name} {ids[row]} where {expected[row]} comes next")
    rises = ~first & np.append(False, np.diff(scores) > 0)[: len(ids)]
    yield Wrong("rank", rises, lambda row: f"score {scores[row]:g} after {scores[row - 1]:g}")


def _check_images_of(rows: pa.Table, images: Images) -> Iterator[Wrong]:
    image_ids = numbers(rows["image_id"])
    known = images.places(image_ids)[1]
    yield Wrong("reference", ~known, lambda row: f"image {image_ids[row]} is not in this unit, or failed")
    falls = np.append(False, np.diff(image_ids) < 0)[: len(image_ids)]
    yield Wrong("rank", falls, lambda row: f"image {image_ids[row]} after image {image_ids[row - 1]}")


def _sides(rows: pa.Table) -> tuple[np.ndarray, ...]:
    """x, y, width, height of each box, float64 (N,)."""
    return tuple(numbers(pc.struct_field(rows["bbox"], s)).astype(np.float64) for s in ("x", "y", "width", "height"))


def _check_boxes(rows: pa.Table, images: Images, vocabulary: Vocabulary) -> Iterator[Wrong]:
    sides = x, y, width, height = _sides(rows)
    sound = np.isfinite(sides).all(0) & (width >= 0) & (height >= 0)
    say = lambda row: "box " + ", ".join(f"{side[row]:g}" for side in sides)  # noqa: E731
    yield Wrong("box", ~sound, say)
    places, known = images.places(numbers(rows["image_id"]))
    clipped = pc.is_in(rows["model"].cast(pa.string()), vocabulary.clips).to_numpy()
    right, bottom = images.width[places], images.height[places]
    spare = np.maximum(-x, x + width - right) <= box_rounding(right)
    spare &= np.maximum(-y, y + height - bottom) <= box_rounding(bottom)
    size = lambda row: f"in an image of {right[row]} x {bottom[row]} (width x height)"  # noqa: E731
    yield Wrong("box", sound & known & clipped & ~spare, lambda row: f"{say(row)} {size(row)}")


# Masks


@dataclass(frozen=True)
class Masks:
    """The masks of a table's rows.

    Attributes:
        present: bool (N,), which rows have one
        runs: of all rows; where there is none, of no pixel
        measures: of those
        sound: bool (N,), which have one that fills its image
    """

    present: np.ndarray
    runs: Runs
    measures: Measures
    sound: np.ndarray


def masks_of(rows: pa.Table, images: Images, boxed: bool = False) -> tuple[Masks, list[Wrong]]:
    """The masks of a table's rows, with their boxes if asked for, and what is wrong with them."""
    column = rows["segmentation"]
    present = ~is_null(column)
    counts, size = pc.struct_field(column, "counts"), pc.struct_field(column, "size")
    heights, widths = (numbers(pc.list_element(size, place), 0).astype(np.int64) for place in (0, 1))
    runs = runs_of(counts.fill_null(""), heights, widths)
    places, known = images.places(numbers(rows["image_id"]))
    expected = images.height[places], images.width[places]
    fits = (heights == expected[0]) & (widths == expected[1])
    # Only the runs of a mask that has its image's size are read: any other size may be beyond all numbers.
    measures = measure(runs._replace(heights=np.where(fits, heights, 0), widths=np.where(fits, widths, 0)), boxed)
    say = lambda row: f"mask of {heights[row]} x {widths[row]} in an image of {expected[0][row]} x {expected[1][row]}"  # noqa: E731
    wrong = [
        Wrong("runs", present & known & ~fits, say),
        Wrong("runs", present & known & fits & (measures.faults > 0), lambda row: FAULTS[int(measures.faults[row])]),
    ]
    return Masks(present, runs, measures, present & known & fits & (measures.faults == 0)), wrong


def _check_areas(rows: pa.Table, masks: Masks) -> Iterator[Wrong]:
    areas, covered = numbers(rows["area"]), masks.measures.areas
    differs = masks.sound & (areas != covered)
    yield Wrong("area", differs, lambda row: f"area {areas[row]:g} but the runs cover {covered[row]}")


# The tables


def check_annotations(rows: pa.Table, images: Images, vocabulary: Vocabulary) -> Iterator[Wrong]:
    """Rows of annotations."""
    yield from _check_images_of(rows, images)
    yield from _check_ranks(rows, "annotation_id")
    yield from _check_score(numbers(rows["score"]))
    yield from _check_category(rows, vocabulary)
    yield from _check_model(rows, vocabulary)
    yield from _check_boxes(rows, images, vocabulary)
    yield from _check_keypoints(rows, vocabulary)
    masks, wrong = masks_of(rows, images)
    yield from wrong
    yield from _check_areas(rows, masks)
    areas, (_, _, width, height) = numbers(rows["area"]), _sides(rows)
    differs = ~masks.present & ~(np.abs(areas - width * height) <= AREA_ROUNDING * width * height)
    yield Wrong("area", differs, lambda row: f"area {areas[row]:g} but the box is {width[row]:g} x {height[row]:g}")


def check_counts(rows: pa.Table | None, images: Images) -> Iterator[Wrong]:
    """Rows of images: num_annotations against the rows of annotations, or of none."""
    found = np.zeros(len(images.ok), np.int64)
    if rows is not None:
        places = numbers(rows["image_id"]) - images.first
        found += np.bincount(places[(places >= 0) & (places < len(found))], minlength=len(found))
    said = images.objects
    yield Wrong("count", said != found, lambda row: f"num_annotations {said[row]}, and there are {found[row]}")


def _check_keypoints(rows: pa.Table, vocabulary: Vocabulary) -> Iterator[Wrong]:
    lists = rows["keypoints"].combine_chunks()
    present, lengths = ~is_null(rows["keypoints"]), numbers(pa.chunked_array([pc.list_value_length(lists)]), 0)
    places, known = vocabulary.places(numbers(rows["category_id"]))
    points = vocabulary.keypoints[places] if len(vocabulary.keypoints) else np.zeros(len(rows), np.int64)
    named = known & (points > 0)
    wrong = np.where(named, lengths != 3 * points, lengths % 3 != 0)
    said = lambda row: f"{points[row]} points" if named[row] else "points"  # noqa: E731
    yield Wrong(
        "keypoints", present & wrong, lambda row: f"{lengths[row]} numbers for the x, y, visibility of {said(row)}"
    )
    if present.any() and not (present & wrong).any():
        values, owners = lists.flatten().to_numpy(zero_copy_only=False), pc.list_parent_indices(lists).to_numpy()
        odd = ~np.isfinite(values)
        odd[2::3] |= ~np.isin(values[2::3], (0, 1, 2))
        bad = np.zeros(len(rows), bool)
        bad[owners[odd]] = True
        yield Wrong("keypoints", bad, lambda _: "a keypoint is not finite, or its visibility is not 0, 1 or 2")


def check_proposals(rows: pa.Table, images: Images, vocabulary: Vocabulary) -> Iterator[Wrong]:
    """Rows of proposals."""
    yield from _check_images_of(rows, images)
    yield from _check_ranks(rows, "proposal_id")
    yield from _check_score(numbers(rows["score"]))
    yield from _check_model(rows, vocabulary)
    yield from _check_boxes(rows, images, vocabulary)


def check_segments(rows: pa.Table, images: Images, vocabulary: Vocabulary) -> Iterator[Wrong]:
    """Rows of segments."""
    yield from _check_images_of(rows, images)
    yield from _check_score(numbers(rows["score"], 0.0))
    yield from _check_category(rows, vocabulary)
    yield from _check_things(rows, vocabulary)
    yield from _check_model(rows, vocabulary)
    yield from _check_segment_ids(rows)
    masks, wrong = masks_of(rows, images, boxed=True)
    yield from wrong
    yield from _check_areas(rows, masks)
    extents, sides = masks.measures.boxes, np.stack(_sides(rows), axis=1)
    differs = masks.sound & (sides != extents).any(1)
    yield Wrong("extent", differs, lambda row: f"box {sides[row].tolist()} but the runs' is {extents[row].tolist()}")
    yield from _check_overlaps(rows, masks)


def _check_things(rows: pa.Table, vocabulary: Vocabulary) -> Iterator[Wrong]:
    places, known = vocabulary.places(numbers(rows["category_id"]))
    isthing = vocabulary.isthing[places] if len(vocabulary.isthing) else np.zeros(len(rows), bool)
    differs = known & (numbers(rows["isthing"]) != isthing)
    yield Wrong("reference", differs, lambda row: f"isthing is {not isthing[row]}, its category's is {isthing[row]}")


def _check_segment_ids(rows: pa.Table) -> Iterator[Wrong]:
    image_ids, ids = numbers(rows["image_id"]), numbers(rows["segment_id"])
    yield Wrong("segment", ids <= 0, lambda row: f"segment_id {ids[row]}")
    order = np.lexsort((ids, image_ids))
    again = (np.diff(ids[order]) == 0) & (np.diff(image_ids[order]) == 0)
    bad = np.zeros(len(ids), bool)
    bad[order[1:][again]] = True
    yield Wrong("segment", bad, lambda row: f"segment_id {ids[row]} is in image {image_ids[row]} twice")
    kinds = pc.is_in(rows["kind"].cast(pa.string()), pa.array(["panoptic", "semantic"])).to_numpy()
    yield Wrong("segment", ~kinds, lambda row: f"kind {rows['kind'][row].as_py()!r}")


def check_instances(rows: pa.Table, annotations: pa.Table | None) -> Iterator[Wrong]:
    """Rows of segments: the annotations that they came from are those of their images."""
    named, ids = ~is_null(rows["annotation_id"]), numbers(rows["annotation_id"], -1)
    existing = np.zeros(0, np.int64) if annotations is None else numbers(annotations["annotation_id"])
    found = np.isin(ids, existing) & (ids // ROWS_PER_IMAGE == numbers(rows["image_id"]))
    yield Wrong("reference", named & ~found, lambda row: f"its image has no annotation {ids[row]}")


def _check_overlaps(rows: pa.Table, masks: Masks) -> Iterator[Wrong]:
    """Segments of one layer share no pixel: all panoptic ones of an image, and each model's semantic ones."""
    ids, semantic = numbers(rows["segment_id"]), equals(rows["kind"], "semantic")
    models = rows["model"].cast(pa.string()).combine_chunks().dictionary_encode().indices.to_numpy()
    layers = np.stack([numbers(rows["image_id"]), np.where(semantic, models, -1)], axis=1)
    sound = np.flatnonzero(masks.sound)
    layer = np.unique(layers[sound], axis=0, return_inverse=True)[1].reshape(-1)
    other = overlaps(masks.runs, sound, layer)
    yield Wrong("overlap", other >= 0, lambda row: f"shares pixels with segment_id {ids[other[row]]}, row {other[row]}")


CHECKS = {"annotations": check_annotations, "segments": check_segments, "proposals": check_proposals}
