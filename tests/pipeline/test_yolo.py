"""YOLO's folders, read back as Ultralytics reads them, with nothing but a YAML parser and OpenCV."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from jobs import HEIGHT, WIDTH, annotation_row, ring, write_images
from labels import POSED, Row, box, rows_of_everything, write_labels
from shards import tiny_images, write_files
from unruly import UNRULY, no_objects, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.exports.base import ExportSummary
from prelabel.pipeline.exports.yolo import flipped
from prelabel.schemas.errors import UserError

KINDS = ("yolo", "yolo-segment", "yolo-pose")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def written(labels: LabelDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ExportSummary]]:
    to = tmp_path_factory.mktemp("exports")
    return {kind: (to / kind, exporter_of(kind).write(labels, f"{to}/{kind}", images="copy")) for kind in KINDS}


def file_of(key: str) -> str:
    name = key.replace("\n", "%0A").replace("\\", "%5C").replace("%", "%25").replace("/", "%2F")
    return {" around .png": "%20around%20.png", "#1.png": "%231.png"}.get(name, name)


@pytest.fixture(scope="module")
def keys(labels: LabelDataset) -> dict[int, str]:
    images = labels.table("images").to_table().to_pylist()
    return {row["image_id"]: row["key"] for row in images if row["status"] == "ok"}


def lines_of(folder: Path, key: str) -> list[tuple[int, np.ndarray]]:
    """Class and numbers of each line of an image's text."""
    text = (folder / "labels/train" / file_of(key)).with_suffix(".txt").read_text()
    words = [line.split(" ") for line in text.splitlines()]
    return [(int(first), np.array(rest, np.float32)) for first, *rest in words]


def data_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    return found


def sides_of(numbers: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """x, y, width and height in pixels."""
    x, y, wide, high = numbers[:4].astype(np.float64) * (width, height, width, height)
    return np.array([x - wide / 2, y - high / 2, wide, high])


def filled(numbers: np.ndarray) -> np.ndarray:
    """As Ultralytics fills a polygon in an image of the original size: bool (HEIGHT, WIDTH)."""
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(image, [(numbers.reshape(-1, 2) * np.float32([WIDTH, HEIGHT])).astype(np.int32)], 1)
    return image.astype(bool)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_a_text(kind: str, written: dict[str, Any], keys: dict[int, str], labels: LabelDataset) -> None:
    folder, summary = written[kind]
    names = sorted(map(file_of, keys.values()))
    assert sorted(os.listdir(folder / "images/train")) == names
    assert sorted(os.listdir(folder / "labels/train")) == sorted(name.replace(".png", ".txt") for name in names)
    assert sorted((folder / "train.txt").read_text().splitlines()) == sorted(f"./images/train/{name}" for name in names)
    for image_id, key in keys.items():
        image = labels.table("images").to_table().to_pylist()[image_id]
        assert (folder / "images/train" / file_of(key)).read_bytes() == Path(image["uri"]).read_bytes()
    assert (folder / "labels/train/empty.txt").read_bytes() == b""
    assert summary.images == len(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_data_yaml_names_the_classes(kind: str, written: dict[str, Any]) -> None:
    data = data_of(written[kind][0])
    assert data["names"] == dict(enumerate(UNRULY.names))
    assert data["train"] == data["val"] == "images/train"
    assert "path" not in data  # so that the folder may be moved


def test_boxes_come_back(written: dict[str, Any], keys: dict[int, str], labels: LabelDataset) -> None:
    folder, summary = written["yolo"]
    for image_id, rows in objects_by_image(labels).items():
        lines = lines_of(folder, keys[image_id])
        assert [UNRULY.ids[index] for index, _ in lines] == [row["category_id"] for row in rows]
        for (_, numbers), row in zip(lines, rows, strict=True):
            assert len(numbers) == 4
            np.testing.assert_allclose(sides_of(numbers), list(row["bbox"].values()), atol=1e-4)
    assert summary.annotations == labels.table("annotations").count_rows()
    assert "scores are left out: YOLO's labels have no place for them" in summary.notes


def test_polygons_are_the_masks(written: dict[str, Any], keys: dict[int, str], labels: LabelDataset) -> None:
    folder, summary = written["yolo-segment"]
    overlaps, boxes, empty = [], 0, 0
    for image_id, rows in objects_by_image(labels).items():
        kept = [row for row in rows if row["mask"] is None or row["mask"].any()]
        empty += len(rows) - len(kept)
        for (index, numbers), row in zip(lines_of(folder, keys[image_id]), kept, strict=True):
            assert UNRULY.ids[index] == row["category_id"]
            points = numbers.reshape(-1, 2) * (WIDTH, HEIGHT)
            if row["mask"] is None:
                boxes += 1
                box_of_points = [*points.min(0), *np.ptp(points, axis=0)]
                np.testing.assert_allclose(box_of_points, list(row["bbox"].values()), atol=1e-4)
                continue
            found, mask = filled(numbers), row["mask"]
            assert not (mask & ~found).any()
            overlaps.append(mask.sum() / found.sum())
            y, x = np.nonzero(mask)
            np.testing.assert_allclose(points.min(0), [x.min(), y.min()], atol=0.011)
            np.testing.assert_allclose(points.max(0), [x.max() + 1, y.max() + 1], atol=0.011)
    notes = "\n".join(summary.notes)
    mean, least = map(float, re.findall(r"IoU with the masks is (\S+) on average, (\S+) at least", notes)[0])
    assert mean == pytest.approx(np.mean(overlaps), abs=0.01)  # dust costs bridges, a pixel more or less of which
    assert least == pytest.approx(min(overlaps), abs=0.03)  # depends on how they are drawn
    assert f"{boxes} objects have no mask: their boxes stand for it" in notes
    assert f"{empty} objects are left out: their masks are empty" in notes
    assert summary.annotations == len(overlaps) + boxes


def test_masks_with_a_hole_lose_nothing(tmp_path: Path) -> None:
    labels = write_labels(
        write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", rows_of_everything, ["segment_instances"]
    )
    summary = exporter_of("yolo-segment").write(labels, f"{tmp_path}/yolo")
    assert "masks are polygons: their IoU with the masks is 1.0000 on average, 1.0000 at least" in summary.notes
    assert "put the images into images/train, by the names in train.txt" in summary.notes
    assert not (tmp_path / "yolo/images").exists()
    texts = sorted((tmp_path / "yolo/labels/train").iterdir())
    lines = [line for text in texts for line in text.read_text().splitlines()]
    assert len(lines) == summary.annotations
    masks = [filled(np.array(line.split()[1:], np.float32)) for line in lines]
    assert {mask.tobytes() for mask in masks} == {ring(0).tobytes(), ring(1).tobytes()}


def test_keypoints_come_back(written: dict[str, Any], keys: dict[int, str], labels: LabelDataset) -> None:
    folder, _ = written["yolo-pose"]
    data = data_of(folder)
    assert data["kpt_shape"] == [3, 3]
    assert data["kpt_names"] == {2: list(UNRULY[7].keypoints or ())}
    assert "flip_idx" not in data  # there is a left eye and no right one
    for image_id, rows in objects_by_image(labels).items():
        for (_, numbers), row in zip(lines_of(folder, keys[image_id]), rows, strict=True):
            np.testing.assert_allclose(sides_of(numbers), list(row["bbox"].values()), atol=1e-4)
            expected = row["keypoints"] or [0] * 9
            np.testing.assert_allclose(numbers[4:] * ([WIDTH, HEIGHT, 1] * 3), expected, atol=1e-4)


def test_keypoints_outside_of_their_image_are_said(tmp_path: Path) -> None:
    def rows(image: Row) -> dict[str, list[Row]]:
        found = rows_of_everything(image)["annotations"]
        return {"annotations": [row | {"keypoints": [-3, 2, 2, *row["keypoints"][3:]]} for row in found]}

    labels = write_labels(write_images(f"{tmp_path}/i"), f"{tmp_path}/labels", rows, ["detect_keypoints"], POSED)
    summary = exporter_of("yolo-pose").write(labels, f"{tmp_path}/yolo")
    assert f"{summary.annotations} keypoints are left out: they lie outside of their images" in summary.notes
    data = data_of(tmp_path / "yolo")
    assert data["kpt_shape"] == [17, 3]
    assert data["flip_idx"] == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert set(data["kpt_names"]) == {0, 1}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("nose", "tail"), None),
        (("Left Ear", "nose", "Right Ear"), [2, 1, 0]),
        (("left_eye", "nose"), None),
        (("brightest", "left_eye", "right_eye"), None),
    ],
)
def test_names_tell_what_a_mirror_does(names: tuple[str, ...], expected: list[int] | None) -> None:
    assert flipped(names) == expected


def test_boxes_of_huge_images_come_back(tmp_path: Path) -> None:
    sides = [(19_999.5, 11_111.25, 0.5, 3.75), (3.125, 0.0, 19_000.0625, 19_999.0), (7_777.75, 1.5, 1.0, 1.0)]

    def rows(image: Row) -> dict[str, list[Row]]:
        image.update(width=20_000, height=20_000, num_annotations=len(sides))
        changes = {"segmentation": None, "score": 0.5}
        return {
            "annotations": [
                annotation_row(image["image_id"], rank) | changes | {"bbox": box(*one), "area": one[2] * one[3]}
                for rank, one in enumerate(sides)
            ]
        }

    labels = write_labels(write_images(f"{tmp_path}/images", 1), f"{tmp_path}/labels", rows, ["detect"])
    exporter_of("yolo").write(labels, f"{tmp_path}/yolo")
    found = [sides_of(numbers, 20_000, 20_000) for _, numbers in lines_of(tmp_path / "yolo", "image-0.png")]
    np.testing.assert_allclose(found, sides, atol=0.01)


def test_images_can_be_linked(tmp_path: Path) -> None:
    labels = write_unruly(tmp_path, rows=no_objects)
    exporter_of("yolo").write(labels, f"{tmp_path}/yolo", images="link")
    images = {row["key"]: row["uri"] for row in labels.table("images").to_table().to_pylist() if row["status"] == "ok"}
    found = {file.name: os.readlink(file) for file in (tmp_path / "yolo/images/train").iterdir()}
    assert found == {file_of(key): uri for key, uri in images.items()}
    assert not any(text.read_bytes() for text in (tmp_path / "yolo/labels/train").iterdir())


def test_long_names_of_nested_folders_are_cut(tmp_path: Path) -> None:
    folder = f"{'long ' * 30}/{'folder ' * 20}"
    write_files(f"{tmp_path}/images", {f"{folder}/{name}": data for name, data in tiny_images(2).items()})
    labels = write_labels(f"{tmp_path}/images", f"{tmp_path}/labels", no_objects, ["detect"])
    exporter_of("yolo").write(labels, f"{tmp_path}/yolo")
    names = sorted(os.listdir(tmp_path / "yolo/labels/train"))
    assert [name.rsplit(".", 2)[1:] for name in names] == [["0", "txt"], ["1", "txt"]]
    assert all(name.startswith("long long") for name in names)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("yolo-segment", "no masks: label with --task segment_instances, or export yolo"),
        ("yolo-pose", "no keypoints: label with --task detect_keypoints"),
    ],
)
def test_labels_without_what_a_format_is_for_are_one_line(kind: str, reason: str, tmp_path: Path) -> None:
    labels = write_labels(write_images(f"{tmp_path}/images", 1), f"{tmp_path}/labels", no_objects, ["detect"])
    with pytest.raises(UserError, match=reason):
        exporter_of(kind).write(labels, f"{tmp_path}/yolo")
    assert not (tmp_path / "yolo").exists()


def test_images_elsewhere_are_refused(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="beside the labels: give --images copy, link or none"):
        exporter_of("yolo").write(labels, f"{tmp_path}/yolo", images="https://host/images")
