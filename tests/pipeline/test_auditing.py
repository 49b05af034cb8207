"""Estimates against truth: by hand, over many samples of made-up labels, and the whole way on small jobs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from drawn import hits, probabilities
from jobs import CATEGORIES, FAILED, MODEL, write_images
from labels import Row, box, write_labels
from scipy import stats

from prelabel.pipeline.auditing import Audit, audit
from prelabel.pipeline.cli import cli
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.proportions import Proportion, estimate, student_quantile, wilson
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.pipeline.sampling import choose, open_sample
from prelabel.schemas.errors import UserError

SEEDS = 300
BALL, LEAF = CATEGORIES
EMPTY = 7


def estimate_of(part: list[int], whole: list[int], probability: list[float]) -> Proportion:
    return estimate(*(np.array(one, np.float64) for one in (part, whole, probability)))


# By hand


def test_estimate_by_hand() -> None:
    found = estimate_of([2, 1, 0, 3], [2, 2, 0, 4], [1.0, 0.5, 0.5, 0.25])
    # weights 1, 2, 4: right 2 + 2 + 12 = 16 of 2 + 4 + 16 = 22
    assert found.value == pytest.approx(16 / 22)
    assert (found.objects, found.images) == (8, 3)
    errors = 0.5 * (2 * (1 - 2 * 16 / 22) / 22) ** 2 + 0.75 * (4 * (3 - 4 * 16 / 22) / 22) ** 2
    alone = (0.5 * 2**2 * 2 + 0.75 * 4**2 * 4) / 22**2
    assert 3 / 2 * errors < alone * 16 / 22 * 6 / 22
    assert found.design_effect == 1  # so that a lucky small variance counts for nothing
    assert (found.low, found.high) == pytest.approx(wilson(16 / 22, 1 / alone, stats.t.ppf(0.975, 2)))


def test_objects_that_are_wrong_together_count_for_fewer() -> None:
    found = estimate_of([4] * 8 + [0] * 2, [4] * 10, [0.5] * 10)
    assert found.value == 0.8
    variance = 10 / 9 * 0.5 * (8 * (2 * 0.8 / 80) ** 2 + 2 * (2 * 3.2 / 80) ** 2)
    assert found.design_effect == pytest.approx(variance / (0.8 * 0.2 * 0.5 * 2**2 * 40 / 80**2))
    apart = estimate_of([3] * 8 + [4] * 2, [4] * 10, [0.5] * 10)
    assert (apart.value, apart.design_effect) == (0.8, 1)
    assert found.high - found.low > 2 * (apart.high - apart.low)


def test_nothing_wrong_in_a_sample_is_no_proof() -> None:
    found = estimate_of([3] * 20, [3] * 20, [0.1] * 20)
    assert found.value == found.high == 1
    assert 0.85 < found.low < 0.95
    assert (found.low, 1.0) == pytest.approx(wilson(1, 60 / 0.9, stats.t.ppf(0.975, 19)))
    none = estimate_of([0] * 20, [3] * 20, [0.1] * 20)
    assert (none.low, none.high) == pytest.approx((0, 1 - found.low))


def test_all_images_leave_nothing_to_estimate() -> None:
    found = estimate_of([1, 2], [2, 3], [1.0, 1.0])
    assert found.low == found.value == found.high == 0.6


@pytest.mark.parametrize(("images", "value"), [([], None), ([(1, 1)], 1.0)])
def test_too_few_images_say_nothing(images: list[tuple[int, int]], value: float | None) -> None:
    found = estimate_of([a for a, _ in images], [b for _, b in images], [0.5] * len(images))
    assert (found.value, found.low, found.high) == (value, 0, 1)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 5), (80, 90), (50, 50)])
def test_wilson_is_that_of_scipy(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson(right / count, count, stats.norm.ppf(0.975)) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 1_000])
def test_student_is_that_of_scipy(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


# Over many samples


@pytest.fixture(scope="module")
def population() -> dict[str, np.ndarray]:
    """600 images with objects of two categories, the second one rare, that are wrong together with their image's."""
    rng = np.random.default_rng(1)
    objects = rng.poisson(3, (600, 2))
    objects[rng.random((600, 2)) < 0.35] = 0
    objects[rng.random(600) < 0.7, 1] = 0
    precision = np.stack([rng.beta(6 * p, 6 - 6 * p, 600) for p in (0.8, 0.93)], axis=1)
    right = rng.binomial(objects, precision)
    strata = np.where(objects.any(1), "found", "empty")
    wrong = (objects - right).sum(1)
    rare = objects[:, 1] > 0
    common = np.bincount(rare[strata == "found"])
    asked = {
        "random": np.zeros(600),
        "uncertainty": np.maximum(0, wrong * rng.random(600) + rng.normal(0, 0.5, 600)),
        "disagreement": rng.poisson(0.3, 600) * objects.sum(1),
        "diversity": 1 / common[rare.astype(int)],
    }
    asked = {by: size * (strata == "found") for by, size in asked.items()}
    return {"objects": objects, "right": right, "strata": strata, "rare": rare} | asked


@pytest.mark.parametrize("by", ["random", "uncertainty", "disagreement", "diversity"])
def test_intervals_hold_the_truth_as_often_as_they_say(by: str, population: dict[str, np.ndarray]) -> None:
    chance, strata = probabilities(population["strata"], population[by], 80), population["strata"]
    place = population["rare"] * (by == "diversity")
    samples = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        samples.append(hits(chance, np.lexsort((rng.random(600), place, strata)), rng.random()))
    for of in ([0, 1], [0], [1]):
        whole, part = (population[name][:, of].sum(1).astype(float) for name in ("objects", "right"))
        truth = part.sum() / whole.sum()
        found = [estimate(part[ids], whole[ids], chance[ids]) for ids in samples]
        covered = np.mean([one.low <= truth <= one.high for one in found])
        assert 0.92 <= covered <= 0.98, of
        values = np.array([one.value for one in found])
        assert abs(values.mean() - truth) < 0.01, of
        totals = np.array([(part[ids] / chance[ids]).sum() for ids in samples])
        assert abs(totals.mean() - part.sum()) < 4 * totals.std() / math.sqrt(SEEDS), of


# The whole way


def objects(image: Row) -> list[Row]:
    """A ball with a score of 0.9, and in every other image a leaf of 0.6; none in image EMPTY."""
    image_id = image["image_id"]
    if image_id in (EMPTY, FAILED):
        return []
    return [thing(BALL, 0, 0.9), *([thing(LEAF, 12, 0.6)] if image_id % 2 else [])]


def thing(category: Any, x: float, score: float = 1.0) -> Row:
    return {"category_id": category.id, "category": category.name, "score": score, "bbox": box(x, 1, 8, 9)}


def write_objects(folder: Path, of: Callable[[Row], list[Row]], output: str) -> LabelDataset:
    def rows(image: Row) -> dict[str, list[Row]]:
        found, image_id = of(image), image["image_id"]
        common = {"image_id": image_id, "area": 72.0, "iscrowd": False, "model": MODEL}
        return {"annotations": [one | common | {"annotation_id": 65_536 * image_id + k} for k, one in enumerate(found)]}

    return write_labels(write_images(f"{folder}/images", 12), f"{folder}/{output}", rows, ["detect"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_objects(folder, objects, "labels")
    return folder


@pytest.fixture
def labels(written: Path, tmp_path: Path) -> LabelDataset:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return LabelDataset(f"{tmp_path}/labels")


def say(labels: LabelDataset, *verdicts: tuple[int, int | None, str | None]) -> None:
    reviews = [Review(image, None if rank is None else 65_536 * image + rank, said) for image, rank, said in verdicts]
    write_reviews(labels, "anna", reviews)


def test_verdicts_of_all_images_are_exact(labels: LabelDataset) -> None:
    choose(labels, "random", 100)
    say(labels, *((image_id, None, "accept") for image_id in range(12)), (1, 0, "reject"), (3, 1, "reject"))
    say(labels, (0, 0, "reject"))
    say(labels, (0, 0, None))  # taken back: that of the image holds again
    found = audit(labels)
    assert (found.reviewed, found.chosen, found.begun, found.outside) == (12, 12, 0, 0)
    assert found.objects == {"ball": 10, "leaf": 5}
    assert {name: (one.low, one.value, one.high) for name, one in found.precision.items()} == {
        "ball": (0.9, 0.9, 0.9),
        "leaf": (0.8, 0.8, 0.8),
    }
    assert found.all_precision.value == pytest.approx(13 / 15)
    assert (found.recall, found.all_recall) == ({}, None)


def test_only_reviewed_images_of_the_sample_count(labels: LabelDataset) -> None:
    sample = choose(labels, "random", 8)
    chosen = sample.rows["image_id"].to_pylist()
    others = set(range(12)) - {*chosen}
    two = next(image_id for image_id in chosen if image_id % 2 and image_id != EMPTY)
    doubtful = next(image_id for image_id in chosen if image_id != two and image_id not in (EMPTY, FAILED))
    full = [image_id for image_id in chosen if image_id not in (two, doubtful)]
    say(labels, (two, 0, "accept"), (doubtful, None, "flag"))
    say(labels, *((image_id, None, "reject") for image_id in others))
    with pytest.raises(UserError, match="none of the 8 images of sample random-8-0 is reviewed yet: `prelabel review"):
        audit(labels)
    say(labels, *((image_id, None, "accept") for image_id in full))
    found = audit(labels)
    assert (found.reviewed, found.begun, found.outside) == (6, 1, len(others))
    assert found.all_precision.value == 1  # none of the others' rejects
    lines = list(found.lines())
    assert lines[0] == "sample random-8-0: 6 of 8 images reviewed"
    assert lines[1].startswith("1 more are begun and don't count")
    assert lines[2].startswith("4 images are reviewed that are not in the sample")
    assert lines[-1].startswith("recall needs images in which people have marked every object")


def test_weights_speak_for_the_images_that_nobody_saw(labels: LabelDataset) -> None:
    sample = choose(labels, "uncertainty", 7, seed=2)
    rows = {row["image_id"]: row for row in sample.rows.to_pylist()}
    wrong = [(image_id, 0, "reject") for image_id in list(rows)[:3] if image_id not in (EMPTY, FAILED)]
    say(labels, *((image_id, None, "accept") for image_id in rows), *wrong)
    found = audit(labels)
    weights = {image_id: row["weight"] for image_id, row in rows.items() if image_id not in (EMPTY, FAILED)}
    right = sum(weight for image_id, weight in weights.items() if (image_id, 0, "reject") not in wrong)
    assert found.precision["ball"].value == pytest.approx(right / sum(weights.values()))


def test_score_threshold_is_that_of_the_sample_or_above(labels: LabelDataset) -> None:
    choose(labels, "random", 12, score_threshold=0.5)
    say(labels, *((image_id, None, "accept") for image_id in range(12)))
    assert audit(labels).objects == {"ball": 10, "leaf": 5}
    assert audit(labels, score_threshold=0.7).objects == {"ball": 10}
    with pytest.raises(UserError, match=r"--score-threshold 0\.1: sample random-12-0 has objects from 0\.5 on"):
        audit(labels, score_threshold=0.1)


def corrected_objects(image: Row) -> list[Row]:
    """What people made of `objects`: 1's ball is gone, 3's leaf is a ball, 0's ball has moved, EMPTY has a leaf."""
    image_id, found = image["image_id"], objects(image)
    if image_id == EMPTY:
        return [thing(LEAF, 3)]
    changes = {1: found[1:], 3: [found[0], thing(BALL, 12)] if found else [], 0: [thing(BALL, 2)]}
    return changes.get(image_id, found)


def test_corrected_labels_tell_recall_too(labels: LabelDataset, tmp_path: Path) -> None:
    corrected = write_objects(tmp_path, corrected_objects, "corrected")
    choose(labels, "random", 100)
    found = audit(labels, corrected=corrected)
    assert found.reviewed == 11  # not the one that could not be read
    assert {name: one.value for name, one in found.precision.items()} == {"ball": 9 / 10, "leaf": 4 / 5}
    assert {name: one.value for name, one in found.recall.items()} == {"ball": 9 / 10, "leaf": 4 / 5}
    assert found.all_recall is not None
    assert found.all_recall.value == pytest.approx(13 / 15)
    assert found.all_recall.objects == 15
    segments = write_labels(f"{tmp_path}/images", f"{tmp_path}/segments", lambda _: {"segments": []}, ["fuse_panoptic"])
    with pytest.raises(UserError, match="segments has no objects: give what"):
        audit(labels, corrected=segments)
    strict = audit(labels, corrected=corrected, iou=0.9)
    assert strict.precision["ball"].value == 8 / 10  # 0's ball is elsewhere


def test_corrected_labels_of_other_images_do_not_count(labels: LabelDataset, tmp_path: Path) -> None:
    corrected = write_objects(tmp_path, corrected_objects, "corrected")
    sample = choose(labels, "random", 5)
    chosen = set(sample.rows["image_id"].to_pylist()) - {FAILED}
    found = audit(labels, corrected=corrected)
    assert (found.reviewed, found.outside) == (len(chosen), 11 - len(chosen))


def test_images_that_are_missing_are_taken_to_be_missing_by_chance(labels: LabelDataset) -> None:
    sample = choose(labels, "random", 12)
    image_ids = [image_id for image_id in sample.rows["image_id"].to_pylist() if image_id not in (EMPTY, FAILED)]
    say(labels, *((image_id, None, "accept") for image_id in image_ids[:5]))
    found = audit(labels)
    assert found.all_precision.value == 1
    assert 0 < found.all_precision.low < 1  # half of the images are unknown


def test_several_samples_are_told_apart(labels: LabelDataset) -> None:
    choose(labels, "random", 12)
    choose(labels, "random", 3, name="small")
    say(labels, *((image_id, None, "accept") for image_id in range(12)))
    with pytest.raises(UserError, match="has several samples: give --sample random-12-0 or small"):
        audit(labels)
    assert audit(labels, "small").chosen == len(open_sample(labels, "small").rows) == 3


def test_images_are_judged_by_their_best_label_where_there_are_no_objects(tmp_path: Path) -> None:
    def rows(image: Row) -> dict[str, list[Row]]:
        names = [(BALL, 0.6), (LEAF, 0.4)] if image["image_id"] % 3 else [(LEAF, 0.9), (BALL, 0.1)]
        image |= {
            "labels": [{"category_id": one.id, "category": one.name, "score": s} for one, s in names]
            if image["status"] == "ok"
            else None
        }
        return {}

    source = write_images(f"{tmp_path}/images", 12)
    labels = write_labels(source, f"{tmp_path}/labels", rows, ["classify"])
    sample = choose(labels, "uncertainty", 12)
    reasons = dict(zip(sample.rows["image_id"].to_pylist(), sample.rows["reason"].to_pylist(), strict=True))
    assert reasons[1] == "uncertainty: ball 0.60"
    say(labels, *((image_id, None, "reject" if image_id == 2 else "accept") for image_id in range(12)))
    assert {name: one.value for name, one in audit(labels).precision.items()} == {"ball": 6 / 7, "leaf": 1}


def test_command_prints_a_table_or_json(labels: LabelDataset) -> None:
    choose(labels, "random", 12)
    say(labels, *((image_id, None, "accept") for image_id in range(12)), (1, 0, "reject"))
    shown = CliRunner().invoke(cli, ["audit", labels.url], catch_exceptions=False).output
    assert "ball" in shown
    assert "0.900  0.900 to 0.900" in shown
    answer = json.loads(CliRunner().invoke(cli, ["audit", labels.url, "--json"], catch_exceptions=False).stdout)
    assert answer["categories"]["ball"]["precision"]["value"] == 0.9
    assert answer["all"]["recall"] is None
    assert set(answer) == {"sample", "chosen", "reviewed", "begun", "outside", "score_threshold", "all", "categories"}
    assert isinstance(audit(labels), Audit)
