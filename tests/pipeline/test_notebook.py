"""A job and an image show themselves; whatever their names are, and whether or not the originals are there."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import FAILED, annotation_row, write_images
from labels import Row, rows_of_everything, write_labels
from PIL import Image
from shards import write_files

from prelabel.pipeline import LabeledImage
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.pictures import draw_labels, draw_segments
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import SourceError, UserError

KEY = "<img src=x onerror=alert(1)>.png"
NAME = '"><script>alert(1)</script>'
TASKS = ("detect", "fuse_panoptic")
HARMLESS = {"div", "p", "b", "br", "bdi", "progress", "table", "caption", "tr", "th", "td", "span", "img"}


def write(
    folder: Path, files: dict[str, bytes] | None = None, rows: Callable[[Row], Any] = rows_of_everything, **more: Any
) -> LabelDataset:
    """A job over some files, whose rows know their digests."""
    source = f"{folder}/images"
    write_files(source, files) if files else write_images(source)

    def found(image: Row) -> dict[str, list[Row]]:
        image["digest"] = hashlib.sha256(Path(source, image["key"]).read_bytes()).hexdigest()
        return rows(image)

    return write_labels(source, f"{folder}/labels", found, TASKS, **more)


def objects_alone(image: Row) -> dict[str, list[Row]]:
    return {"annotations": rows_of_everything(image)["annotations"]}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Page(HTMLParser):
    """Fails on what has no business in the HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.pictures = "", []
        self.feed(html)
        assert len(html) < 300_000

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag in HARMLESS
        assert given.keys() <= {"style", "src", "alt", "title", "max", "value"}
        if tag == "img":
            head, _, data = str(given["src"]).partition(",")
            assert head == "data:image/jpeg;base64"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_data(self, data: str) -> None:
        self.text = re.sub(r"\s+", " ", self.text + data)


def page(shown: Any) -> Page:
    return Page(shown._repr_html_())


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write(tmp_path_factory.mktemp("job"))


def test_image_is_found_by_its_id_and_by_its_key(labels: LabelDataset) -> None:
    for row in labels.table("images").to_table().to_pylist():
        for which in (row["image_id"], np.int64(row["image_id"]), row["key"]):
            image = labels.image(which)
            assert isinstance(image, LabeledImage)
            assert image.row == row
            assert image.labels == []
            for name, found in (("annotations", image.annotations), ("segments", image.segments)):
                rows = labels.table(name).to_table().to_pylist()
                assert found == [one for one in rows if one["image_id"] == row["image_id"]]


@pytest.mark.parametrize("which", [-1, 7, "", "nothing.png"])
def test_image_that_is_not_there(labels: LabelDataset, which: int | str) -> None:
    with pytest.raises(UserError, match=f"has no image {which!r} in its committed units"):
        labels.image(which)


def test_pictures_are_those_of_the_original(labels: LabelDataset) -> None:
    image = labels.image(2)
    encoded = image.encoded
    assert hashlib.sha256(encoded).hexdigest() == image.row["digest"]
    assert image.picture() == draw_labels(encoded, image.annotations)
    assert image.picture(100, score_threshold=0.85) == draw_labels(encoded, image.annotations[:1], longest=100)
    assert image.segments_picture() == draw_segments(encoded, image.segments)


def test_image_shows_its_pictures_and_labels(labels: LabelDataset) -> None:
    shown = page(labels.image(2))
    assert [max(picture.size) for picture in shown.pictures] == [800, 800]  # objects, and segments
    assert "image-4.png image 2, 32 x 24 pixels" in shown.text
    assert "2 objects" in shown.text
    assert "leaf 0.80 5.03.014.012.0156" in shown.text


def test_image_without_labels_shows_itself(labels: LabelDataset) -> None:
    assert len(page(labels.image(0)).pictures) == 1
    shown = page(labels.image(FAILED))
    assert "sub/image-1.png image 4, truncated" in shown.text


def test_labels_of_the_image_as_a_whole_are_shown(tmp_path: Path) -> None:
    def rows(image: Row) -> dict[str, list[Row]]:
        image["labels"] = [{"category_id": 2, "category": NAME, "score": 0.75}]
        return {"annotations": []}

    dataset = write(tmp_path, rows=rows)
    assert dataset.image(0).labels[0]["category"] == NAME
    assert f"{NAME} 0.75" in page(dataset.image(0)).text


def test_job_shows_what_it_is_and_has_found(labels: LabelDataset) -> None:
    shown = page(labels)
    assert [max(picture.size) for picture in shown.pictures] == [160] * 6
    for text in (
        labels.url[:60],
        "scenes:maskrcnn: detect, fuse_panoptic",
        "3 of 3 units",
        "images labeled6",
        "images failed1",
        "annotations5",
        "Most frequent of all 5 objects ■ leaf3■ ball2",
    ):
        assert text.replace(" ", "") in shown.text.replace(" ", "")


@pytest.mark.parametrize("units", [0, 1])
def test_job_that_has_just_begun_shows_itself(tmp_path: Path, units: int) -> None:
    shown = page(write(tmp_path, units=units))
    assert f"{units} of 3 units" in shown.text
    assert len(shown.pictures) == 3 * units


def test_names_stay_text(tmp_path: Path) -> None:
    def rows(image: Row) -> dict[str, list[Row]]:
        return {"annotations": [annotation_row(image["image_id"], 0) | {"category": NAME}]}

    categories = CategorySet([Category(2, NAME), Category(5, NAME)])
    dataset = write(
        tmp_path / NAME.replace("/", ""), {KEY: png(np.zeros((24, 32), np.uint8))}, rows, categories=categories
    )
    for shown in (page(dataset), page(dataset.image(KEY))):
        assert NAME in shown.text
        assert len(shown.pictures) == 1
    assert KEY in shown.text


def test_original_that_is_gone_or_another_is_told(tmp_path: Path) -> None:
    image = png(np.zeros((24, 32), np.uint8))
    dataset = write(tmp_path, {KEY: image, "other.png": image}, objects_alone)
    original = tmp_path / "images" / KEY
    original.write_bytes(png(np.ones((24, 32), np.uint8)))
    assert f"Not shown: {KEY} can't be read" in page(dataset.image(0)).text
    original.unlink()
    for shown in (page(dataset), page(dataset.image(0))):
        assert f"Not shown: {KEY} can't be read" in shown.text
    assert [len(page(one).pictures) for one in (dataset, dataset.image(0))] == [1, 0]
    with pytest.raises(SourceError, match="can't be read"):
        dataset.image(0).picture()


def test_html_of_a_large_crowded_image_is_small(tmp_path: Path) -> None:
    def rows(image: Row) -> dict[str, list[Row]]:
        return {"annotations": [annotation_row(0, 0) | {"annotation_id": k, "category": NAME * 99} for k in range(200)]}

    noise = np.random.default_rng(7).integers(0, 256, (700, 900, 3), np.uint8)
    shown = page(write(tmp_path, {"a.png": png(noise)}, rows).image(0))
    assert max(shown.pictures[0].size) < 800
    assert "200 objects" in shown.text
    assert "and 170 more" in shown.text
