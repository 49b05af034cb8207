"""Hugging Face's dataset directory, read by pyarrow alone; `tests/tools/test_datasets.py` has the library read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from jobs import write_images
from labels import write_labels
from unruly import KEYS, UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of, hf
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError

Row = dict[str, Any]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def exported(labels: LabelDataset, folder: Path, images: str = "none") -> list[Path]:
    exporter_of("hf").write(labels, f"{folder}/out", images)
    return sorted((folder / "out" / "data").iterdir())


def rows_of(files: list[Path]) -> list[Row]:
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def features_of(file: Path) -> Row:
    found: Row = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    return found


def test_rows_hold_images_and_objects(labels: LabelDataset, tmp_path: Path) -> None:
    files = exported(labels, tmp_path, "copy")
    assert [file.name for file in files] == ["train-00000-of-00001.parquet"]
    rows = {row["image_id"]: row for row in rows_of(files)}
    objects = objects_by_image(labels)
    assert rows.keys() == objects.keys()
    for row in labels.table("images").to_table().to_pylist():
        if row["status"] == "ok":
            found = rows[row["image_id"]]
            assert found["file_name"] == row["key"]
            assert found["image"]["bytes"] == Path(row["uri"]).read_bytes()
            assert "\n" not in found["image"]["path"]
    assert len({row["image"]["path"] for row in rows.values()}) == len(KEYS) - 1
    for image_id, expected in objects.items():
        found = rows[image_id]["objects"]
        assert found["id"] == [row["annotation_id"] for row in expected]
        assert found["category"] == [UNRULY.ids.index(row["category_id"]) for row in expected]
        assert found["bbox"] == [[*row["bbox"].values()] for row in expected]
        for name in ("area", "score", "iscrowd", "segmentation", "keypoints"):
            assert found[name] == [row[name] for row in expected]


def test_features_name_the_classes(labels: LabelDataset, tmp_path: Path) -> None:
    features = features_of(exported(labels, tmp_path, "copy")[0])
    assert features["image"] == {"_type": "Image"}
    assert features["objects"]["feature"]["category"] == {"names": [*UNRULY.names], "_type": "ClassLabel"}


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    twice = CategorySet([Category(1, "door"), Category(4, "cat"), Category(9, "door")])
    source = write_images(f"{tmp_path}/images", 1)
    labels = write_labels(source, f"{tmp_path}/labels", lambda _: {"annotations": []}, ["detect"], twice)
    features = features_of(exported(labels, tmp_path)[0])
    assert features["objects"]["feature"]["category"]["names"] == ["door (1)", "cat", "door (9)"]


@pytest.mark.parametrize(("images", "first"), [("none", "#1.png"), ("https://host/a/", "https://host/a/%231.png")])
def test_image_that_is_not_copied_is_a_text(images: str, first: str, labels: LabelDataset, tmp_path: Path) -> None:
    files = exported(labels, tmp_path, images)
    assert features_of(files[0])["image"] == {"dtype": "string", "_type": "Value"}
    assert {row["file_name"]: row["image"] for row in rows_of(files)}["#1.png"] == first


def test_shards_are_cut_by_size(labels: LabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(exported(labels, tmp_path / "a", "copy"))
    monkeypatch.setattr(hf, "SHARD_BYTES", 8_000)
    monkeypatch.setattr(hf, "GROUP_ROWS", 2)
    files = exported(labels, tmp_path / "b", "copy")
    assert len(files) > 2
    assert {file.name[11:] for file in files} == {f"-of-{len(files):05d}.parquet"}
    assert rows_of(files) == whole


def test_image_that_is_gone_is_null_and_told(tmp_path: Path) -> None:
    labels = write_unruly(tmp_path)
    (tmp_path / "images" / "50%.png").unlink()
    written = exporter_of("hf").write(labels, f"{tmp_path}/out", "copy")
    assert [note for note in written.notes if "1 images could not be copied, such as: 50%.png" in note]
    rows = {row["file_name"]: row["image"] for row in rows_of([*(tmp_path / "out" / "data").iterdir()])}
    assert [name for name, image in rows.items() if image is None] == ["50%.png"]


def test_card_says_where_the_data_is(labels: LabelDataset, tmp_path: Path) -> None:
    exported(labels, tmp_path)
    _, header, text = (tmp_path / "out" / "README.md").read_text().split("---\n")
    (config,) = yaml.safe_load(header)["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert f"{len(KEYS) - 1} images" in text


def test_links_are_refused(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images link: Parquet can't hold links: --images copy"):
        exported(labels, tmp_path, "link")
