"""Measuring labels whose quality is known."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import CATEGORIES, FAILED, HEIGHT, MODEL, WIDTH, annotation_row, write_images, write_job
from labels import POSED, Row, box, keypoints_of, rows_of_everything, write_labels

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.evaluate.average_precision import KEYPOINT_METRICS, METRICS
from prelabel.schemas.errors import UserError

Document = dict[str, Any]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("job")
    return write_job(write_images(f"{folder}/images"), f"{folder}/labels")


@pytest.fixture
def truth(labels: LabelDataset) -> Document:
    """What the labels say, with ids of its own."""
    keys = labels.table("images").to_table()["key"].to_pylist()
    images = [
        {"id": 100 + number, "file_name": key, "height": HEIGHT, "width": WIDTH} for number, key in enumerate(keys)
    ]
    annotations = []
    for image_id in range(len(keys)):
        for rank in range(image_id % 3 if image_id != FAILED else 0):
            row = annotation_row(image_id, rank)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image_id,
                    "category_id": row["category_id"],
                    "bbox": list(row["bbox"].values()),
                    "area": row["area"],
                    "segmentation": row["segmentation"],
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES.to_coco()}


@pytest.fixture
def measure(labels: LabelDataset, tmp_path: Path) -> Callable[[object], dict[str, dict[str, float]]]:
    def call(document: object) -> dict[str, dict[str, float]]:
        (tmp_path / "truth.json").write_text(document if isinstance(document, str) else json.dumps(document))
        return evaluate(labels, str(tmp_path / "truth.json"))

    return call


def test_labels_equal_to_the_truth_are_perfect(measure: Callable, truth: Document) -> None:
    figures = measure(truth)
    assert figures.keys() == {"boxes", "masks"}
    for metrics in figures.values():
        assert tuple(metrics) == tuple(METRICS)
        assert metrics["AP"] == pytest.approx(1)
        assert metrics["AR100"] == pytest.approx(1)


def test_object_that_was_not_found_costs_recall(measure: Callable, truth: Document) -> None:
    missed = truth["annotations"][0] | {"id": 99, "image_id": 100, "category_id": 5}
    truth["annotations"].append(missed)
    of_leaf = sum(annotation["category_id"] == 5 for annotation in truth["annotations"])
    for metrics in measure(truth).values():
        assert metrics["AR100"] == pytest.approx((1 + (of_leaf - 1) / of_leaf) / 2)


def test_masks_are_measured_by_masks_and_boxes_by_boxes(measure: Callable, truth: Document) -> None:
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x + width, y + height, width, height]
    figures = measure(truth)
    assert figures["boxes"]["AP"] == 0
    assert figures["masks"]["AP"] == pytest.approx(1)


def test_images_are_matched_by_the_end_of_their_key(tmp_path: Path, measure: Callable, truth: Document) -> None:
    write_images(f"{tmp_path}/images/train")
    labels = write_job(f"{tmp_path}/images", f"{tmp_path}/labels")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate(labels, f"{tmp_path}/truth.json")["boxes"]["AP"] == pytest.approx(1)
    for image in truth["images"]:
        image["file_name"] = image["file_name"].rpartition("/")[2]
    assert measure(truth)["boxes"]["AP"] == pytest.approx(1)


def test_images_that_were_not_labeled_do_not_count(measure: Callable, truth: Document) -> None:
    truth["images"].append({"id": 1, "file_name": "other.png", "height": HEIGHT, "width": WIDTH})
    truth["annotations"].append(truth["annotations"][0] | {"id": 99, "image_id": 1})
    assert measure(truth)["boxes"]["AP"] == pytest.approx(1)


def test_truth_without_masks_measures_boxes(measure: Callable, truth: Document) -> None:
    for annotation in truth["annotations"]:
        annotation["segmentation"] = []
    assert measure(truth).keys() == {"boxes"}
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    assert measure(truth)["boxes"]["AP"] == pytest.approx(1)


def test_masks_that_some_objects_lack_are_not_measured(
    measure: Callable, truth: Document, caplog: pytest.LogCaptureFixture
) -> None:
    truth["annotations"][0]["segmentation"] = []
    with caplog.at_level(logging.WARNING, "prelabel"):
        assert measure(truth).keys() == {"boxes"}
    assert "masks are not measured: 1 of 10 objects have none" in caplog.text


def test_images_of_other_sizes_are_said(measure: Callable, truth: Document, caplog: pytest.LogCaptureFixture) -> None:
    truth["images"][0] |= {"height": WIDTH, "width": HEIGHT}  # as if its orientation had been overlooked
    with caplog.at_level(logging.WARNING, "prelabel"):
        measure(truth)
    assert re.search("1 images had another size.* image-0.png", caplog.text)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", {"id": 1}, "2 images of the file_name 'image-0.png'"),
        ("images", {"file_name": "other.png"}, "2 images of the id 100"),
        ("categories", {"name": "tree"}, "2 categories of the id 2"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    measure: Callable, truth: Document, part: str, change: dict[str, object], message: str
) -> None:
    truth[part].append(truth[part][0] | change)
    with pytest.raises(UserError, match=message):
        measure(truth)


def test_truth_with_a_crowd(measure: Callable, truth: Document) -> None:
    whole = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    crowd = {"id": 99, "image_id": 100, "category_id": 2, "iscrowd": 1, "area": HEIGHT * WIDTH, "segmentation": whole}
    truth["annotations"].append(crowd | {"bbox": [0, 0, WIDTH, HEIGHT]})
    assert measure(truth)["masks"]["AP"] == pytest.approx(1)


def test_labels_without_any_object(tmp_path: Path, truth: Document) -> None:
    labels = write_job(write_images(f"{tmp_path}/images", 1), f"{tmp_path}/labels")
    truth["annotations"][0]["image_id"] = 100
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate(labels, f"{tmp_path}/truth.json").keys() == {"boxes", "masks"}
    source = f"{tmp_path}/images"
    boxes = write_labels(source, f"{tmp_path}/boxes", lambda _: {"annotations": []}, ["detect"])
    figures = evaluate(boxes, f"{tmp_path}/truth.json")
    assert figures.keys() == {"boxes"}
    assert figures["boxes"]["AP"] == 0


@pytest.mark.parametrize("change", [{"area": -1}, {"image_id": 1}, {"category_id": 99}, {"iscrowd": 1}])
def test_nothing_to_measure_is_one_line(measure: Callable, truth: Document, change: dict[str, int]) -> None:
    for annotation in truth["annotations"]:
        annotation |= change
    with pytest.raises(UserError, match=r"nothing to measure: .* in the 7 images"):
        measure(truth)


@pytest.mark.parametrize(
    "segmentation",
    [7, [[]], {"size": [HEIGHT, WIDTH]}, [[1, 1, 1e300, 1, 5, 5]], {"size": [HEIGHT, WIDTH], "counts": "o"}],
)
def test_mask_that_is_none_is_one_line(measure: Callable, truth: Document, segmentation: object) -> None:
    truth["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(UserError, match="annotation 2 has no valid segmentation"):
        measure(truth)


def with_image(**changes: object) -> str:
    image = {"id": 1, "file_name": "image-0.png", "height": HEIGHT, "width": WIDTH}
    return json.dumps({"images": [image | changes], "annotations": [], "categories": []})


def with_annotation(**changes: object) -> str:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    return json.dumps({"images": [], "annotations": [annotation | changes], "categories": []})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no COCO instances document"),
        ('{"images": []}', "no COCO instances document"),
        ('{"images": [], "annotations": [], "categories": []}', "none of the images"),
        ('{"images": [{"name": "a"}], "annotations": [], "categories": []}', "no COCO instances document"),
        ('{"images": 7, "annotations": [], "categories": []}', "no COCO instances document"),
        (with_image(file_name=["image-0.png"]), "no COCO instances document: images"),
        (with_image(id=[1]), "no COCO instances document: images"),
        (with_image(id=2**63), "no COCO instances document: images"),
        (with_annotation(category_id=[1]), "no COCO instances document: annotations"),
        (with_annotation(bbox=[1, 2]), "no COCO instances document: annotations"),
        (with_annotation(bbox=["a", 2, 3, 4]), "no COCO instances document: annotations"),
        (with_annotation(area="large"), "no COCO instances document: annotations"),
    ],
)
def test_what_is_no_truth_is_one_line(measure: Callable, document: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        measure(document)
    assert "\n" not in str(caught.value)


def test_absent_truth_is_one_line(labels: LabelDataset) -> None:
    for path in ("/no/such/truth.json", labels.url):
        with pytest.raises(UserError, match=r"can't be read: .*check the path"):
            evaluate(labels, path)


def test_two_images_for_one_of_the_truth_are_refused(tmp_path: Path, truth: Document) -> None:
    for name in ("a", "b"):
        write_images(f"{tmp_path}/images/{name}", 3)
    labels = write_job(f"{tmp_path}/images", f"{tmp_path}/labels")
    for image in truth["images"]:
        image["file_name"] = image["file_name"].rpartition("/")[2]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match=r"a/image-0.png.*b/image-0.png"):
        evaluate(labels, f"{tmp_path}/truth.json")


@pytest.mark.parametrize("change", [{"id": 7}, {"id": 7, "name": "ballon"}])
def test_categories_are_matched_by_name(
    measure: Callable, truth: Document, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    truth["categories"][0] |= change  # the ball, which was 2
    truth["annotations"] = [item | {"category_id": {2: 7, 5: 5}[item["category_id"]]} for item in truth["annotations"]]
    with caplog.at_level(logging.WARNING, "prelabel"):
        found = measure(truth)["boxes"]["AP"]
    assert found == pytest.approx(0.5 if "name" in change else 1)
    assert ("can't find these categories" in caplog.text and "ballon" in caplog.text) == ("name" in change)


def test_categories_without_a_common_name_are_matched_by_id(
    measure: Callable, truth: Document, caplog: pytest.LogCaptureFixture
) -> None:
    truth["categories"] = [{"id": 2}, {"id": 5, "name": "feuille"}]
    with caplog.at_level(logging.WARNING, "prelabel"):
        assert measure(truth)["boxes"]["AP"] == pytest.approx(1)
    assert "categories are compared by id" in caplog.text


def average_recall(expected: list[np.ndarray], found: list[np.ndarray], most: int) -> float:
    """COCO's, of boxes x y width height: each of the best `most` takes the free object that it overlaps most."""
    taken = np.zeros(10)
    for objects, boxes in zip(expected, found, strict=False):
        for k, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
            overlaps = ious(boxes[:most], objects)
            for row in overlaps:
                if row.max() >= threshold:
                    taken[k] += 1
                    overlaps[:, row.argmax()] = 0
    return float(taken.mean() / sum(map(len, expected)))


def ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M)."""
    ends = np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:])
    shared = np.maximum(ends - np.maximum(a[:, None, :2], b[:, :2]), 0).prod(axis=2)
    return shared / (a[:, None, 2:].prod(axis=2) + b[:, 2:].prod(axis=1) - shared)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate([rng.uniform(0, 150, (count, 2)), rng.uniform(20, 110, (count, 2))], axis=1)


def test_proposals_are_measured_by_recall_alone(tmp_path: Path, truth: Document) -> None:
    rng = np.random.default_rng(0)
    found = [random_boxes(rng, 1100) for _ in range(7)]

    def rows(image: Row) -> dict[str, list[Row]]:
        common = {"image_id": image["image_id"], "model": MODEL}
        return {
            "proposals": [
                common | {"proposal_id": 65_536 * image["image_id"] + rank, "score": 0.999**rank, "bbox": box(*one)}
                for rank, one in enumerate(found[image["image_id"]])
            ]
        }

    labels = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", rows, ["propose"])
    truth["images"] = truth["images"][:3]
    expected = [random_boxes(rng, 10) for _ in truth["images"]]
    truth["annotations"] = [
        {"id": 10 * image_id + k, "image_id": 100 + image_id, "category_id": CATEGORIES.ids[k % 2], "iscrowd": 0}
        | {"bbox": one.tolist(), "area": one[2] * one[3]}
        for image_id, objects in enumerate(expected)
        for k, one in enumerate(objects, start=1)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    figures = evaluate(labels, f"{tmp_path}/truth.json")
    assert figures.keys() == {"proposals"}
    recalls = {f"AR{most}": average_recall(expected, found, most) for most in (100, 300, 1000)}
    assert 0.1 < recalls["AR100"] < recalls["AR300"] < recalls["AR1000"] < 0.9
    metrics = figures["proposals"]
    assert {name: metrics[name] for name in recalls} == pytest.approx(recalls)
    assert metrics.keys() - recalls == {"AR_small", "AR_medium", "AR_large"}


@pytest.fixture
def posed(tmp_path: Path) -> LabelDataset:
    """Labels with masks, keypoints and proposals."""
    tasks = ["detect_keypoints", "propose", "segment_instances"]
    source = write_images(f"{tmp_path}/images")
    return write_labels(source, f"{tmp_path}/posed", rows_of_everything, tasks, POSED)


def pose(truth: Document, shift: float) -> None:
    """Gives the truth the labels' keypoints, moved to the right."""
    ranks: dict[int, int] = {}
    for annotation in truth["annotations"]:
        rank = ranks[annotation["image_id"]] = ranks.get(annotation["image_id"], -1) + 1
        points = np.array(keypoints_of(rank)).reshape(17, 3)
        points[:16, 0] += shift
        annotation |= {"keypoints": points.ravel().tolist(), "num_keypoints": 16}


SIGMAS = [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89]


@pytest.mark.parametrize("shift", [0, 0.5, 1.5])
def test_keypoints_are_measured_by_their_distance(
    tmp_path: Path, posed: LabelDataset, truth: Document, shift: float
) -> None:
    pose(truth, shift)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    figures = evaluate(posed, f"{tmp_path}/truth.json")
    assert set(figures) == {"boxes", "masks", "keypoints", "proposals"}
    assert tuple(figures["keypoints"]) == tuple(KEYPOINT_METRICS)
    area = truth["annotations"][0]["area"]
    similarity = np.mean([np.exp(-(shift**2) / (2 * area * (2 * sigma / 10) ** 2)) for sigma in SIGMAS])
    recall = np.mean(similarity >= np.linspace(0.5, 0.95, 10))
    assert figures["keypoints"]["AR"] == pytest.approx(recall)
    assert (recall == 1) == (shift == 0)
    assert recall > 0


def test_objects_of_the_truth_without_keypoints_do_not_count(
    tmp_path: Path, posed: LabelDataset, truth: Document
) -> None:
    pose(truth, 0)
    del truth["annotations"][0]["keypoints"]
    truth["annotations"][1] |= {"keypoints": [0] * 51, "num_keypoints": 0}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate(posed, f"{tmp_path}/truth.json")["keypoints"]["AP"] == pytest.approx(1)


def test_other_keypoints_than_coco_s_are_not_measured(
    tmp_path: Path, posed: LabelDataset, truth: Document, caplog: pytest.LogCaptureFixture
) -> None:
    pose(truth, 0)
    for annotation in truth["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:15]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with caplog.at_level(logging.WARNING, "prelabel"):
        assert "keypoints" not in evaluate(posed, f"{tmp_path}/truth.json")
    assert "keypoints are not measured: COCO's measure is for 17 points" in caplog.text


@pytest.mark.parametrize(
    "change", [{"keypoints": [1, 2]}, {"keypoints": ["a", 1, 2]}, {"num_keypoints": None}, {"keypoints": 7}]
)
def test_keypoints_that_are_none_are_one_line(
    tmp_path: Path, posed: LabelDataset, truth: Document, change: dict[str, Any]
) -> None:
    pose(truth, 0)
    truth["annotations"][1] |= change
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match="annotation 2 has no valid keypoints"):
        evaluate(posed, f"{tmp_path}/truth.json")
