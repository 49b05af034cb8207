"""Measuring labels whose quality is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import CATEGORIES, FAILED, HEIGHT, WIDTH, annotation_row, write_images, write_job

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.evaluate.objects import METRICS
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
        assert tuple(metrics) == METRICS
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


def test_truth_with_a_crowd(measure: Callable, truth: Document) -> None:
    whole = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    crowd = {"id": 99, "image_id": 100, "category_id": 2, "iscrowd": 1, "area": HEIGHT * WIDTH, "segmentation": whole}
    truth["annotations"].append(crowd | {"bbox": [0, 0, WIDTH, HEIGHT]})
    assert measure(truth)["masks"]["AP"] == pytest.approx(1)


def test_labels_without_any_object(tmp_path: Path, truth: Document) -> None:
    labels = write_job(write_images(f"{tmp_path}/images", 1), f"{tmp_path}/labels")
    truth["annotations"][0]["image_id"] = 100
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate(labels, f"{tmp_path}/truth.json")["boxes"]["AP"] == 0


@pytest.mark.parametrize("change", [{"area": -1}, {"image_id": 1}, {"category_id": 99}, {"iscrowd": 1}])
def test_nothing_to_measure_is_one_line(measure: Callable, truth: Document, change: dict[str, int]) -> None:
    for annotation in truth["annotations"]:
        annotation |= change
    with pytest.raises(UserError, match=r"nothing to measure: .* in the 7 images"):
        measure(truth)


@pytest.mark.parametrize("segmentation", [7, [[]], {"size": [HEIGHT, WIDTH]}])
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
