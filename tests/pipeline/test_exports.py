"""What every export promises, then COCO's documents, read back by pycocotools."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import CATEGORIES, FAILED, files_of, ring, write_images, write_job
from labels import POSED, keypoints_of, rows_of_everything, write_labels
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import EXPORTS, exporter_of
from prelabel.pipeline.image_files import ImageFiles
from prelabel.schemas.errors import JobError, UserError


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("job")
    return write_job(write_images(f"{folder}/images"), f"{folder}/labels", units=2)


TASKS = ("detect_keypoints", "fuse_panoptic", "propose", "segment_instances")


def write_everything(folder: Path, units: int) -> LabelDataset:
    """A job that can be exported in every format."""
    source = write_images(f"{folder}/images")
    return write_labels(source, f"{folder}/labels", rows_of_everything, TASKS, POSED, units)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_everything(tmp_path_factory.mktemp("job"), 2)


def place(name: str, folder: str | Path) -> str:
    """Where an export of that name goes."""
    return f"{folder}/labels{exporter_of(name).suffix}"


def exported(name: str, labels: LabelDataset, folder: Path) -> Any:
    Path(folder, "new", "labels.json").unlink(missing_ok=True)
    exporter_of(name).write(labels, f"{folder}/new/labels.json")
    return json.loads(Path(folder, "new", "labels.json").read_bytes())


def read_coco(folder: Path, capsys: pytest.CaptureFixture[str]) -> COCO:
    coco = COCO(f"{folder}/new/labels.json")
    capsys.readouterr()
    return coco


@pytest.mark.parametrize("name", EXPORTS)
def test_export_of_the_same_labels_is_the_same_bytes(name: str, everything: LabelDataset, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        to = place(name, tmp_path / folder)
        summary = exporter_of(name).write(everything, to)
        assert summary.to == to
        assert summary.annotations > 0
    assert files_of(f"{tmp_path}/a") == files_of(f"{tmp_path}/b")


@pytest.mark.parametrize("name", EXPORTS)
def test_export_of_nothing_is_whole(name: str, tmp_path: Path) -> None:
    labels = write_everything(tmp_path, 0)
    assert exporter_of(name).write(labels, place(name, tmp_path / "out")).annotations == 0
    assert os.listdir(tmp_path / "out")


@pytest.mark.parametrize("name", EXPORTS)
def test_export_that_fails_leaves_nothing(name: str, tmp_path: Path) -> None:
    labels = write_everything(tmp_path, 3)
    for table in ("annotations", "segments", "proposals"):
        (tmp_path / "labels" / table / "part-00000001.parquet").unlink()
    with pytest.raises(JobError, match="part-00000001"):
        exporter_of(name).write(labels, place(name, tmp_path / "out"))
    assert not files_of(f"{tmp_path}/out")


@pytest.mark.parametrize("name", EXPORTS)
def test_export_does_not_overwrite(name: str, everything: LabelDataset, tmp_path: Path) -> None:
    exporter_of(name).write(everything, place(name, tmp_path / "out"))
    old = files_of(f"{tmp_path}/out")
    with pytest.raises(JobError, match="remove it, or choose another --to"):
        exporter_of(name).write(everything, place(name, tmp_path / "out"))
    assert files_of(f"{tmp_path}/out") == old


@pytest.mark.parametrize("name", EXPORTS)
def test_damaged_label_is_not_exported(name: str, tmp_path: Path) -> None:
    def damaged(image: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        found = rows_of_everything(image)
        for row in (row for rows in found.values() for row in rows if image["image_id"] == 5):
            row["score"] = 1.5
        return found

    labels = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", damaged, TASKS, POSED)
    with pytest.raises(JobError, match=r"part-00000001.parquet row \d: score 1.5; `prelabel validate"):
        exporter_of(name).write(labels, place(name, tmp_path / "out"))
    assert not files_of(f"{tmp_path}/out")


@pytest.mark.parametrize("name", EXPORTS)
def test_place_that_takes_nothing_is_one_line(name: str, everything: LabelDataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="file/labels"):
        exporter_of(name).write(everything, place(name, tmp_path / "file"))


def test_boxes_end_at_the_border_of_their_image(tmp_path: Path) -> None:
    def reaching_over(image: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        rows = rows_of_everything(image)["annotations"]
        wide = {"x": -2.0, "y": 1.0, "width": 40.0, "height": 30.0}
        return {
            "annotations": [
                row | {"bbox": wide, "area": 1200.0, "segmentation": None, "model": "transformers:x"} for row in rows
            ]
        }

    source = write_images(f"{tmp_path}/images")
    labels = write_labels(source, f"{tmp_path}/labels", reaching_over, ["detect"], models=["transformers:x"])
    found = exported("coco", labels, tmp_path)["annotations"]
    assert {tuple(one["bbox"]) for one in found} == {(0, 1, 32, 23)}
    assert {one["area"] for one in found} == {32 * 23}


def test_unknown_format_names_the_others() -> None:
    with pytest.raises(UserError, match="'kitti': choose from coco, "):
        exporter_of("kitti")


def test_labels_without_keypoints_are_one_line(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no keypoints: label with --task detect_keypoints"):
        exporter_of("coco-keypoints").write(labels, f"{tmp_path}/labels.json")


@pytest.mark.parametrize("name", ["coco", "coco-results"])
def test_labels_without_objects_are_one_line(name: str, tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images", 1)
    labels = write_labels(source, f"{tmp_path}/labels", lambda _: {"segments": []}, ["segment_semantic"])
    with pytest.raises(UserError, match="no objects: label with --task detect"):
        exporter_of(name).write(labels, f"{tmp_path}/labels.json")
    assert not (tmp_path / "labels.json").exists()


def test_coco_document_holds_the_committed_images_that_could_be_read(labels: LabelDataset, tmp_path: Path) -> None:
    document = exported("coco", labels, tmp_path)
    keys = labels.table("images").to_table()["key"].to_pylist()
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [
        (image_id, key) for image_id, key in enumerate(keys) if image_id != FAILED
    ]
    assert document["categories"] == CATEGORIES.to_coco()
    assert document["info"]["fingerprint"] == labels.record.fingerprint


def test_pycocotools_reads_the_coco_document(
    labels: LabelDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("coco", labels, tmp_path)
    coco = read_coco(tmp_path, capsys)
    rows = labels.table("annotations").to_table().to_pylist()
    assert sorted(coco.anns) == [row["annotation_id"] for row in rows]
    for row in rows:
        annotation = coco.anns[row["annotation_id"]]
        assert annotation["iscrowd"] == 0  # run-length encoding does not mean crowd
        np.testing.assert_array_equal(coco.annToMask(annotation), ring(row["annotation_id"] % 65536))
        assert annotation["area"] == row["area"] == ring(row["annotation_id"] % 65536).sum()
        assert annotation["bbox"] == list(row["bbox"].values())
        assert np.float32(annotation["score"]) == np.float32(row["score"])
        assert coco.cats[annotation["category_id"]]["name"] == row["category"]


def test_pycocotools_loads_the_results(
    labels: LabelDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("coco", labels, tmp_path)
    truth = read_coco(tmp_path, capsys)
    results = exported("coco-results", labels, tmp_path)
    loaded = truth.loadRes(results)
    capsys.readouterr()
    assert len(loaded.anns) == labels.table("annotations").count_rows()
    for annotation in loaded.anns.values():
        x, y, *_ = annotation["bbox"]
        rank = int(y) - 2
        assert x == 3 + 2 * rank
        np.testing.assert_array_equal(loaded.annToMask(annotation), ring(rank))


def test_pycocotools_reads_the_keypoints(
    everything: LabelDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = exported("coco-keypoints", everything, tmp_path)
    assert document["categories"] == json.loads(POSED.to_json())
    truth = read_coco(tmp_path, capsys)
    for annotation_id, annotation in truth.anns.items():
        rank = annotation_id % 65536
        assert np.float32(annotation["keypoints"]).tolist() == np.float32(keypoints_of(rank)).tolist()
        assert {type(visible) for visible in annotation["keypoints"][2::3]} == {int}
        assert annotation["num_keypoints"] == 16
        np.testing.assert_array_equal(truth.annToMask(annotation), ring(rank))


def test_keypoints_measured_against_themselves_are_perfect(
    everything: LabelDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = exported("coco-keypoints", everything, tmp_path)
    truth = read_coco(tmp_path, capsys)
    names = ("image_id", "category_id", "keypoints", "score")
    found = truth.loadRes([{name: annotation[name] for name in names} for annotation in document["annotations"]])
    evaluation = COCOeval(truth, found, "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[[0, 5]] == pytest.approx(1)


def test_objects_without_keypoints_are_left_out(tmp_path: Path) -> None:
    def rows(image: dict[str, Any]) -> dict[str, Any]:
        found = rows_of_everything(image)["annotations"]
        return {"annotations": [row | {"keypoints": None} if k else row for k, row in enumerate(found)]}

    source = write_images(f"{tmp_path}/images")
    labels = write_labels(source, f"{tmp_path}/labels", rows, ["detect_keypoints"])
    assert {one["id"] % 65536 for one in exported("coco-keypoints", labels, tmp_path)["annotations"]} == {0}
    posed = ["keypoints" in one for one in exported("coco-results", labels, tmp_path)]
    assert posed == [row["annotation_id"] % 65536 == 0 for row in labels.table("annotations").to_table().to_pylist()]


def test_names_of_images_are_told_apart(tmp_path: Path) -> None:
    keys = ["a.jpg", "a.png", "a.1.jpg", "../A.gif", "b/a.jpg", "b%2Fa.jpg", "c/../d.jpg"]

    def named(image: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        image["key"] = keys[image["image_id"]]
        return {"annotations": []}

    labels = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", named, ["detect"])
    files = ImageFiles("none", labels)
    rows = [row for batch in labels.batches("images") for row in batch.to_pylist()]
    names = [files.name(row) for row in rows]
    assert names == ["a.0.jpg", "a.1.png", "a.1.2.jpg", "%2E%2E/A.gif", "b/a.jpg", "b%2Fa.jpg", "c/%2E%2E/d.jpg"]
    flat = [files.flat_name(row)[0].casefold() for row in rows]
    assert len(set(flat)) == len(keys)
    assert not any("/" in one for one in flat)


def test_names_without_a_suffix_are_told_apart(tmp_path: Path) -> None:
    keys = ["scan.1", "scan.2", "x/scan.1", "plain", "scan.0", ".scan.1", "of a\n.\n"]

    def named(image: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        image |= {"key": keys[image["image_id"]], "format": "", "num_annotations": 0}  # as of one that was imported
        return {"annotations": []}

    labels = write_labels(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", named, ["detect"])
    exporter_of("yolo").write(labels, f"{tmp_path}/yolo")
    listed = Path(tmp_path, "yolo", "train.txt").read_text().splitlines()
    texts = [*Path(tmp_path, "yolo", "labels", "train").iterdir()]
    assert len(texts) == len({os.path.splitext(name)[0] for name in listed}) == len(keys) - 1
