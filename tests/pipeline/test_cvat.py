"""CVAT's XML and COCO documents, read back with nothing but a parser and NumPy."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from unruly import KEYS, UNRULY, no_objects, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.exports.base import ExportSummary
from prelabel.pipeline.row_runs import row_runs
from prelabel.schemas import rle
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import UserError

Element = ElementTree.Element


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def folder(labels: LabelDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exports")
    exporter_of("cvat").write(labels, f"{to}/cvat", images="copy")
    return to / "cvat"


@pytest.fixture(scope="module")
def document(folder: Path) -> Element:
    return ElementTree.parse(folder / "annotations.xml").getroot()


def mask_in(attributes: dict[str, str], height: int, width: int) -> np.ndarray:
    """The mask that CVAT sees: bool (height, width)."""
    left, top, wide, high = (int(attributes[name]) for name in ("left", "top", "width", "height"))
    lengths = [int(length) for length in attributes["rle"].split(",")]
    assert sum(lengths) == wide * high  # more is what its issue 9460 is about
    assert all(lengths[1:])
    mask = np.zeros((height, width), bool)
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(high, wide)
    mask[top : top + high, left : left + wide] = inside
    return mask


@settings(deadline=None)  # the first one waits for the compiler
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_runs_along_rows_are_the_mask(mask: np.ndarray) -> None:
    if mask.any():
        box, lengths = row_runs(rle.encode(mask))
        assert box == rle.bbox(rle.encode(mask))
        text = ",".join(map(str, lengths))
        found = dict(zip(("left", "top", "width", "height"), map(str, box), strict=True)) | {"rle": text}
        np.testing.assert_array_equal(mask_in(found, *mask.shape), mask)


def test_each_object_is_its_mask_or_its_box(labels: LabelDataset, document: Element) -> None:
    images = {int(image.attrib["id"]): image for image in document.iter("image")}
    expected = objects_by_image(labels)
    assert sorted(images) == sorted(expected)
    for image_id, rows in expected.items():
        outlines = [one for one in images[image_id] if one.tag in ("mask", "box")]
        assert [float(one[0].text or "") for one in outlines] == pytest.approx([row["score"] for row in rows])
        assert [one.attrib["label"] for one in outlines] == [row["category"] for row in rows]
        assert [int(one.attrib["z_order"]) for one in outlines] == list(range(len(rows)))[::-1]
        for found, row in zip(outlines, rows, strict=True):
            if row["mask"] is not None and row["mask"].any():
                np.testing.assert_array_equal(mask_in(found.attrib, *row["mask"].shape), row["mask"])
            else:
                box = row["bbox"]
                corners = [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
                sides = [float(found.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr")]
                assert sides == pytest.approx(corners, abs=0.006)


def test_images_are_named_as_their_copies(labels: LabelDataset, folder: Path, document: Element) -> None:
    rows = labels.table("images").to_table().to_pylist()
    keys = {row["image_id"]: row["key"] for row in rows}
    for image in document.iter("image"):
        key = keys[int(image.attrib["id"])]
        assert image.attrib["name"] == key.replace("\n", "%0A")
        assert (folder / "images" / image.attrib["name"]).read_bytes() == Path(rows[0]["shard"], key).read_bytes()
        assert (image.attrib["width"], image.attrib["height"]) == ("32", "24")
    assert len(list((folder / "images").rglob("*.png"))) == len(KEYS) - 1


def test_keypoints_are_a_skeleton_beside_its_object(labels: LabelDataset, document: Element) -> None:
    posed = [(image, one) for image in document.iter("image") for one in image.iter("skeleton")]
    assert len(posed) == sum(row["keypoints"] is not None for rows in objects_by_image(labels).values() for row in rows)
    for image, one in posed:
        group = [shape for shape in image if shape.attrib.get("group_id") == one.attrib["group_id"]]
        assert [shape.attrib["label"] for shape in group] == ["person", "person skeleton"]
        points = [[point.attrib[name] for name in ("label", "points", "occluded", "outside")] for point in one[:-1]]
        assert points == [
            ['left "eye"', "3.25,4.50", "0", "0"],
            ["<nose>", "5.50,6.75", "1", "0"],
            ["발", "0.00,0.00", "0", "1"],
        ]
    groups = [one.attrib["group_id"] for _, one in posed]
    assert len(set(groups)) == len(groups)


def test_points_without_names_are_those_that_were_placed(tmp_path: Path) -> None:
    nameless = CategorySet(replace(one, keypoints=None, skeleton=None) for one in UNRULY)
    exporter_of("cvat").write(write_unruly(tmp_path, categories=nameless), f"{tmp_path}/cvat")
    points = list(ElementTree.parse(tmp_path / "cvat" / "annotations.xml").getroot().iter("points"))
    assert {one.attrib["points"] for one in points} == {"3.25,4.50;5.50,6.75"}
    assert {one.attrib["label"] for one in points} == {"person"}


def test_labels_of_images_are_tags(document: Element) -> None:
    for image in document.iter("image"):
        tags = [(one.attrib["label"], one[0].text) for one in image.iter("tag")]
        assert tags == [(UNRULY[3].name, "0.625")] * (int(image.attrib["id"]) % 2)


def test_categories_that_were_not_chosen_are_nowhere(labels: LabelDataset, tmp_path: Path) -> None:
    summary = exporter_of("cvat").write(labels.select(categories=["person"]), f"{tmp_path}/cvat")
    document = ElementTree.parse(tmp_path / "cvat" / "annotations.xml").getroot()
    parts = {"person", "person skeleton", *(UNRULY[7].keypoints or ())}
    assert {one.attrib["label"] for one in document.iter() if "label" in one.attrib} == parts
    assert {one.findtext("name") for one in document.iter("label")} == parts
    assert summary.images == len(list(document.iter("image"))) == len(KEYS) - 1


def test_labels_are_told_to_both_the_reader_and_the_maker_of_a_task(folder: Path, document: Element) -> None:
    told = json.loads((folder / "labels.json").read_text())
    assert [one["name"] for one in told] == [*UNRULY.names, "person skeleton"]
    assert [one["type"] for one in told] == ["any", "any", "any", "skeleton"]
    assert told[0]["color"] == "#010203"
    assert {one["attributes"][0]["name"] for one in told} == {"score"}
    listed = [(one.findtext("name"), one.findtext("parent")) for one in document.iter("label")]
    parts = [(name, "person skeleton") for name in UNRULY[7].keypoints or ()]
    assert listed == [*((one["name"], None) for one in told), *parts]
    drawing = ElementTree.fromstring(f"<svg>{told[-1]['svg']}</svg>")
    assert drawing.tag == "svg"
    assert [one.attrib["data-label-name"] for one in drawing.iter("circle")] == [*(UNRULY[7].keypoints or ())]
    assert [(one.attrib["data-node-from"], one.attrib["data-node-to"]) for one in drawing.iter("line")] == [
        ("1", "2"),
        ("2", "3"),
    ]


@pytest.mark.parametrize("name", ["cvat", "cvat-coco", "voc"])
@pytest.mark.parametrize(
    ("names", "why"), [(["cat", "cat"], "2 labels are called 'cat'"), (["a\x01b"], "'a.x01b'"), (["cat "], "'cat '")]
)
def test_names_that_can_not_be_told_are_one_line(name: str, names: list[str], why: str, tmp_path: Path) -> None:
    categories = CategorySet(replace(one, name=dict(enumerate(names)).get(k, one.name)) for k, one in enumerate(UNRULY))
    labels = write_unruly(tmp_path, categories=categories, rows=no_objects)
    with pytest.raises(UserError, match=why):
        exporter_of(name).write(labels, f"{tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_labels_without_any_shape_are_one_line(tmp_path: Path) -> None:
    labels = write_unruly(tmp_path, tasks=["segment_semantic"], rows=lambda _: {"segments": []})
    with pytest.raises(UserError, match="no objects: label with --task detect"):
        exporter_of("cvat").write(labels, f"{tmp_path}/out")


def exported_coco(labels: LabelDataset, folder: Path) -> tuple[ExportSummary, dict[str, Any]]:
    summary = exporter_of("cvat-coco").write(labels, f"{folder}/coco", images="copy")
    document: dict[str, Any] = json.loads(Path(folder, "coco/annotations/instances_default.json").read_bytes())
    return summary, document


def test_category_ids_of_coco_begin_at_1(labels: LabelDataset, tmp_path: Path) -> None:
    summary, document = exported_coco(labels, tmp_path)
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(one.id + 1, one.name) for one in UNRULY]
    assert summary.notes == ("category ids are the job's plus 1, since CVAT takes 0 for no category",)
    rows = {row["annotation_id"]: row for rows in objects_by_image(labels).values() for row in rows}
    assert {one["id"]: one["category_id"] for one in document["annotations"]} == {
        annotation_id: row["category_id"] + 1 for annotation_id, row in rows.items()
    }


def test_category_ids_of_coco_stay_where_none_is_0(tmp_path: Path) -> None:
    moved = CategorySet(replace(one, id=one.id or 90) for one in UNRULY)
    labels = write_unruly(tmp_path, categories=moved, rows=no_objects)
    summary = exporter_of("cvat-coco").write(labels, f"{tmp_path}/coco")
    document = json.loads((tmp_path / "coco/annotations/instances_default.json").read_bytes())
    assert [one["id"] for one in document["categories"]] == [90, 3, 7]
    assert not [note for note in summary.notes if "category" in note]


def test_coco_masks_have_pixels(labels: LabelDataset, tmp_path: Path) -> None:
    _, document = exported_coco(labels, tmp_path)
    names = {image["id"]: image["file_name"] for image in document["images"]}
    assert all((tmp_path / "coco" / "images" / name).exists() for name in names.values())
    rows = {row["annotation_id"]: row for rows in objects_by_image(labels).values() for row in rows}
    assert sorted(names) == sorted(objects_by_image(labels))
    for one in document["annotations"]:
        mask = rows[one["id"]]["mask"]
        if mask is None or not mask.any():
            assert one["segmentation"] == []
        else:
            np.testing.assert_array_equal(coco_mask.decode(one["segmentation"]).astype(bool), mask)
            assert one["iscrowd"] == 0
