"""Comparing jobs whose differences are known."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import CATEGORIES, FAILED, HEIGHT, MODEL, WIDTH, write_images
from labels import Row, box, rows_of_everything, segment_row, write_labels
from shards import tiny_images, write_files, write_tar

from prelabel.pipeline.compare import compare
from prelabel.pipeline.compare.matching import Objects, match
from prelabel.pipeline.dataset import LabelDataset
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError

BALL, LEAF = CATEGORIES
EVERYTHING = ("detect_keypoints", "fuse_panoptic")


def thing(category: Category, *sides: float, score: float = 0.5, mask: np.ndarray | None = None) -> Row:
    """An object by its box, x y width height; write_objects adds the rest."""
    found = {"category_id": category.id, "category": category.name, "score": score, "bbox": box(*sides)}
    return found | {"segmentation": None if mask is None else rle.encode(mask).to_coco()}


def write_objects(
    source: str,
    output: Path,
    objects: Callable[[Row], list[Row]],
    categories: CategorySet = CATEGORIES,
    failed: Collection[str] = (),
    units: int | None = None,
) -> LabelDataset:
    """A job with an image's objects, by its row in the images table, but for the images of the keys that failed."""

    def rows(image: Row) -> dict[str, list[Row]]:
        image["status"] = "failed" if image["key"] in failed else "ok"
        common = {"image_id": image["image_id"], "area": 1, "iscrowd": False, "model": MODEL}
        found = objects(image) if image["status"] == "ok" else []
        ids = ({"annotation_id": 65_536 * image["image_id"] + rank} for rank in range(len(found)))
        return {"annotations": [one | common | number for one, number in zip(found, ids, strict=True)]}

    return write_labels(source, str(output), rows, ["detect"], categories, units)


@pytest.fixture
def images(tmp_path: Path) -> str:
    return write_images(f"{tmp_path}/images")


def counts(change: Any) -> tuple[int, ...]:
    return (change.matched, change.moved, change.reclassified, change.appeared, change.vanished)


def test_each_object_is_in_one_group(tmp_path: Path, images: str) -> None:
    ours = [
        thing(BALL, 0, 0, 10, 10, score=0.75),
        thing(BALL, 20, 0, 10, 10, score=0.75),
        thing(BALL, 0, 20, 10, 10),
        thing(LEAF, 20, 20, 10, 10),
    ]
    theirs = [
        thing(BALL, 0, 0, 10, 10, score=0.5),  # where it was
        thing(BALL, 20, 0, 10, 8, score=0.625),  # moved: IoU 0.8
        thing(LEAF, 0, 20, 10, 10),  # was a ball
        thing(LEAF, 25, 20, 10, 10),  # IoU 1/3 with the one that was there
        thing(BALL, 40, 40, 5, 5),
    ]
    before = write_objects(images, tmp_path / "a", lambda image: ours if image["image_id"] == 2 else [])
    after = write_objects(images, tmp_path / "b", lambda image: theirs if image["image_id"] == 2 else [])
    found = compare(before, after).kinds["objects"]
    assert counts(found.total) == (1, 1, 1, 2, 1)
    assert counts(found.categories["ball"]) == (1, 1, 1, 1, 0)
    assert counts(found.categories["leaf"]) == (0, 0, 0, 1, 1)
    assert found.reclassified == {("ball", "leaf"): 1}
    assert found.total.mean_iou == pytest.approx(0.9)
    assert found.total.score_change == pytest.approx((-0.25 - 0.125) / 2)
    assert found.total.amount == pytest.approx(1 + 2 + 1 + 0.2)
    assert counts(compare(before, after, iou=0.3).kinds["objects"].total) == (1, 2, 1, 1, 0)
    assert counts(compare(before, after, iou=0.9).kinds["objects"].total) == (1, 0, 1, 3, 2)
    assert counts(compare(before, after, score_threshold=0.625).kinds["objects"].total) == (0, 1, 0, 0, 1)


def test_masks_decide_where_both_have_them_and_boxes_elsewhere(tmp_path: Path, images: str) -> None:
    left, right = np.zeros((2, HEIGHT, WIDTH), bool)
    left[:, :8] = right[:, 8:16] = True
    masks = [left, right, np.ones((HEIGHT + 1, WIDTH), bool), None]
    jobs = [
        write_objects(images, tmp_path / str(k), lambda _, mask=mask: [thing(BALL, 0, 0, 16, HEIGHT, mask=mask)])
        for k, mask in enumerate(masks)
    ]
    for i, before in enumerate(masks):
        for j, after in enumerate(masks):
            is_same = i == j or before is None or after is None
            expected = (7, 0, 0, 0, 0) if is_same else (0, 0, 0, 7, 7)
            assert counts(compare(jobs[i], jobs[j]).kinds["objects"].total) == expected


def random_objects(seed: int) -> Callable[[Row], list[Row]]:
    """Some twice, some with a mask, some of those without any pixel."""

    def objects(image: Row) -> list[Row]:
        rng = np.random.default_rng([seed, *image["key"].encode()])
        found = []
        for score in np.sort(rng.random(rng.integers(12)))[::-1]:
            top, left, height, width = rng.integers(0, 8, 4).tolist()
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[top : top + height, left : left + width] = rng.random() < 0.8
            category = (BALL, LEAF)[rng.integers(2)]
            found.append(
                thing(category, left, top, width, height, score=score, mask=mask if rng.random() < 0.5 else None)
            )
        return found + found[:2]

    return objects


def test_job_equals_itself(tmp_path: Path, images: str) -> None:
    for labels in (
        write_objects(images, tmp_path / "a", random_objects(0)),
        write_labels(images, f"{tmp_path}/b", rows_of_everything, EVERYTHING),
    ):
        found = compare(labels, labels)
        assert found.images["compared"] + found.images["failed_both"] == sum(found.images.values()) == 7
        assert found.most_changed == ()
        for changes in found.kinds.values():
            for change in (changes.total, *changes.categories.values()):
                assert counts(change) == (change.before, 0, 0, 0, 0)
                assert change.before == change.after > 0
                assert change.mean_iou == pytest.approx(1)
                assert change.score_change in (0, None)


def swapped(changes: dict[str, Any]) -> dict[str, Any]:
    names = {"before": "after", "after": "before", "appeared": "vanished", "vanished": "appeared"}
    found = {names.get(name, name): value for name, value in changes.items()}
    return found | {
        "score_change": pytest.approx(-changes["score_change"]),
        "mean_iou": pytest.approx(found["mean_iou"]),
    }


def test_swapped_jobs_swap_what_appeared_and_what_vanished(tmp_path: Path, images: str) -> None:
    a, b = (write_objects(images, tmp_path / str(seed), random_objects(seed)) for seed in (1, 2))
    forth, back = compare(a, b), compare(b, a)
    there, here = forth.kinds["objects"], back.kinds["objects"]
    assert min(counts(there.total)[1:]) > 0
    assert here.total.to_dict() == swapped(there.total.to_dict())
    assert here.reclassified == {(after, before): n for (before, after), n in there.reclassified.items()}
    assert [one.key for one in back.most_changed] == [one.key for one in forth.most_changed]
    for changes in (there, here):
        for name, change in changes.categories.items():
            became = sum(n for (_, after), n in changes.reclassified.items() if after == name)
            assert change.before == change.matched + change.moved + change.reclassified + change.vanished
            assert change.after == change.matched + change.moved + became + change.appeared


Shape = tuple[str, tuple[int, int, int, int], bool]
SHAPES = st.lists(st.tuples(st.sampled_from("ab"), st.tuples(*[st.integers(0, 4)] * 4), st.booleans()), max_size=7)
"""Categories, rectangles, and whether they are masks; so few places that many have the same IoU."""
BOX_OF_MASKS = (0, 0, 3, 3)


def pixels(sides: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((8, 8), bool)
    mask[sides[1] : sides[1] + sides[3], sides[0] : sides[0] + sides[2]] = True
    return mask


def as_objects(shapes: list[Shape]) -> Objects:
    rows = [
        {"score": None, "bbox": box(*BOX_OF_MASKS), "segmentation": rle.encode(pixels(sides)).to_coco()}
        if is_mask
        else {"score": 0.5, "bbox": box(*sides), "segmentation": None}
        for _, sides, is_mask in shapes
    ]
    return Objects.of(rows, [category for category, _, _ in shapes])


def reference_iou(a: Shape, b: Shape) -> float:
    (_, ours, has_mask), (_, theirs, have_mask) = a, b
    if not (has_mask and have_mask and (pixels(ours) | pixels(theirs)).any()):
        ours, theirs = BOX_OF_MASKS if has_mask else ours, BOX_OF_MASKS if have_mask else theirs
    shared, union = pixels(ours) & pixels(theirs), pixels(ours) | pixels(theirs)
    return float(shared.sum() / union.sum()) if union.any() else float(ours == theirs)


@settings(max_examples=150, deadline=None)
@given(SHAPES, SHAPES, st.sampled_from([0.1, 0.5, 1.0]))
def test_matching_equals_one_pair_at_a_time(before: list[Shape], after: list[Shape], threshold: float) -> None:
    rest = {(i, j): reference_iou(a, b) for i, a in enumerate(before) for j, b in enumerate(after)}
    rest = {pair: iou for pair, iou in rest.items() if iou >= threshold}
    expected = {}
    while rest:
        best = max(rest, key=lambda pair: (before[pair[0]][0] == after[pair[1]][0], rest[pair], -sum(pair)))
        expected[best] = rest[best]
        rest = {pair: iou for pair, iou in rest.items() if pair[0] != best[0] and pair[1] != best[1]}
    ours, theirs = as_objects(before), as_objects(after)
    assert {(i, j): iou for i, j, iou in match(ours, theirs, threshold)} == expected
    assert {(i, j): iou for j, i, iou in match(theirs, ours, threshold)} == expected


def test_same_images_in_another_order_by_other_ids(tmp_path: Path) -> None:
    named = tiny_images(70)
    folder = write_images(f"{tmp_path}/images", len(named))
    others = {f"other-{number}.png": data for number, data in enumerate(named.values()) if number < 3}
    write_tar(f"{tmp_path}/images.tar", {**others, **dict(reversed(named.items()))})
    a, b = (write_objects(folder, tmp_path / f"folder-{k}", random_objects(k)) for k in (1, 2))
    moved = write_objects(f"{tmp_path}/images.tar", tmp_path / "tar", random_objects(2))
    for found, expected, only in (
        (compare(a, moved), compare(a, b), "only_after"),
        (compare(moved, a), compare(b, a), "only_before"),
    ):
        assert found.images == expected.images | {only: 3}
        assert found.examples == expected.examples | {only: [*others]}
        assert found.kinds["objects"].to_dict() == approximately(expected.kinds["objects"].to_dict())
        amounts = [(one.key, pytest.approx(one.change.amount)) for one in expected.most_changed]
        assert [(one.key, one.change.amount) for one in found.most_changed] == amounts


def approximately(value: Any) -> Any:
    """Numbers within the tree are compared as sums in another order are."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    return pytest.approx(value) if isinstance(value, float) else value


def test_keys_that_repeat_are_told_apart_by_their_shards(tmp_path: Path) -> None:
    for shard in ("a", "b", "c"):
        write_tar(f"{tmp_path}/{shard}.tar", tiny_images(3))

    def found_in(image: Row) -> list[Row]:
        """As many as the shard's place in the alphabet."""
        return [thing(BALL, 0, 0, 5, 5)] * (ord(image["shard"][-5]) - ord("a") + 1)

    before = write_objects(f"{tmp_path}/[bc].tar", tmp_path / "before", found_in)
    after = write_objects(f"{tmp_path}/*.tar", tmp_path / "after", found_in)
    found = compare(before, after)
    assert (found.images["compared"], found.images["only_after"]) == (6, 3)
    assert counts(found.kinds["objects"].total) == (3 * 2 + 3 * 3, 0, 0, 0, 0)


def test_images_that_failed_are_absent_or_have_other_bytes(tmp_path: Path, images: str) -> None:
    def ball(image: Row) -> list[Row]:
        image["digest"] = ("1" if "after" in labels else "0") * 64 if image["key"] == "image-2.png" else "2" * 64
        return [thing(BALL, 0, 0, 5, 5)]

    labels = "before"
    before = write_objects(images, tmp_path / labels, ball, failed=["image-0.png", "image-4.png"])
    labels = "after"
    after = write_objects(images, tmp_path / labels, ball, failed=["image-4.png", "image-6.png"], units=2)
    found = compare(before, after)
    groups = {"other_bytes": ["image-2.png"], "failed_before": ["image-0.png"], "failed_after": ["image-6.png"]}
    groups |= {"failed_both": ["image-4.png"], "only_before": ["sub/image-5.png"], "only_after": []}
    assert found.examples == groups
    assert found.images == {"compared": 3, **{group: len(keys) for group, keys in groups.items()}}
    assert counts(found.kinds["objects"].total) == (3, 0, 0, 0, 0)
    assert not any(compare(before, after, most=0).examples.values())


def test_images_are_ranked_by_how_much_changed(tmp_path: Path, images: str) -> None:
    def balls(number: int) -> Callable[[Row], list[Row]]:
        return lambda image: [thing(BALL, 10 * k, 0, 5, 5) for k in range(number * image["image_id"] // 2)]

    before, after = (write_objects(images, tmp_path / str(n), balls(n)) for n in (0, 1))
    found = compare(before, after, most=4).most_changed
    assert [(one.before, one.after, one.change.appeared) for one in found] == [
        (6, 6, 3),
        (4, 4, 2),
        (5, 5, 2),
        (2, 2, 1),
    ]
    assert [(one.before, one.change.vanished) for one in compare(after, before, most=1).most_changed] == [(6, 3)]
    assert compare(before, after, most=0).most_changed == ()
    assert len(compare(before, after, most=10).most_changed) == 5


def test_image_of_more_objects_than_a_row_group(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images", 2)
    grid = [thing(BALL, 10 * (k % 50), 10 * (k // 50), 8, 8) for k in range(2500)]
    before, after = (write_objects(source, tmp_path / str(n), lambda _, n=n: grid[:n]) for n in (2500, 2300))
    assert counts(compare(before, after).kinds["objects"].total) == (2 * 2300, 0, 0, 0, 2 * 200)


@pytest.mark.parametrize(
    ("names", "by_name"), [(["ball", "leaf"], True), (["leaf", "balloon"], True), (["Kugel", "Blatt"], False)]
)
def test_categories_are_the_same_by_name_else_by_id(
    tmp_path: Path, images: str, names: list[str], by_name: bool, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = CategorySet(Category(number, name) for number, name in zip((BALL.id, LEAF.id), names, strict=True))
    before = write_objects(images, tmp_path / "a", lambda _: [thing(BALL, 0, 0, 5, 5)])
    after = write_objects(images, tmp_path / "b", lambda _: [thing(next(iter(theirs)), 0, 0, 5, 5)], theirs)
    with caplog.at_level(logging.WARNING, "prelabel"):
        found = compare(before, after).kinds["objects"]
    assert ("categories are compared by id" in caplog.text) == (not by_name)
    assert found.reclassified == ({("ball", "leaf"): 7} if names[0] == "leaf" else {})
    assert found.total.matched + found.total.reclassified == 7


def test_one_thing_by_two_names(tmp_path: Path, images: str) -> None:
    jobs = []
    for number, name in enumerate(["tvmonitor", "tv"], start=1):
        category = Category(number, name)
        labels = [thing(category, 0, 0, 5, 5)]
        jobs.append(write_objects(images, tmp_path / name, lambda _, one=labels: one, CategorySet([category])))
    assert {name: counts(one) for name, one in compare(*jobs).kinds["objects"].categories.items()} == {
        "tvmonitor": (7, 0, 0, 0, 0)
    }


def test_segments_are_compared_by_kind(tmp_path: Path, images: str) -> None:
    left, right = np.zeros((2, HEIGHT, WIDTH), bool)
    left[:, :8] = right[:, 8:] = True

    def segments(panoptic: list[np.ndarray], semantic: list[np.ndarray]) -> Callable[[Row], dict[str, list[Row]]]:
        kinds = [("panoptic", mask) for mask in panoptic] + [("semantic", mask) for mask in semantic]
        return lambda image: {
            "segments": [
                segment_row(image["image_id"], number, BALL, mask, kind)
                for number, (kind, mask) in enumerate(kinds, start=1)
                if image["image_id"] != FAILED
            ]
        }

    tasks = ["fuse_panoptic", "segment_semantic"]
    before = write_labels(images, f"{tmp_path}/a", segments([left, right], [left]), tasks)
    after = write_labels(images, f"{tmp_path}/b", segments([right], [left]), tasks)
    fewer = write_labels(images, f"{tmp_path}/c", segments([left], []), tasks[:1])
    found = {name: counts(changes.total) for name, changes in compare(before, after).kinds.items()}
    assert found == {"panoptic": (6, 0, 0, 0, 6), "semantic": (6, 0, 0, 0, 0)}
    assert compare(before, fewer).kinds.keys() == {"panoptic"}


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, images: str) -> None:
    labels = write_objects(images, tmp_path / "labels", lambda _: [])
    write_files(f"{tmp_path}/others", {"other.png": b""})
    others = write_objects(f"{tmp_path}/others", tmp_path / "other-labels", lambda _: [])
    segments = write_labels(images, f"{tmp_path}/segments", lambda _: {"segments": []}, ["fuse_panoptic"])
    for one, other, iou, message in (
        (labels, others, 0.5, r"have no image in common: .*key"),
        (labels, segments, 0.5, r"in common: .*--task"),
        (labels, labels, 0, r"--iou is 0: give"),
        (labels, labels, float("nan"), r"--iou is nan: give"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            compare(one, other, iou)
        assert "\n" not in str(caught.value)


def test_comparison_for_people_and_programs(tmp_path: Path, images: str) -> None:
    before, after = (
        write_objects(images, tmp_path / category.name, lambda _, one=category: [thing(one, 0, 0, 5, 5)])
        for category in (BALL, LEAF)
    )
    found = compare(before, after)
    text = "\n".join(found.lines())
    assert "7 images compared" in text
    assert "7 ball became leaf" in text
    assert "image-0.png" in text
    document = json.loads(json.dumps(found.to_dict()))
    assert document["images"]["compared"] == 7
    assert document["kinds"]["objects"]["categories"]["ball"]["reclassified"] == 7
    assert document["kinds"]["objects"]["reclassified"] == [{"before": "ball", "after": "leaf", "count": 7}]
    assert document["most_changed"][0] | {"key": "image-0.png", "amount": 1} == document["most_changed"][0]
