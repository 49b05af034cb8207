"""`datasets` and `webdataset` read our exports: images, boxes, masks and classes equal those of the tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from unruly import objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of

SCRIPT = "read_with_datasets.py"
SAME = ("score", "area", "iscrowd", "segmentation", "keypoints")
Row = dict[str, Any]
Read = Callable[..., Any]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def exported(name: str, labels: LabelDataset, folder: Path) -> str:
    exporter_of(name).write(labels, f"{folder}/{name}", images="copy")
    return f"{folder}/{name}"


def assert_same_images(read: list[Row], labels: LabelDataset) -> None:
    images = {row["image_id"]: row for row in labels.table("images").to_table().to_pylist()}
    assert [row["image_id"] for row in read] == [*objects_by_image(labels)]
    for row in read:
        image = images[row["image_id"]]
        assert (row["file_name"], row["width"], row["height"]) == (image["key"], image["width"], image["height"])
        assert row["image"] == hashlib.sha256(Image.open(image["uri"]).convert("RGB").tobytes()).hexdigest()


def test_datasets_loads_the_folder(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("datasets", SCRIPT, "datasets", exported("hf", labels, tmp_path), tmp_path / "cache")
    assert_same_images(read, labels)
    for row, expected in zip(read, objects_by_image(labels).values(), strict=True):
        found = row["objects"]
        assert found["id"] == [one["annotation_id"] for one in expected]
        assert found["category"] == [one["category"] for one in expected]
        assert found["bbox"] == [[*one["bbox"].values()] for one in expected]
        for name in SAME:
            assert found[name] == [one[name] for one in expected]


def test_webdataset_reads_pairs(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("webdataset", SCRIPT, "webdataset", exported("webdataset", labels, tmp_path))
    assert_same_images(read, labels)
    digests = {row["image_id"]: row["digest"] for row in labels.table("images").to_table().to_pylist()}
    for row, expected in zip(read, objects_by_image(labels).values(), strict=True):
        assert row["bytes"] == digests[row["image_id"]]
        for found, one in zip(row["annotations"], expected, strict=True):
            assert (found["annotation_id"], found["category"]) == (one["annotation_id"], one["category"])
            assert found["bbox"] == pytest.approx([*one["bbox"].values()], rel=1e-6)
            for name in SAME:
                assert found.get(name) == (pytest.approx(one[name], rel=1e-6) if name == "score" else one[name])
