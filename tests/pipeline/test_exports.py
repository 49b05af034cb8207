"""What every export promises, then COCO's documents, read back by pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import CATEGORIES, FAILED, ring, write_images, write_job
from pycocotools.coco import COCO

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import EXPORTS, exporter_of
from prelabel.schemas.errors import JobError, UserError


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    folder = tmp_path_factory.mktemp("job")
    return write_job(write_images(f"{folder}/images"), f"{folder}/labels", units=2)


def exported(name: str, labels: LabelDataset, folder: Path) -> Any:
    exporter_of(name).write(labels, f"{folder}/new/labels.json")
    return json.loads(Path(folder, "new", "labels.json").read_bytes())


def read_coco(folder: Path, capsys: pytest.CaptureFixture[str]) -> COCO:
    coco = COCO(f"{folder}/new/labels.json")
    capsys.readouterr()
    return coco


@pytest.mark.parametrize("name", EXPORTS)
def test_export_of_the_same_labels_is_the_same_bytes(name: str, labels: LabelDataset, tmp_path: Path) -> None:
    for to in ("a", "b"):
        summary = exporter_of(name).write(labels, f"{tmp_path}/{to}")
        assert summary.to == f"{tmp_path}/{to}"
        assert summary.annotations == 5
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", EXPORTS)
def test_export_of_nothing_is_a_whole_document(name: str, tmp_path: Path) -> None:
    labels = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels", units=0)
    assert exporter_of(name).write(labels, f"{tmp_path}/out").annotations == 0
    json.loads((tmp_path / "out").read_bytes())


@pytest.mark.parametrize("name", EXPORTS)
def test_export_that_fails_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    labels = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels")
    exporter_of(name).write(labels, f"{tmp_path}/out/labels")
    old = (tmp_path / "out" / "labels").read_bytes()
    (tmp_path / "labels" / "annotations" / "part-00000001.parquet").unlink()
    with pytest.raises(JobError, match="part-00000001"):
        exporter_of(name).write(labels, f"{tmp_path}/out/labels")
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "out").iterdir()] == [("labels", old)]


@pytest.mark.parametrize("name", EXPORTS)
def test_place_that_takes_no_file_is_one_line(name: str, labels: LabelDataset, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for to in ("folder", "file/labels.json"):
        with pytest.raises(JobError, match=to):
            exporter_of(name).write(labels, f"{tmp_path}/{to}")


def test_unknown_format_names_the_others() -> None:
    with pytest.raises(UserError, match="'kitti': choose from coco, coco-results"):
        exporter_of("kitti")


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
