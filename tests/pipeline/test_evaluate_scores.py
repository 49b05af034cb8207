"""Calibration, thresholds and confusion, computed by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jobs import HEIGHT, MODEL, WIDTH, write_images, write_job
from labels import Row, box, write_labels

from prelabel.pipeline import cli
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.evaluate.figures import Bin, Confusion, Threshold
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError

BALL, LEAF, STONE = 2, 5, 9
CATEGORIES = CategorySet([Category(BALL, "ball"), Category(LEAF, "leaf"), Category(STONE, "stone")])
A, B, C, D, E, F, NOWHERE = ((0, 0), (0, 8), (8, 0), (16, 8), (8, 8), (16, 16), (24, 16))
"""Top-left corners of boxes that do not touch, 6 pixels wide and high."""

Object = tuple[int, int, tuple[int, int], float]
"""Image, category, corner and score."""
TRUTH = [(0, BALL, A), (0, BALL, B), (0, LEAF, C), (1, LEAF, E), (1, BALL, F)]
CROWD = (0, BALL, D)
FOUND: list[Object] = [
    (0, BALL, A, 0.95),  # right
    (0, BALL, D, 0.90),  # in the crowd: does not count
    (0, BALL, A, 0.85),  # once more: wrong
    (0, BALL, C, 0.75),  # a leaf there: wrong
    (0, LEAF, C, 0.35),  # right
    (1, LEAF, E, 0.65),  # right
    (1, LEAF, NOWHERE, 0.61),  # wrong
]


def labels_of(folder: Path, found: list[Object], images: int = 2) -> LabelDataset:
    def rows(image: Row) -> dict[str, list[Row]]:
        ids = count(65_536 * image["image_id"])
        common = {"image_id": image["image_id"], "category": "", "area": 36, "iscrowd": False, "model": MODEL}
        own = [one for one in found if one[0] == image["image_id"]]
        objects: list[Row] = [
            common | {"annotation_id": next(ids), "category_id": category, "score": score, "bbox": box(*corner, 6, 6)}
            for _, category, corner, score in own
        ]
        return {"annotations": objects}

    return write_labels(write_images(f"{folder}/images", images), f"{folder}/labels", rows, ["detect"], CATEGORIES)


def truth_of(folder: Path, truth: list[tuple[int, int, tuple[int, int]]], **changes: Any) -> str:
    """COCO's document, with ids of its own and the crowd."""
    annotations = [
        {"id": k, "image_id": 10 + image_id, "category_id": category, "bbox": [*corner, 6, 6], "area": 36}
        | {"iscrowd": int((image_id, category, corner) == CROWD)}
        for k, (image_id, category, corner) in enumerate([*truth, CROWD])
    ]
    images = [{"id": 10 + k, "file_name": f"image-{k}.png", "height": HEIGHT, "width": WIDTH} for k in range(2)]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES.to_coco()}
    (folder / "truth.json").write_text(json.dumps(document | changes))
    return f"{folder}/truth.json"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return labels_of(tmp_path_factory.mktemp("job"), FOUND)


@pytest.fixture
def found(labels: LabelDataset, tmp_path: Path) -> Any:
    found = evaluate(labels, truth_of(tmp_path, TRUTH)).detections
    assert found is not None
    return found


def test_calibration(found: Any) -> None:
    # Six objects count. Their bins: .35 | .61 .65 | .75 | .85 | .95, mean scores .35 .63 .75 .85 .95,
    # precisions 1, 1/2, 0, 0, 1. Differences by count: .65 + 2 x .13 + .75 + .85 + .05 = 2.56.
    assert found.overall.ece == pytest.approx(2.56 / 6)
    assert [one.count for one in found.overall.bins] == [0, 0, 0, 1, 0, 0, 2, 1, 1, 1]
    assert found.overall.bins[0] == Bin(0, 0.1, 0, -1, -1)
    low, high, number, score, precision = vars(found.overall.bins[6]).values()
    assert (low, high, number, score, precision) == (0.6, 0.7, 2, pytest.approx(0.63), 0.5)
    # Balls: (.05 + .85 + .75) / 3; leaves: (2 x .13 + .65) / 3.
    assert found.categories["ball"].ece == pytest.approx(1.65 / 3)
    assert found.categories["leaf"].ece == pytest.approx(0.91 / 3)


def test_best_thresholds(found: Any) -> None:
    # F1 = 2 TP / (kept + truth). Balls, 3 in the truth: from .95 on 2/4, from .85 on 2/5, from .75 on 2/6.
    assert vars(found.categories["ball"].best) == pytest.approx(vars(Threshold(0.95, 1, 1 / 3, 0.5)))
    # Leaves, 2 in the truth: from .65 on 2/3, from .61 on 2/4, from .35 on 4/5.
    assert vars(found.categories["leaf"].best) == pytest.approx(vars(Threshold(0.35, 2 / 3, 1, 0.8)))
    # All, 5 in the truth: from .95 on 2/6, then 2/7, 2/8, with .65 4/9, with .61 4/10, with .35 6/11.
    assert vars(found.overall.best) == pytest.approx(vars(Threshold(0.35, 1 / 2, 3 / 5, 6 / 11)))
    assert (found.overall.truth, found.overall.found, found.overall.right) == (5, 6, 3)


def test_best_threshold_keeps_the_object_it_comes_from(labels: LabelDataset, found: Any) -> None:
    scores = labels.table("annotations").to_table(columns=["score", "category_id"]).to_pylist()
    for name, threshold in found.thresholds().items():
        of_category = [one["score"] for one in scores if CATEGORIES[one["category_id"]].name == name]
        assert threshold in of_category


def test_category_that_is_never_right_has_no_threshold(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, [*FOUND, (0, STONE, NOWHERE, 0.99), (0, BALL, B, 0.6)])
    for truth in (TRUTH, [*TRUTH, (1, STONE, A)]):
        found = evaluate(labels, truth_of(tmp_path, truth)).detections
        assert found is not None
        assert found.thresholds().keys() == {"ball", "leaf"}
        assert found.categories["stone"].best is None


def cells(confusion: Confusion) -> dict[tuple[str, str], int]:
    names = confusion.categories
    return {(names[row], names[column]): number for row, column, number in confusion.counts}


def test_confusion(labels: LabelDataset, found: Any, tmp_path: Path) -> None:
    # At the best threshold, .35, the leaf C is found as a leaf, so the ball there is one too many. B and F are missed.
    assert found.confusion.score == pytest.approx(0.35)
    expected = {("ball", "ball"): 1, ("leaf", "leaf"): 2, ("background", "ball"): 2, ("background", "leaf"): 1}
    assert cells(found.confusion) == expected | {("ball", "background"): 2}
    # From .5 on, it is not: the leaf is taken for a ball.
    higher = evaluate(labels, truth_of(tmp_path, TRUTH), confusion_score=0.5).detections
    assert higher is not None
    expected |= {("leaf", "leaf"): 1, ("leaf", "ball"): 1, ("background", "ball"): 1}
    assert cells(higher.confusion) == expected | {("ball", "background"): 2}


def test_the_better_of_two_partners_is_taken(tmp_path: Path) -> None:
    # Two balls of the truth overlap; what was found is on the second, though it overlaps the first by half, too.
    truth = [(0, BALL, A), (0, BALL, (0, 2)), (0, BALL, NOWHERE)]
    found = evaluate(labels_of(tmp_path, [(0, BALL, (0, 2), 0.9), (0, BALL, A, 0.8)]), truth_of(tmp_path, truth))
    assert found.detections is not None
    assert found.detections.overall.right == 2


def test_images_without_a_match_are_named(tmp_path: Path) -> None:
    names = ["image-0.png", "other.png", "sub/image-1.png"]
    images = [{"id": 10 + k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(names)]
    labels = labels_of(tmp_path, FOUND, images=7)  # with one that can't be read
    found = evaluate(labels, truth_of(tmp_path, [*TRUTH, (2, BALL, A)], images=images))
    assert found.images.measured == 2
    assert found.images.failed.first == ("sub/image-1.png",)
    assert found.images.not_labeled.first == ("other.png",)
    assert found.images.without_truth.count == 5
    assert found.images.without_truth.first[:2] == ("image-2.png", "image-4.png")
    # What the failed image has counts as missed, that of the other image nowhere: A, B, C, and A once more.
    assert found.detections is not None
    assert found.detections.overall.truth == 4


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.cli, ["evaluate", *arguments], standalone_mode=False)

    return run


def test_everything_is_in_the_json(command: Any, labels: LabelDataset, tmp_path: Path) -> None:
    ended = command(labels.url, "--truth", truth_of(tmp_path, TRUTH), "--json", "--thresholds", "thresholds.json")
    document = json.loads(ended.stdout)
    assert document.keys() == {"boxes", "images", "categories", "detections"}
    assert document["categories"]["boxes"]["leaf"]["AR100"] == 1
    assert document["detections"]["categories"]["ball"]["best"]["f1"] == 0.5
    assert [0, 2, 2] in document["detections"]["confusion"]["counts"]
    thresholds = json.loads(Path("thresholds.json").read_bytes())
    assert thresholds == {"ball": pytest.approx(0.95), "leaf": pytest.approx(0.35)}


def test_people_see_tables(command: Any, labels: LabelDataset, tmp_path: Path) -> None:
    ended = command(labels.url, "--truth", truth_of(tmp_path, TRUTH), "--confusion-score", "0.5")
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("boxes: AP 0.")
    assert lines[1] == "images: 2 measured"
    assert any("leaf" in line and "0.800" in line for line in lines)
    assert "truth by what was found, score 0.500 or more" in ended.stderr


def test_names_are_text(command: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hostile = "[red]\x1b[31mleaf\n"
    labels = labels_of(tmp_path, FOUND)
    categories = [{"id": BALL, "name": "ball"}, {"id": LEAF, "name": hostile}]
    images = [
        {"id": 10 + k, "file_name": name, "height": 1, "width": 1} for k, name in enumerate(["image-0.png", hostile])
    ]
    with caplog.at_level(logging.WARNING, "prelabel"):
        ended = command(labels.url, "--truth", truth_of(tmp_path, TRUTH[:3], categories=categories, images=images))
    for said in (ended.stderr, caplog.text):
        assert "\x1b" not in said
        assert r"[red]\x1b[31mleaf\n" in said


def test_many_categories_are_shown_where_asked_for(command: Any, tmp_path: Path) -> None:
    labels = labels_of(tmp_path, FOUND)
    more = [{"id": 100 + k, "name": f"more-{k}"} for k in range(20)]
    truth = [*TRUTH, *((1, 100 + k, A) for k in range(20))]
    given = [labels.url, "--truth", truth_of(tmp_path, truth, categories=CATEGORIES.to_coco() + more)]
    few, all_of_them = command(*given).stderr, command(*given, "--per-category").stderr
    assert "--per-category shows" in few
    assert "--per-category shows" not in all_of_them
    assert all_of_them.count("more-19") > few.count("more-19")


def test_confusion_score_that_is_no_number_is_refused(command: Any, labels: LabelDataset, tmp_path: Path) -> None:
    ended = command(labels.url, "--truth", truth_of(tmp_path, TRUTH), "--confusion-score", "nan")
    assert "nan is not a number" in str(ended.exception)


def test_unfinished_job_is_said(command: Any, tmp_path: Path) -> None:
    labels = write_job(write_images("images"), "labels", units=1)
    ended = command(labels.url, "--truth", truth_of(tmp_path, TRUTH))
    assert "is not finished: 1 of 3 units are measured" in ended.stderr


def test_no_image_in_common(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the images"):
        evaluate(labels, truth_of(tmp_path, [], images=[]))
