"""supervision and Ultralytics read our YOLO folders: boxes within half a pixel, masks as the export says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unruly import UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.schemas.polygons import outlines
from prelabel.schemas.rle import encode

SCRIPT = "read_with_yolo.py"
Row = dict[str, Any]
Read = Callable[..., Any]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def exported(kind: str, labels: LabelDataset, folder: Path) -> tuple[str, str]:
    """Where, and what was said."""
    summary = exporter_of(kind).write(labels, f"{folder}/{kind}", images="copy")
    return summary.to, "\n".join(summary.notes)


def pairs(read: Row, labels: LabelDataset, masked: bool = False) -> Iterator[tuple[Row, Row]]:
    """What a tool has found of each row; the export with masks leaves out those that are empty."""
    assert read["names"] == [*UNRULY.names]
    images = labels.table("images").to_table().to_pylist()
    expected = {file_of(images[image_id]["key"]): rows for image_id, rows in objects_by_image(labels).items()}
    assert sorted(read["images"]) == sorted(expected)
    for name, rows in expected.items():
        kept = [row for row in rows if not masked or row["mask"] is None or row["mask"].any()]
        for found, row in zip(read["images"][name], kept, strict=True):
            assert UNRULY.ids[found["class"]] == row["category_id"]
            yield found, row


def file_of(key: str) -> str:
    return key.replace("\n", "%0A").replace("\\", "%5C").replace("%", "%25").replace("/", "%2F")


def assert_near(found: Row, row: Row, far: float = 0.01) -> None:
    """That the boxes are; an object with a mask has, where there are polygons, the mask's."""
    if row["mask"] is not None and "mask" in found:
        y, x = np.nonzero(row["mask"])
        corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    else:
        left, top, width, height = row["bbox"].values()
        corners = [left, top, left + width, top + height]
    np.testing.assert_allclose(found["box"], corners, atol=far)


def grown(mask: np.ndarray) -> np.ndarray:
    """A pixel wider, at the right and below."""
    wide = mask | np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    return wide | np.pad(wide, ((1, 0), (0, 0)))[:-1]


def test_supervision_reads_boxes(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("supervision", SCRIPT, "supervision", exported("yolo", labels, tmp_path)[0])
    for found, row in pairs(read, labels):
        assert found["mask"] is None
        assert_near(found | {"mask": None}, row | {"mask": None})


def test_supervision_reads_polygons(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("supervision", SCRIPT, "supervision", exported("yolo-segment", labels, tmp_path)[0])
    for found, row in pairs(read, labels, masked=True):
        assert_near(found, row, 0.02)
        if row["mask"] is not None:
            filled = np.array(found["mask"], bool)
            assert filled[row["mask"]].all()
            if len(outlines(encode(row["mask"]))) == 1:  # it rounds what is at the right end of a pixel up
                assert grown(row["mask"])[filled].all()


def test_supervision_reads_the_boxes_of_poses(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("supervision", SCRIPT, "supervision", exported("yolo-pose", labels, tmp_path)[0])
    for found, row in pairs(read, labels):
        assert_near(found | {"mask": None}, row | {"mask": None})


def test_ultralytics_reads_boxes(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("ultralytics", SCRIPT, "detect", exported("yolo", labels, tmp_path)[0])
    assert not read["warnings"]
    for found, row in pairs(read, labels):
        assert_near(found, row)


def test_ultralytics_fills_polygons_as_stated(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    folder, notes = exported("yolo-segment", labels, tmp_path)
    read = read_with("ultralytics", SCRIPT, "segment", folder)
    assert not read["warnings"]
    overlaps = []
    for found, row in pairs(read, labels, masked=True):
        assert_near(found, row, 0.02)
        if row["mask"] is not None:
            filled = np.array(found["mask"], bool)
            assert filled[row["mask"]].all()
            overlaps.append(row["mask"].sum() / filled.sum())
    mean, least = map(float, re.findall(r"IoU with the masks is (\S+) on average, (\S+) at least", notes)[0])
    assert mean == pytest.approx(np.mean(overlaps), abs=0.01)
    assert least == pytest.approx(min(overlaps), abs=0.03)


def test_ultralytics_reads_keypoints(labels: LabelDataset, tmp_path: Path, read_with: Read) -> None:
    read = read_with("ultralytics", SCRIPT, "pose", exported("yolo-pose", labels, tmp_path)[0])
    assert not read["warnings"]
    for found, row in pairs(read, labels):
        assert_near(found, row)
        np.testing.assert_allclose(found["keypoints"], row["keypoints"] or [0] * 9, atol=1e-4)
