"""Tasks for Label Studio, read by a second reader, and what comes back of them."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from brushes import read_mask
from jobs import CATEGORIES, FAILED, HEIGHT, WIDTH, write_images
from label_studio_tasks import annotated, export, imported
from labels import Row, annotation_row, rows_of_everything, write_labels
from unruly import UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.compare import compare
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of, label_studio
from prelabel.pipeline.imports import label_studio as importing
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError

SIDES = ("x", "y", "width", "height")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def pixels(value: Row) -> list[float]:
    return [value[side] * size / 100 for side, size in zip(SIDES, 2 * (WIDTH, HEIGHT), strict=True) if side in value]


def test_tasks_are_the_table(labels: LabelDataset, tmp_path: Path) -> None:
    images = {row["image_id"]: row for row in labels.table("images").to_table().to_pylist()}
    tasks = {task["data"]["image_id"]: task for task in export(labels, tmp_path)}
    expected = objects_by_image(labels)
    assert [*tasks] == [*expected]
    for image_id, rows in expected.items():
        data, (prediction,) = tasks[image_id]["data"], tasks[image_id]["predictions"]
        assert data == {"image": images[image_id]["uri"], "image_id": image_id, "key": images[image_id]["key"]} | {
            "width": WIDTH,
            "height": HEIGHT,
        }
        assert prediction["model_version"] == f"scenes:maskrcnn {labels.record.fingerprint[:8]}"
        assert_regions(prediction["result"], rows, image_id)
    (empty,) = [task["predictions"][0]["result"] for task in tasks.values() if task["data"]["key"] == "empty.png"]
    assert empty in ([], [CHOICE])


CHOICE = {
    "id": "label",
    "from_name": "labels",
    "to_name": "image",
    "type": "choices",
    "value": {"choices": [UNRULY[3].name]},
    "score": 0.625,
}


def assert_regions(result: list[Row], rows: list[Row], image_id: int) -> None:
    regions = {region["id"]: region for region in result}
    assert len(regions) == len(result)
    assert regions.pop("label", None) == (CHOICE if image_id % 2 else None)
    for row in rows:
        region = regions.pop(str(row["annotation_id"]))
        assert (region["original_height"], region["original_width"]) == (HEIGHT, WIDTH)
        assert region["value"][region["type"]] == [row["category"]]
        assert np.float32(region["score"]) == np.float32(row["score"])
        if row["mask"] is None or not row["mask"].any():
            assert pixels(region["value"]) == pytest.approx([row["bbox"][side] for side in SIDES], abs=1e-3)
        else:
            found = read_mask(bytes(region["value"]["rle"]), HEIGHT, WIDTH)[..., 3] == 255
            np.testing.assert_array_equal(found, row["mask"])
        if row["keypoints"]:
            points = [regions.pop(f"{row['annotation_id']}.{k}") for k in (1, 2)]  # the third is not placed
            assert [point["parentID"] for point in points] == 2 * [str(row["annotation_id"])]
            assert [pixels(one["value"])[:2] for one in points] == [
                pytest.approx([3.25, 4.5]),
                pytest.approx([5.5, 6.75]),
            ]
            assert [one["value"]["keypointlabels"] for one in points] == [['left "eye"'], ["<nose>"]]
            assert [one["meta"]["visibility"] for one in points] == [2, 1]
    assert not regions


def test_configuration_has_all_names(labels: LabelDataset, tmp_path: Path) -> None:
    export(labels, tmp_path)
    view = ElementTree.parse(tmp_path / "tasks" / "config.xml").getroot()
    names = {one.get("name"): [label.get("value") for label in one] for one in view if len(one)}
    assert names == {
        "rectangles": [*UNRULY.names],
        "masks": [*UNRULY.names],
        "keypoints": [*(UNRULY[7].keypoints or ())],
        "labels": [*UNRULY.names],
    }
    assert view[1][0].get("background") == "#010203"


@pytest.mark.parametrize("name", ["$variable", "bell\a"])
def test_name_that_a_configuration_can_not_hold_is_one_line(name: str, tmp_path: Path) -> None:
    categories = CategorySet([Category(2, name), Category(5, "leaf")])
    source = write_images(f"{tmp_path}/images", 1)
    labels = write_labels(source, f"{tmp_path}/labels", lambda _: {"annotations": []}, ["detect"], categories)
    with pytest.raises(UserError, match="Label Studio can't have a label"):
        export(labels, tmp_path)


def test_files_end_at_a_number_of_tasks_or_bytes(
    labels: LabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = export(labels, tmp_path / "one")
    monkeypatch.setattr(label_studio, "TASKS", 4)
    assert export(labels, tmp_path / "tasks") == every
    assert len([*tmp_path.glob("tasks/tasks/*.json")]) == -(-len(every) // 4)
    monkeypatch.setattr(label_studio, "BYTES", 4000)
    assert export(labels, tmp_path / "bytes") == every
    written = [path.read_bytes() for path in tmp_path.glob("bytes/tasks/*.json")]
    assert all(len(text) < 4100 or len(json.loads(text)) == 1 for text in written)


def test_images_are_served_from_the_export_or_from_a_url(labels: LabelDataset, tmp_path: Path) -> None:
    for task in export(labels, tmp_path / "copy", "copy"):
        (path,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]
        assert task["data"]["image"].startswith("/data/local-files/?d=tasks/images/")
        assert (tmp_path / "copy" / path).stat().st_size > 0
    urls = [task["data"]["image"] for task in export(labels, tmp_path / "url", "https://host/photos")]
    assert "https://host/photos/%231.png" in urls


def test_segments_are_regions_where_there_are_no_objects(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images")

    def segments(image: Row) -> dict[str, list[Row]]:
        return {"segments": rows_of_everything(image)["segments"]}

    labels = write_labels(source, f"{tmp_path}/labels", segments, ["fuse_panoptic"])
    rows = labels.table("segments").to_table().to_pylist()
    tasks = export(labels, tmp_path)
    found = {(t["data"]["image_id"], region["id"]): region for t in tasks for region in t["predictions"][0]["result"]}
    assert [*found] == [(row["image_id"], f"segment-{row['segment_id']}") for row in rows]
    for row, region in zip(rows, found.values(), strict=True):
        mask = read_mask(bytes(region["value"]["rle"]), HEIGHT, WIDTH)[..., 3] == 255
        np.testing.assert_array_equal(mask, labels.mask(row["segmentation"]))
        assert (region["value"]["brushlabels"], "score" in region) == ([row["category"]], False)
    both = write_labels(source, f"{tmp_path}/both", rows_of_everything, ["segment_instances", "fuse_panoptic"])
    assert "segments are left out" in exporter_of("label-studio").write(both, f"{tmp_path}/two").notes[0]


def test_choice_is_one_of_the_selected_categories(labels: LabelDataset, tmp_path: Path) -> None:
    exporter_of("label-studio").write(labels.select(categories=["person"]), f"{tmp_path}/tasks")
    tasks = json.loads((tmp_path / "tasks" / "tasks-000000.json").read_bytes())
    assert not [one for task in tasks for one in task["predictions"][0]["result"] if one["type"] == "choices"]


def test_labels_without_anything_to_correct_are_one_line(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images", 1)
    labels = write_labels(source, f"{tmp_path}/labels", lambda _: {"proposals": []}, ["propose"])
    with pytest.raises(UserError, match="nothing to correct"):
        export(labels, tmp_path)


def test_what_was_accepted_comes_back_as_it_was(
    labels: LabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "CHUNK", 1000)
    found = imported(annotated(export(labels, tmp_path)), tmp_path, labels)
    before, after = objects_by_image(labels), objects_by_image(found)
    assert [*before] == [*after]
    for image_id, rows in before.items():
        assert [row["category"] for row in after[image_id]] == [row["category"] for row in rows]
        for row, one in zip(rows, after[image_id], strict=True):
            assert one["score"] == 1
            if row["mask"] is None or not row["mask"].any():
                assert [*one["bbox"].values()] == pytest.approx([*row["bbox"].values()], abs=1e-3)
            else:
                assert one["segmentation"] == row["segmentation"]
            assert one["keypoints"] == (row["keypoints"] and pytest.approx(row["keypoints"], abs=1e-3))


def test_three_edits_are_the_three_changes(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images")

    def boxes(image: Row) -> dict[str, list[Row]]:
        image["num_annotations"] = 0 if image["image_id"] == FAILED else 3
        rows = (annotation_row(image["image_id"], rank) for rank in range(image["num_annotations"]))
        return {"annotations": [row | {"segmentation": None, "area": 14.0 * 12} for row in rows]}

    def edit(result: list[Row], task: Row) -> None:
        if task["data"]["image_id"] == 2:
            result[0]["value"]["x"] += 100 * 3 / WIDTH
        if task["data"]["image_id"] == 3:
            del result[1]
        if task["data"]["image_id"] == 5:
            (old,) = result[2]["value"]["rectanglelabels"]
            result[2]["value"]["rectanglelabels"] = [name for name in CATEGORIES.names if name != old]

    labels = write_labels(source, f"{tmp_path}/labels", boxes, ["detect"])
    after = imported(annotated(export(labels, tmp_path), edit), tmp_path, labels)
    changes = compare(labels, after).kinds["objects"].total
    assert (changes.moved, changes.vanished, changes.reclassified, changes.appeared) == (1, 1, 1, 0)
    assert changes.matched == 3 * 6 - 3
