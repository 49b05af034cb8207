"""FiftyOne's folder, read as its importer reads it: masks are cut where boxes, rounded, end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import HEIGHT, WIDTH, ring, write_images
from labels import rows_of_everything, write_labels
from pycocotools import mask as coco_mask
from unruly import UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def cut_mask(annotation: dict[str, Any]) -> np.ndarray:
    """The mask that is left of an annotation, in its image: bool (HEIGHT, WIDTH)."""
    x, y, width, height = annotation["bbox"]
    inside = np.zeros((HEIGHT, WIDTH), bool)
    part = slice(round(y), round(y + height)), slice(round(x), round(x + width))
    inside[part] = coco_mask.decode(annotation["segmentation"]).astype(bool)[part]
    return inside


def test_masks_are_whole_in_their_boxes(labels: LabelDataset, tmp_path: Path) -> None:
    summary = exporter_of("fiftyone").write(labels, f"{tmp_path}/fiftyone", images="copy")
    document = json.loads((tmp_path / "fiftyone/labels.json").read_bytes())
    found = {annotation["id"]: annotation for annotation in document["annotations"]}
    assert document["categories"] == json.loads(UNRULY.to_json())
    moved = 0
    for row in (row for rows in objects_by_image(labels).values() for row in rows):
        annotation = found.pop(row["annotation_id"])
        assert np.float32(annotation["score"]) == np.float32(row["score"])
        kept = np.array_equal(np.float32(annotation["bbox"]), np.float32(list(row["bbox"].values())))
        if row["mask"] is None or not row["mask"].any():
            assert annotation["segmentation"] == []
            assert kept
            continue
        np.testing.assert_array_equal(cut_mask(annotation), row["mask"])
        y, x = np.nonzero(row["mask"])
        assert kept or annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        moved += not kept
    assert not found
    assert any(note.startswith(f"{moved} boxes did not hold their masks") for note in summary.notes)


def test_images_are_where_the_document_says(labels: LabelDataset, tmp_path: Path) -> None:
    exporter_of("fiftyone").write(labels, f"{tmp_path}/fiftyone", images="copy")
    document = json.loads((tmp_path / "fiftyone/labels.json").read_bytes())
    images = labels.table("images").to_table().to_pylist()
    assert [image["id"] for image in document["images"]] == [row["image_id"] for row in images if row["status"] == "ok"]
    for image in document["images"]:
        copied = tmp_path / "fiftyone/data" / image["file_name"]
        assert copied.read_bytes() == Path(images[image["id"]]["uri"]).read_bytes()


def test_without_images_there_is_a_document_alone(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images")
    labels = write_labels(source, f"{tmp_path}/labels", rows_of_everything, ["segment_instances"])
    summary = exporter_of("fiftyone").write(labels, f"{tmp_path}/fiftyone")
    assert os.listdir(tmp_path / "fiftyone") == ["labels.json"]
    assert summary.notes == ("tell FiftyOne the images' folder: data_path=...",)
    document = json.loads((tmp_path / "fiftyone/labels.json").read_bytes())
    keys = labels.table("images").to_table()["key"].to_pylist()
    assert [image["file_name"] for image in document["images"]] == [keys[image["id"]] for image in document["images"]]
    for annotation in document["annotations"]:
        np.testing.assert_array_equal(cut_mask(annotation), ring(annotation["id"] % 65_536))
