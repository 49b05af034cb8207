"""Each promise about rows has a mutant: rows with right checksums that are wrong in a way that one check alone sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import CATEGORIES, FAILED, HEIGHT, WIDTH, ring, write_images
from labels import Row, box, segment_row
from pycocotools import mask as coco_mask
from whole import OUTPUT, Change, Made, clear, restore

from prelabel.pipeline.storage import Storage
from prelabel.pipeline.validate import PROMISES, validate
from prelabel.pipeline.validate.masks import measure, overlaps, runs_of
from prelabel.schemas import rle
from prelabel.schemas.tables import part_name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(write_images(str(tmp_path_factory.mktemp("images"))))


@pytest.fixture(autouse=True)
def storage(made: Made) -> Iterator[Storage]:
    restore(made.files)
    yield Storage(OUTPUT)
    clear()


# Unit 0 holds the images 0 (no object), 1 (one) and 2 (two); unit 1 the images 3, 4 (which failed) and 5.


def put(table: str, row: int, **values: Any) -> Change:
    return lambda tables: tables[table][row].update(values)


def swapped(table: str, name: str, row: int, other: int) -> Change:
    def change(tables: dict[str, list[Row]]) -> None:
        rows = tables[table]
        rows[row][name], rows[other][name] = rows[other][name], rows[row][name]

    return change


def mask_of(height: int = HEIGHT, width: int = WIDTH, counts: str | None = None) -> Row:
    return {"size": [height, width], "counts": rle.encode(ring(0)).counts if counts is None else counts}


def lengths(*runs: int) -> str:
    """Runs that need not fill an image: COCO's string of up to three numbers, each of up to 15 bits."""
    groups = [[run & 31, run >> 5 & 31, run >> 10] for run in runs]
    return "".join(chr(a + 32 + 48) + chr(b + 32 + 48) + chr(c + 48) for a, b, c in groups)


def points(*last: float) -> list[float]:
    return [1.0, 1.0, 2.0] * 16 + list(last)


def failed_with_an_object(tables: dict[str, list[Row]]) -> None:
    row = dict(tables["annotations"][0], image_id=FAILED, annotation_id=FAILED * 65_536)
    tables["annotations"].insert(0, row)
    tables["images"][1]["num_annotations"] = 1


PIXELS = HEIGHT * WIDTH
MUTANTS: dict[str, tuple[str, str, int, Change]] = {
    "key": ("image", "images", 1, put("images", 1, key="another.png")),
    "shard": ("image", "images", 1, put("images", 1, shard="another")),
    "unit": ("image", "images", 1, put("images", 1, unit=2)),
    "lost image": ("image", "images", 0, lambda tables: tables["images"].pop(0)),
    "doubled image": ("image", "images", 1, lambda tables: tables["images"].insert(0, tables["images"][0])),
    "foreign image": (
        "image",
        "images",
        3,
        lambda tables: tables["images"].append(tables["images"][0] | {"image_id": 9}),
    ),
    "order of images": ("image", "images", 1, lambda tables: tables["images"].insert(0, tables["images"].pop(1))),
    "status": ("status", "images", 0, put("images", 0, status="maybe", labels=None)),
    "ok with a code": ("status", "images", 0, put("images", 0, error_code="truncated")),
    "ok with an error": ("status", "images", 0, put("images", 0, error="cut off")),
    "ok without width": ("status", "images", 0, put("images", 0, width=None)),
    "ok without height": ("status", "images", 0, put("images", 0, height=0)),
    "ok without digest": ("status", "images", 0, put("images", 0, digest=None)),
    "orientation": ("status", "images", 0, put("images", 0, orientation=9)),
    "failed without a code": ("status", "images", 1, put("images", 1, error_code=None)),
    "failed with labels": ("status", "images", 1, put("images", 1, labels=[])),
    "num_annotations": ("count", "images", 0, put("images", 0, num_annotations=1)),
    "label of no category": (
        "reference",
        "images",
        1,
        put("images", 1, labels=[{"category_id": 3, "category": "leaf", "score": 0.5}]),
    ),
    "name of a label": (
        "reference",
        "images",
        1,
        put("images", 1, labels=[{"category_id": 2, "category": "leaf", "score": 0.5}]),
    ),
    "score of a label": (
        "score",
        "images",
        1,
        put("images", 1, labels=[{"category_id": 2, "category": "ball", "score": 1.5}]),
    ),
    "order of labels": ("rank", "images", 1, lambda tables: tables["images"][1]["labels"].reverse()),
    "object of a failed image": ("reference", "annotations", 0, failed_with_an_object),
    "category": ("reference", "annotations", 0, put("annotations", 0, category_id=3)),
    "category's name": ("reference", "annotations", 0, put("annotations", 0, category="tree")),
    "model": ("reference", "annotations", 0, put("annotations", 0, model="scenes:other")),
    "rank": ("rank", "annotations", 2, swapped("annotations", "score", 1, 2)),
    "score": ("score", "annotations", 0, put("annotations", 0, score=1.01)),
    "score of nan": ("score", "annotations", 0, put("annotations", 0, score=float("nan"))),
    "box of nan": ("box", "annotations", 0, put("annotations", 0, bbox=box(1, float("nan"), 3, 4))),
    "box of less than nothing": ("box", "annotations", 0, put("annotations", 0, bbox=box(1, 1, -3, 4))),
    "box left of the image": ("box", "annotations", 0, put("annotations", 0, bbox=box(-0.1, 1, 3, 4))),
    "box below the image": ("box", "annotations", 0, put("annotations", 0, bbox=box(1, 1, 3, 23.1))),
    "area of a mask": ("area", "annotations", 0, put("annotations", 0, area=157)),
    "area of a box": ("area", "annotations", 0, put("annotations", 0, segmentation=None, area=167)),
    "size of a mask": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of(WIDTH, HEIGHT))),
    "no counts": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of() | {"counts": None})),
    "no size": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of() | {"size": None})),
    "no run-length string": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of(counts="1~"))),
    "cut off string": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of(counts="1P"))),
    "negative run": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of(counts="1O1"))),
    "runs too long": ("runs", "annotations", 0, put("annotations", 0, segmentation=mask_of(counts=lengths(PIXELS, 1)))),
    "runs too short": (
        "runs",
        "annotations",
        0,
        put("annotations", 0, segmentation=mask_of(counts=lengths(PIXELS - 1))),
    ),
    "too few keypoints": ("keypoints", "annotations", 0, put("annotations", 0, keypoints=points())),
    "visibility": ("keypoints", "annotations", 0, put("annotations", 0, keypoints=points(1, 1, 3))),
    "keypoint nowhere": ("keypoints", "annotations", 0, put("annotations", 0, keypoints=points(1, float("inf"), 2))),
    "segment of no image": ("reference", "segments", 4, put("segments", 4, image_id=9)),
    "order of segments": (
        "rank",
        "segments",
        1,
        lambda tables: tables["segments"].insert(0, tables["segments"].pop(2)),
    ),
    "segment of no category": ("reference", "segments", 0, put("segments", 0, category_id=1)),
    "thing": ("reference", "segments", 0, put("segments", 0, isthing=False)),
    "segment's model": ("reference", "segments", 0, put("segments", 0, model="")),
    "segment's score": ("score", "segments", 0, put("segments", 0, score=-1)),
    "segment's kind": ("segment", "segments", 0, put("segments", 0, kind="instance")),
    "segment of number 0": ("segment", "segments", 0, put("segments", 0, segment_id=0)),
    "segment id twice": ("segment", "segments", 3, put("segments", 3, segment_id=1)),
    "segment of no annotation": ("reference", "segments", 0, put("segments", 0, annotation_id=65_537)),
    "annotation of another image": ("reference", "segments", 0, put("segments", 0, annotation_id=2 * 65_536)),
    "segment's area": ("area", "segments", 0, put("segments", 0, area=1)),
    "segment's box": ("extent", "segments", 0, put("segments", 0, bbox=box(3, 2, 14, 13))),
    "segment's size": ("runs", "segments", 0, put("segments", 0, segmentation=mask_of(WIDTH, HEIGHT))),
    "segments that overlap": (
        "overlap",
        "segments",
        3,
        lambda tables: tables["segments"][3].update(segment_row(2, 2, CATEGORIES[5], ring(5))),
    ),
    "proposal's rank": ("rank", "proposals", 0, put("proposals", 0, proposal_id=65_537)),
    "proposal of no image": ("reference", "proposals", 2, put("proposals", 2, image_id=9, proposal_id=9 * 65_536)),
    "proposal's score": ("score", "proposals", 0, put("proposals", 0, score=2)),
    "proposal's box": ("box", "proposals", 0, put("proposals", 0, bbox=box(0, 0, 33, 4))),
    "proposal's model": ("reference", "proposals", 0, put("proposals", 0, model="x")),
}
IN_UNIT_1 = ("failed", "object of a failed")


@pytest.mark.parametrize("name", MUTANTS)
def test_rows_that_break_one_promise_are_named(made: Made, name: str) -> None:
    kind, table, row, change = MUTANTS[name]
    unit = 1 if name.startswith(IN_UNIT_1) else 0
    made.write(unit, change)
    found = validate(OUTPUT)
    assert set(found.violations.counts) == {kind}, list(found.lines(9))
    (file,) = {one.file for one in found.violations.kept}
    assert file == f"{table}/{part_name(unit)}"
    assert row in [one.row for one in found.violations.kept]
    assert found.violations.units == {unit}
    assert found.exit_code == 3


def test_every_promise_about_rows_has_a_mutant() -> None:
    of_files = {"job", "plan", "commit", "failure", "stray", "part", "schema", "review"}
    assert {kind for kind, *_ in MUTANTS.values()} == set(PROMISES) - of_files


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_masks_are_measured_as_their_pixels_say(data: st.DataObject) -> None:
    size = height, width = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    seeds = data.draw(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 1)), min_size=1, max_size=6))
    pixels = [np.random.default_rng(seed).random(size) < share for seed, share in seeds]
    masks = [rle.encode(one) for one in pixels]
    strings = pa.chunked_array([[one.counts] for one in masks])
    runs = runs_of(strings, np.full(len(masks), height), np.full(len(masks), width))
    found = measure(runs)
    assert not found.faults.any()
    assert found.areas.tolist() == [int(one.sum()) for one in pixels]
    for extent, one in zip(found.boxes.tolist(), pixels, strict=True):
        ys, xs = np.nonzero(one)
        assert extent == ([xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] if len(xs) else [0, 0, 0, 0])
    layers = np.array([seed % 2 for seed, _ in seeds])
    other = overlaps(runs, np.arange(len(masks)), layers)
    for layer in (0, 1):
        inside = np.flatnonzero(layers == layer)
        apart = sum(pixels[k].astype(int) for k in inside).max() <= 1 if len(inside) else True
        assert (other[inside] == -1).all() == apart
    for mask in np.flatnonzero(other >= 0):
        assert (pixels[mask] & pixels[other[mask]]).any()
        assert layers[mask] == layers[other[mask]]


@given(counts=st.text(st.characters(max_codepoint=127), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_string_is_a_mask_or_has_a_fault(counts: str) -> None:
    runs = runs_of(pa.chunked_array([[counts]]), np.array([7]), np.array([5]))
    found = measure(runs)
    if not found.faults[0]:
        assert found.areas[0] == coco_mask.area({"size": [7, 5], "counts": counts})
