"""WebDataset's tars, read by tarfile and WebDataset's own rule for keys; `tests/tools` has the library read them."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from unruly import KEYS, UNRULY, objects_by_image, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of, webdataset
from prelabel.pipeline.sources import open_source
from prelabel.schemas.errors import UserError

KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""https://github.com/webdataset/webdataset: tariterators.base_plus_ext."""
Row = dict[str, Any]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def exported(labels: LabelDataset, folder: Path, images: str = "copy") -> Row:
    exporter_of("webdataset").write(labels, f"{folder}/out", images)
    about: Row = json.loads((folder / "out" / "dataset.json").read_bytes())
    return about


def pairs_of(file: Path) -> list[dict[str, bytes]]:
    """As the library groups neighbours of one key."""
    pairs: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(file) as tar:
        for member in tar:
            match = KEY.match(member.name)
            assert match
            if not pairs or pairs[-1][0] != match[1]:
                pairs.append((match[1], {}))
            data = tar.extractfile(member)
            assert data
            pairs[-1][1][match[2]] = data.read()
    assert len({key for key, _ in pairs}) == len(pairs)
    return [files for _, files in pairs]


def test_each_image_has_its_labels_beside_it(labels: LabelDataset, tmp_path: Path) -> None:
    about = exported(labels, tmp_path)
    objects = objects_by_image(labels)
    count = sum(map(len, objects.values()))
    assert about["shards"] == [{"name": "shard-00000.tar", "images": len(objects), "labels": count}]
    assert about["categories"] == json.loads(UNRULY.to_json())
    images = {row["image_id"]: row for row in labels.table("images").to_table().to_pylist()}
    pairs = pairs_of(tmp_path / "out" / "shard-00000.tar")
    assert len(pairs) == len(objects) == len(KEYS) - 1
    for files in pairs:
        assert files.keys() == {"png", "json"}
        read = json.loads(files["json"])
        image = images[read["image_id"]]
        assert files["png"] == Path(image["uri"]).read_bytes()
        assert (read["file_name"], read["width"], read["height"]) == (image["key"], image["width"], image["height"])
        assert read.get("labels", []) == image["labels"]
        for found, row in zip(read["annotations"], objects[read["image_id"]], strict=True):
            assert found["bbox"] == pytest.approx([*row["bbox"].values()], rel=1e-6)
            assert found["score"] == pytest.approx(row["score"], rel=1e-6)
            for name in ("annotation_id", "category", "area", "segmentation", "keypoints", "iscrowd"):
                assert found.get(name) == row[name]


def test_labels_of_images_are_of_the_selected_categories(labels: LabelDataset, tmp_path: Path) -> None:
    exporter_of("webdataset").write(labels.select(categories=["person"]), f"{tmp_path}/out")
    read = [json.loads(files["json"]) for files in pairs_of(tmp_path / "out" / "shard-00000.tar")]
    assert len(read) == len(KEYS) - 1
    assert {label["category"] for one in read for label in one["annotations"] + one.get("labels", [])} == {"person"}


def test_shards_are_cut_by_number_and_size(
    labels: LabelDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(labels, tmp_path / "whole")
    whole = pairs_of(tmp_path / "whole" / "out" / "shard-00000.tar")
    for limit, value in (("SHARD_IMAGES", 5), ("SHARD_BYTES", 2_000)):
        with monkeypatch.context() as patch:
            patch.setattr(webdataset, limit, value)
            about = exported(labels, tmp_path / limit)
        shards = [pairs_of(tmp_path / limit / "out" / shard["name"]) for shard in about["shards"]]
        assert len(shards) > 2
        assert [shard["images"] for shard in about["shards"]] == [*map(len, shards)]
        assert [pair for pairs in shards for pair in pairs] == whole
        if limit == "SHARD_IMAGES":
            assert max(map(len, shards)) == value


def test_image_that_is_gone_is_left_out_and_told(tmp_path: Path) -> None:
    labels = write_unruly(tmp_path)
    (tmp_path / "images" / "50%.png").unlink()
    written = exporter_of("webdataset").write(labels, f"{tmp_path}/out", "copy")
    assert written.images == len(KEYS) - 2
    assert any("1 images could not be copied, such as: 50%.png" in note for note in written.notes)
    names = [json.loads(pair["json"])["file_name"] for pair in pairs_of(tmp_path / "out" / "shard-00000.tar")]
    assert sorted([*names, "50%.png"]) == sorted(objects_keys(labels))


def objects_keys(labels: LabelDataset) -> list[str]:
    images = {row["image_id"]: row["key"] for row in labels.table("images").to_table().to_pylist()}
    return [images[image_id] for image_id in objects_by_image(labels)]


def test_labels_alone_where_images_are_not_copied(labels: LabelDataset, tmp_path: Path) -> None:
    exported(labels, tmp_path, "https://host/a")
    pairs = [json.loads(pair["json"]) for pair in pairs_of(tmp_path / "out" / "shard-00000.tar")]
    assert {read["file_name"]: read["url"] for read in pairs}["#1.png"] == "https://host/a/%231.png"
    written = exporter_of("webdataset").write(labels, f"{tmp_path}/none")
    assert written.notes == ("the tars hold labels alone: --images copy puts the images beside them",)


def test_it_is_a_source(labels: LabelDataset, tmp_path: Path) -> None:
    exported(labels, tmp_path)
    source = open_source(f"{tmp_path}/out")
    keys = [ref.key for shard in source.shards() for ref in source.index(shard)]
    assert keys == [f"{image_id:09d}.png" for image_id in objects_by_image(labels)]


def test_links_are_refused(labels: LabelDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images link: a tar can't hold links: --images copy"):
        exported(labels, tmp_path, "link")
