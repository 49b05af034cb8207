"""datumaro, which CVAT imports with, and supervision read our exports: shapes equal those of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import HEIGHT, WIDTH
from pycocotools import mask as coco_mask
from unruly import UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of

SCRIPT = "read_with_datumaro.py"
Row = dict[str, Any]
Read = Callable[..., Any]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], None]) -> LabelDataset:
    need("datumaro")
    return write_unruly(tmp_path_factory.mktemp("job"))


def exported(name: str, labels: LabelDataset, folder: Path) -> str:
    exporter_of(name).write(labels, f"{folder}/{name}", images="copy")
    return f"{folder}/{name}"


def stems(labels: LabelDataset) -> dict[int, str]:
    """By which name, without its suffix, a tool knows each image that could be read."""
    images = labels.table("images").to_table().to_pylist()
    keys = {row["image_id"]: row["key"].removesuffix(".png").replace("\n", "%0A") for row in images}
    return {image_id: keys[image_id] for image_id in objects_by_image(labels)}


def corners(row: Row) -> list[float]:
    x, y, width, height = (row["bbox"][side] for side in ("x", "y", "width", "height"))
    return [x, y, x + width, y + height]


def has_pixels(row: Row) -> bool:
    return row["mask"] is not None and bool(row["mask"].any())


def assert_same_mask(found: Row, mask: np.ndarray) -> None:
    np.testing.assert_array_equal(coco_mask.decode(found["mask"]).astype(bool), mask)


def assert_images(read: Row, labels: LabelDataset) -> None:
    assert sorted(read["items"]) == sorted(stems(labels).values())
    for item in read["items"].values():
        assert item["size"] == item["pixels"] == [HEIGHT, WIDTH]


def test_datumaro_reads_cvat(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("datumaro", SCRIPT, "cvat", exported("cvat", labels, tmp_path))
    assert read["labels"] == [*UNRULY.names, "person skeleton", *(UNRULY[7].keypoints or ())]
    assert_images(read, labels)
    for image_id, rows in objects_by_image(labels).items():
        annotations = read["items"][stems(labels)[image_id]]["annotations"]
        outlines = [one for one in annotations if one["type"] in ("mask", "bbox")]
        assert [one["label"] for one in outlines] == [row["category"] for row in rows]
        for one, row in zip(outlines, rows, strict=True):
            assert one["score"] == pytest.approx(row["score"], abs=1e-6)
            if has_pixels(row):
                assert_same_mask(one, row["mask"])
            else:
                assert one["points"] == pytest.approx(corners(row), abs=0.01)
        points = [(one["label"], one["points"]) for one in annotations if one["type"] == "points"]
        placed = [[3.25, 4.5], [5.5, 6.75], [0, 0]]
        poses = sum(row["keypoints"] is not None for row in rows)
        assert points == [*zip(UNRULY[7].keypoints or (), placed, strict=True)] * poses
        tags = [one["label"] for one in annotations if one["type"] == "label"]
        assert tags == [UNRULY[3].name] * (image_id % 2)


def test_datumaro_reads_cvat_coco(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("datumaro", SCRIPT, "coco_instances", exported("cvat-coco", labels, tmp_path))
    assert read["labels"] == [*UNRULY.names]
    assert_images(read, labels)
    for image_id, rows in objects_by_image(labels).items():
        by_id: dict[int, list[Row]] = {row["annotation_id"]: [] for row in rows}
        for one in read["items"][stems(labels)[image_id]]["annotations"]:
            by_id[one["group"]].append(one)
        for row in rows:
            mask, outline = by_id[row["annotation_id"]] if has_pixels(row) else [None, *by_id[row["annotation_id"]]]
            assert outline is not None
            assert outline["label"] == row["category"]
            assert outline["score"] == pytest.approx(row["score"], abs=1e-6)
            assert outline["points"] == pytest.approx(corners(row), abs=0.01)
            if mask is not None:
                assert mask["label"] == row["category"]
                assert_same_mask(mask, row["mask"])


def visible(rows: list[Row]) -> list[tuple[int, np.ndarray]]:
    """VOC's number of each object that has a pixel in its PNG, and where it is not under one of higher score."""
    free, found = np.ones((HEIGHT, WIDTH), bool), []
    masked = [row["mask"] for row in rows if row["mask"] is not None]
    for number, mask in enumerate(masked, start=1):
        if (mask & free).any():
            found.append((number, mask & free))
        free &= ~mask
    return found


def voc_stem(stem: str) -> str:
    stem = stem.replace("%", "%25").replace("/", "%2F").replace("#", "%23")
    return "%20around%20" if stem == " around " else stem


def is_within_half_a_pixel(found: list[float], row: Row) -> bool:
    """What is thinner than a pixel can't be: VOC's boxes have one at least."""
    thin = min(row["bbox"]["width"], row["bbox"]["height"]) < 1
    return bool(np.allclose(found, corners(row), rtol=0, atol=1.5 if thin else 0.501))


def test_datumaro_reads_voc(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("datumaro", SCRIPT, "voc", exported("voc", labels, tmp_path))
    assert read["labels"] == ["background", *UNRULY.names]
    assert sorted(read["items"]) == sorted(map(voc_stem, stems(labels).values()))
    for image_id, rows in objects_by_image(labels).items():
        item = read["items"][voc_stem(stems(labels)[image_id])]
        assert item["size"] == item["pixels"] == [HEIGHT, WIDTH]
        boxes = [one for one in item["annotations"] if one["type"] == "bbox"]
        assert [one["label"] for one in boxes] == [row["category"] for row in rows]
        assert [float(one["score"]) for one in boxes] == pytest.approx([row["score"] for row in rows])
        assert all(is_within_half_a_pixel(one["points"], row) for one, row in zip(boxes, rows, strict=True))
        masks = {one["group"]: one for one in item["annotations"] if one["type"] == "mask"}
        expected = dict(visible(rows))
        assert sorted(masks) == sorted(expected)
        categories = [row["category"] for row in rows if row["mask"] is not None]
        for number, mask in expected.items():
            assert masks[number]["label"] == categories[number - 1]
            assert_same_mask(masks[number], mask)


def test_supervision_reads_voc(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("supervision", SCRIPT, "supervision-voc", exported("voc", labels, tmp_path))
    assert sorted(read) == sorted(f"{voc_stem(stem)}.png" for stem in stems(labels).values())
    for image_id, rows in objects_by_image(labels).items():
        found = read[f"{voc_stem(stems(labels)[image_id])}.png"]
        assert [one["label"] for one in found] == [row["category"] for row in rows]
        assert all(is_within_half_a_pixel(one["points"], row) for one, row in zip(found, rows, strict=True))
