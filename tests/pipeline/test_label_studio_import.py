"""What Label Studio exports and no export of ours was made into: other projects, other shapes, broken documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import HEIGHT, WIDTH
from label_studio_tasks import annotation, imported
from labels import Row
from pycocotools import mask as coco_mask

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.imports import importer_of
from prelabel.pipeline.imports.base import ImportedImage
from prelabel.schemas.errors import UserError

SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "to_name": "image", "from_name": "x"}


def region(kind: str, region_id: str = "a", labels: Any = ("cat",), **value: Any) -> Row:
    return SIZE | {"id": region_id, "type": kind, "value": value | ({kind: [*labels]} if labels else {})}


BOX = {"x": 12.5, "y": 25.0, "width": 25.0, "height": 50.0, "rotation": 0}
"""4, 6, 8, 12 in pixels."""


def task(*annotations: Row, **data: Any) -> Row:
    return {"id": 7, "data": {"image": "/data/upload/3/0123abcd-a%20cat.jpg"} | data, "annotations": [*annotations]}


def read(folder: Path, *tasks: Row) -> list[ImportedImage]:
    (folder / "export.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    return [*importer_of("label-studio")(f"{folder}/export.json").images()]


def test_the_latest_annotation_that_was_not_cancelled_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = region("rectanglelabels", labels=["old"], **BOX), region("rectanglelabels", labels=["new"], **BOX)
    (image,) = read(
        tmp_path,
        task(annotation([old], 1), annotation([new], 3), annotation([], 4, was_cancelled=True), annotation([old], 2)),
        task(annotation([old], was_cancelled=True)),
        task(),
    )
    assert [one.category for one in image.objects] == ["new"]
    assert image.objects[0].bbox == (4, 6, 8, 12)
    assert "2 tasks are left out: they have no annotation" in caplog.text


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({}, "a cat.jpg"),
        ({"image": "s3://bucket/b/c.png"}, "b/c.png"),
        ({"image": "/data/local-files/?d=tasks/%ED%91%9C.png"}, "tasks/표.png"),
        ({"image": "https://host/d.png?X-Amz-Signature=1", "key": "e.png"}, "e.png"),
        ({"image": 5, "picture": "f.png"}, "f.png"),
    ],
)
def test_image_is_called_what_its_task_says(data: Row, key: str, tmp_path: Path) -> None:
    (image,) = read(tmp_path, task(annotation([region("rectanglelabels", **BOX)]), **data))
    assert (image.key, image.height, image.width) == (key, HEIGHT, WIDTH)


def test_empty_annotation_is_an_image_without_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (image,) = read(tmp_path, task(annotation([]), width=WIDTH, height=HEIGHT), task(annotation([])))
    assert (image.objects, image.width) == ([], WIDTH)
    assert "1 tasks are left out: nothing says how large their images are" in caplog.text


def test_polygon_is_rasterized_as_pycocotools_does(tmp_path: Path) -> None:
    points = [[10, 10], [80, 20.5], [60, 90], [15, 70]]
    (image,) = read(tmp_path, task(annotation([region("polygonlabels", points=points, closed=True)])))
    flat = (np.array(points) * (WIDTH, HEIGHT) / 100).ravel().tolist()
    (expected,) = coco_mask.frPyObjects([flat], HEIGHT, WIDTH)
    assert image.objects[0].segmentation is not None
    assert image.objects[0].segmentation.counts == expected["counts"].decode()


def test_rotated_rectangle_is_its_bounding_box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = BOX | {"x": 50.0, "y": 25.0, "rotation": 90}  # about its corner at 16, 6: it ends left of that
    (image,) = read(tmp_path, task(annotation([region("rectanglelabels", **turned)])))
    assert image.objects[0].bbox == pytest.approx((4, 6, 12, 8))
    assert "1 rectangles are rotated" in caplog.text


def test_shape_and_label_may_be_two_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = [region("rectangle", "b", None, **BOX), region("labels", "b", ["dog", "cat"], **BOX)]
    results += [region("ellipselabels", "c", radiusX=3), region("rectangle", "d", None, **BOX)]
    results += [
        region("choices", "b", ["nice"]),
        SIZE | {"id": "b", "type": "labels", "value": {"labels": 5}},
        {"type": "relation", "from_id": "b", "to_id": "d"},
    ]
    results += [region("keypointlabels", "f", ["nose"], x=1, y=2, width=1)]
    (image,) = read(tmp_path, task(annotation(results)))
    assert [(one.category, one.bbox) for one in image.objects] == [("dog", (4, 6, 8, 12)), ("cat", (4, 6, 8, 12))]
    for said in ("only rectangles, brush", "1 regions are left out: they have no label", "1 keypoints are left out"):
        assert said in caplog.text


def test_keypoint_is_known_by_its_name_wherever_people_put_it(tmp_path: Path) -> None:
    boxes = [region("rectanglelabels", one, **BOX) for one in ("8", "9")]

    def point(label: str, parent: str, x: float, name: str = "") -> Row:
        meta = {"meta": {"name": name, "keypoint": 1 + (name == "tail"), "of": 2, "visibility": 1}} if name else {}
        at = region("keypointlabels", f"{label} {parent}", [label], x=x, y=50, width=1)
        return at | {"parentID": parent} | meta

    drawn = [point("nose", "8", 25, "nose"), point("tail", "8", 50, "tail")]  # as they were
    drawn += [point("tail", "9", 75, "nose"), point("nose", "9", 100)]  # renamed, and new
    (image,) = read(tmp_path, task(annotation([*boxes, *drawn])))
    assert [one.keypoints for one in image.objects] == [[8, 12, 1, 16, 12, 1], [32, 12, 2, 24, 12, 2]]


def test_document_alone_becomes_a_job(tmp_path: Path) -> None:
    tasks = [task(annotation([region("rectanglelabels", **BOX), region("rectanglelabels", "b", ["ant"], **BOX)]))]
    found: LabelDataset = imported(tasks, tmp_path)
    assert found.categories.names == ("ant", "cat")
    assert found.table("images").to_table()["key"].to_pylist() == ["a cat.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": []}', "no list of tasks"),
        ("[3]", "3 is in it"),
        ('[{"id": 1, "image": "a.jpg", "label": []}]', "not as JSON-MIN"),
        ('[{"id": 1, "data": {}, "annotations": []}', "cut off"),
        ('[{"id": 1, "data": {}, "annot', "no list of tasks"),
        ('[{"id": 1, "data": {}, "annotations": [{}]}]', "an annotation has no result"),
        ('[{"id": 1, "data": {}, "annotations": [{"result": [5]}]}]', "task 1: a result is 5"),
        ('[{"data": {"image": "http://[a/b.jpg"}, "annotations": [{"result": []}]}]', "Invalid IPv6 URL"),
        ('[{"data": {"key": "\\ud800.jpg"}, "annotations": [{"result": []}]}]', "surrogates not allowed"),
        (
            json.dumps([task(annotation([region("rectanglelabels", labels=["\ud800"], **BOX)]))]),
            "surrogates not allowed",
        ),
        (f"[{'[' * 100_000}", "no list of tasks"),
        (b"[\xff]", "no list of tasks"),
        ("", "cut off"),
    ],
)
def test_document_that_is_none_is_one_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    document = tmp_path / "export.json"
    document.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as raised:
        importer_of("label-studio")(str(document))
    assert str(document) in str(raised.value)
    with pytest.raises(UserError, match="can't be read"):
        importer_of("label-studio")(f"{tmp_path}/none.json")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (region("rectanglelabels", **BOX | {"x": "left"}), "'left', 25.0, 25.0, 50.0.*should be numbers"),
        (region("rectanglelabels", **BOX | {"x": float("nan")}), "should be numbers"),
        (region("rectanglelabels", **BOX | {"x": 10**400}), "should be numbers"),
        (region("brushlabels", rle=[0, 0, 300]), "no rle"),
        (region("brushlabels", rle=10**13), "no rle"),
        (region("brushlabels", rle=[0] * 20, format="rle"), "not of 768 pixels"),
        (region("brushlabels", maskDataURL="data:"), "no rle"),
        (region("polygonlabels", points=[[1, 2], [3, 4]]), "2 points"),
        (region("polygonlabels", points=[[1, 2], 3, [3, 4]]), "not x and y"),
    ],
)
def test_region_that_is_none_names_its_task(broken: Row, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"export.json: task 7: .*{message}"):
        read(tmp_path, task(annotation([broken])))
