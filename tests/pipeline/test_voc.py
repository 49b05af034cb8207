"""Pascal VOC's folders, read back with nothing but a parser and Pillow."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import HEIGHT, WIDTH, annotation_row
from labels import Row, box
from PIL import Image
from shards import write_files
from unruly import KEYS, UNRULY, no_objects, objects_by_image, picture, write_unruly

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.exports.base import ExportSummary
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError

NAMES = {"%": "%25", "/": "%2F", "\n": "%250A", "#": "%23"}
"""What percent-encoding makes of the keys of `unruly`, but for the spaces around."""


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def folder(labels: LabelDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exports")
    exporter_of("voc").write(labels, f"{to}/voc", images="copy")
    return to / "voc"


def stem_of(key: str) -> str:
    stem = key.removesuffix(".png")
    return "%20around%20" if stem == " around " else "".join(NAMES.get(one, one) for one in stem)


@pytest.fixture(scope="module")
def stems(labels: LabelDataset) -> dict[int, str]:
    images = labels.table("images").to_table().to_pylist()
    return {row["image_id"]: stem_of(row["key"]) for row in images if row["status"] == "ok"}


def boxes_in(file: Path) -> list[tuple[str, list[int]]]:
    root = ElementTree.parse(file).getroot()
    assert root.findtext("size/width") == str(WIDTH)
    assert root.findtext("size/height") == str(HEIGHT)
    return [
        (one.findtext("name") or "", [int(one.findtext(f"bndbox/{s}") or "") for s in ("xmin", "ymin", "xmax", "ymax")])
        for one in root.iter("object")
    ]


def test_boxes_are_the_nearest_pixels_counted_from_1(labels: LabelDataset, folder: Path, stems: dict[int, str]) -> None:
    for image_id, rows in objects_by_image(labels).items():
        found = boxes_in(folder / "Annotations" / f"{stems[image_id]}.xml")
        assert [name for name, _ in found] == [row["category"] for row in rows]
        for (_, (left, top, right, bottom)), row in zip(found, rows, strict=True):
            sides = row["bbox"]
            assert 1 <= left <= right <= WIDTH
            assert 1 <= top <= bottom <= HEIGHT
            corners = [sides["x"], sides["y"], sides["x"] + sides["width"], sides["y"] + sides["height"]]
            thin = min(sides["width"], sides["height"]) < 1
            assert [left - 1, top - 1, right, bottom] == pytest.approx(corners, abs=1.5 if thin else 0.5)


@pytest.mark.parametrize(
    ("sides", "pixels"),
    [((0, 0, 32, 24), [1, 1, 32, 24]), ((31.9, 23.9, 0.1, 0.1), [32, 24, 32, 24]), ((4.6, 2, 0.2, 1), [6, 3, 6, 3])],
)
def test_box_has_a_pixel_of_the_image(sides: Any, pixels: list[int], tmp_path: Path) -> None:
    def rows(image: Row) -> dict[str, list[Row]]:
        image["num_annotations"] = int(image["status"] == "ok")
        row = annotation_row(image["image_id"], 0) | {"bbox": box(*sides), "category_id": 7, "category": "person"}
        return {"annotations": [row] * image["num_annotations"]}

    exporter_of("voc").write(write_unruly(tmp_path, rows=rows, tasks=["detect"]), f"{tmp_path}/voc")
    assert boxes_in(tmp_path / "voc" / "Annotations" / "empty.xml") == [("person", pixels)]
    assert not (tmp_path / "voc" / "SegmentationClass").exists()


def test_pixels_are_those_of_the_best_object(labels: LabelDataset, folder: Path, stems: dict[int, str]) -> None:
    for image_id, rows in objects_by_image(labels).items():
        instances, classes = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        masked = [row for row in rows if row["mask"] is not None]
        for number in range(len(masked), 0, -1):
            row = masked[number - 1]
            instances[row["mask"]] = number
            classes[row["mask"]] = UNRULY.ids.index(row["category_id"]) + 1
        for kind, expected in (("SegmentationObject", instances), ("SegmentationClass", classes)):
            with Image.open(folder / kind / f"{stems[image_id]}.png") as png:
                assert png.mode == "P"
                np.testing.assert_array_equal(np.asarray(png), expected)
                palette = np.array(png.getpalette()).reshape(-1, 3)
            known = {0: (0, 0, 0), 1: (128, 0, 0), 7: (128, 128, 128), 15: (192, 128, 128), 255: (224, 224, 192)}
            assert {index: tuple(palette[index]) for index in known} == known


def test_lists_and_labels_name_all(folder: Path, stems: dict[int, str]) -> None:
    for kind in ("Main", "Segmentation"):
        listed = (folder / "ImageSets" / kind / "trainval.txt").read_text().split("\n")
        assert listed == [*stems.values(), ""]
    assert sorted(file.name for file in (folder / "JPEGImages").iterdir()) == sorted(f"{s}.png" for s in stems.values())
    assert len(set(stems.values())) == len(KEYS) - 1
    lines = (folder / "labelmap.txt").read_text().split("\n")
    names = ["background", *UNRULY.names]
    assert [line.split(":")[0] for line in lines[1:-1]] == names
    assert [line.split(":")[1] for line in lines[1:-1]] == ["0,0,0", "128,0,0", "0,128,0", "128,128,0"]


def test_name_that_is_too_long_for_a_file_is_cut(tmp_path: Path) -> None:
    deep = "/".join(k * 90 for k in "abc")
    write_files(f"{tmp_path}/images", {f"{deep}/{name}.png": picture(1) for name in "de"})
    exporter_of("voc").write(write_unruly(tmp_path, tasks=["detect"]), f"{tmp_path}/voc", images="link")
    listed = (tmp_path / "voc" / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    long = [stem for stem in listed if stem.startswith("aaa")]
    assert len(set(long)) == 2
    assert all((tmp_path / "voc" / "JPEGImages" / f"{stem}.png").exists() for stem in long)


@pytest.mark.parametrize("name", ["a:b", "#1", "two\nlines", "background"])
def test_name_that_the_label_map_can_not_hold_is_one_line(name: str, tmp_path: Path) -> None:
    labels = write_unruly(tmp_path, categories=CategorySet([Category(1, name)]), rows=no_objects)
    with pytest.raises(UserError, match=r"VOC's labelmap\.txt"):
        exporter_of("voc").write(labels, f"{tmp_path}/out")


def exported(labels: LabelDataset, folder: Path) -> ExportSummary:
    return exporter_of("voc").write(labels, f"{folder}/voc")


def test_more_categories_than_a_palette_has_are_one_line(tmp_path: Path) -> None:
    many = CategorySet(Category(k, f"kind {k}") for k in range(255))
    empty = {"categories": many, "rows": no_objects}
    with pytest.raises(UserError, match="room for 254 categories, and there are 255: choose some with --category"):
        exported(write_unruly(tmp_path / "masks", **empty), tmp_path)
    assert exported(write_unruly(tmp_path / "boxes", tasks=["detect"], **empty), tmp_path).images == len(KEYS) - 1


def test_objects_beyond_the_palette_are_told(tmp_path: Path) -> None:
    def crowd(image: Row) -> dict[str, list[Row]]:
        image["num_annotations"] = 300 if image["image_id"] == 0 else 0
        found = []
        for rank in range(image["num_annotations"]):
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask.flat[2 * rank : 2 * rank + 2] = True
            runs = rle.encode(mask)
            row = annotation_row(0, rank) | {"score": 1 - rank / 1_000, "segmentation": runs.to_coco(), "area": 2}
            found.append(row | {"category_id": 7, "category": "person", "bbox": box(*rle.bbox(runs))})
        return {"annotations": found}

    summary = exported(write_unruly(tmp_path, rows=crowd), tmp_path)
    assert summary.notes == ("46 masks are not in the PNGs, which hold the best 254 of an image",)
    with Image.open(tmp_path / "voc" / "SegmentationObject" / "%20around%20.png") as png:
        assert np.bincount(np.asarray(png).ravel()).tolist() == [HEIGHT * WIDTH - 2 * 254, *[2] * 254]


def test_what_lies_under_others_is_told(tmp_path: Path) -> None:
    summary = exported(write_unruly(tmp_path), tmp_path)
    assert len(summary.notes) == 1
    assert "masks lie in part under others of higher score" in summary.notes[0]
