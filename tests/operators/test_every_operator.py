"""Every operator, every kind of model: an image's labels are its own, and odd images have right ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from stock import random_image
from tiny_jobs import JOBS, OPTIONS

from prelabel.operators.base import Task
from prelabel.operators.label import Asked, Labeler, make_tables
from prelabel.operators.registry import assign, operators_for
from prelabel.pipeline.scenes import make_scene
from prelabel.schemas.categories import CategorySet, unite
from prelabel.schemas.tables import ROWS_PER_IMAGE, TABLES

SIZES = {"one pixel": (1, 1), "panorama": (200, 20_000), "double": (288, 384), "tall": (150, 61)}
"""Heights and widths of the images; those of the others are 144 and 192."""

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Labels:
    """What a job finds: for each image, the rows of each table, labeled in one unit with the others, and alone."""

    categories: CategorySet
    written: tuple[Task, ...]
    together: dict[str, Rows]
    alone: dict[str, Rows]


def scene(index: int) -> np.ndarray:
    return make_scene(7, index).image[:144, :192]


def panorama() -> np.ndarray:
    ramp = np.tile(np.linspace(0, 255, 20_000).astype(np.uint8)[None, :, None], (200, 1, 3))
    for index in range(4):
        ramp[20:164, 5000 * index : 5000 * index + 192] = scene(index)
    return ramp


@cache
def unit() -> pa.Table:
    """Six of the images have one input size for most networks."""
    gray = Image.fromarray(scene(2)).convert("L")
    pictures = {
        "scene": Image.fromarray(scene(0)),
        "one pixel": Image.new("RGB", (1, 1), "red"),
        "black": Image.new("RGB", (192, 144)),
        "gray": gray,
        "panorama": Image.fromarray(panorama()),
        "double": Image.fromarray(scene(1)).resize((384, 288)),
        "tall": Image.fromarray(random_image(150, 61, 5).permute(1, 2, 0).numpy()),
        "noise": Image.fromarray(random_image(144, 192, 6).permute(1, 2, 0).numpy()),
        "gray as RGB": gray.convert("RGB"),
    }
    files = {key: io.BytesIO() for key in pictures}
    for key, file in files.items():
        pictures[key].save(file, "PNG", compress_level=1)
    encoded = {key: file.getvalue() for key, file in files.items()}
    encoded["broken"] = encoded["scene"][:1000]
    count = len(encoded)
    return pa.table(
        {
            "image_id": pa.array(range(100, 100 + count), pa.int64()),
            "key": [*encoded],
            "uri": [*encoded],
            "bytes": pa.array(encoded.values(), pa.large_binary()),
            **{name: pa.nulls(count, pa.string()) for name in ("error_code", "error")},
            "shard": ["/images"] * count,
            "unit": pa.array([0] * count, pa.int32()),
        }
    )


@cache
def labels(name: str) -> Labels:
    torch.manual_seed(0)
    job = JOBS[name]()
    assignment = assign(job.models, job.tasks)
    categories, ids = unite([model.categories for model in job.models])
    asked = [Asked(*one) for one in zip(job.models, assignment.asked, ids, strict=True)]
    operators = operators_for(assignment.written, categories, OPTIONS)

    def label(images: pa.Table, batch_size: int) -> dict[str, Rows]:
        labeler = Labeler(asked, batch_size=batch_size, max_pixels=10**7, threads=2)
        tables = make_tables(images, labeler.look(images), operators)
        assert all(table.schema == TABLES[name] for name, table in tables.items())
        rows = {name: table.to_pylist() for name, table in tables.items()}
        return {
            key: {name: [row for row in some if row["image_id"] == image] for name, some in rows.items()}
            for image, key in zip(*images.select(["image_id", "key"]).to_pydict().values(), strict=True)
        }

    together, alone = label(unit(), 4), [label(unit().slice(place, 1), 1) for place in range(len(unit()))]
    return Labels(categories, assignment.written, together, {key: rows for one in alone for key, rows in one.items()})


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The networks are so small that threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    labels.cache_clear()
    unit.cache_clear()


every_job = pytest.mark.parametrize("name", JOBS)


def test_every_task_is_here() -> None:
    assert {task for name in ("scenes", "keypoints", "classifier") for task in labels(name).written} == {*Task}


# ---- the same alone and among others

TOLERANCES = {"score": 1e-3, "bbox": 0.01, "keypoints": 0.01}


@every_job
def test_an_image_has_the_same_labels_alone_and_among_others(name: str) -> None:
    found = labels(name)
    assert found.together.keys() == found.alone.keys()
    for key, tables in found.together.items():
        for table, rows in tables.items():
            for row, other in zip(rows, found.alone[key][table], strict=True):
                assert_same(told(row), told(other))


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what follows from its mask or box, as the next tests show."""
    return {name: row[name] for name in row if name != "area" and (name != "bbox" or "segment_id" not in row)}


def assert_same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    """Equal but for rounding: networks add a batch's numbers up in another order than one image's."""
    if isinstance(one, dict) and "counts" in one:
        common, all_ = (coco_mask.area(coco_mask.merge([one, other], intersect=way)) for way in (True, False))
        assert one["size"] == other["size"]
        assert all_ - common <= max(2, 0.001 * all_)  # a pixel may be just on a threshold, or between two labels
    elif isinstance(one, dict):
        for name in one.keys() | other.keys():
            assert_same(one[name], other[name], TOLERANCES.get(name, tolerance))
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_same(*pair, tolerance)
    else:
        assert one == (pytest.approx(other, abs=tolerance) if tolerance else other)


# ---- right


@every_job
def test_rows_are_right(name: str) -> None:
    found = labels(name)
    tables_of = {key: tables for key, tables in found.together.items() if key != "broken"}
    for key, tables in tables_of.items():
        (image,) = tables["images"]
        assert (image["status"], image["error_code"]) == ("ok", None)
        assert (image["height"], image["width"]) == SIZES.get(key, (144, 192))
        assert image["num_annotations"] == len(tables.get("annotations", []))
        check_categories(image["labels"] or [], found.categories)
        check_annotations(tables.get("annotations", []), image, found)
        check_segments(tables.get("segments", []), image, found)
        check_proposals(tables.get("proposals", []), image)
    assert any(tables["images"][0]["labels"] for tables in tables_of.values()) == (Task.CLASSIFY in found.written)
    for table in tables_of["scene"]:
        assert sum(len(tables[table]) for tables in tables_of.values()) >= len(tables_of)  # else, nothing was looked at


def check_categories(rows: list[dict[str, Any]], categories: CategorySet) -> None:
    for row in rows:
        assert row["category"] == categories[row["category_id"]].name
        assert row["score"] is None or 0 <= row["score"] <= 1


def check_annotations(rows: list[dict[str, Any]], image: dict[str, Any], found: Labels) -> None:
    check_ranks(rows, "annotation_id", image)
    check_categories(rows, found.categories)
    for row in rows:
        check_inside(row["bbox"], image)
        assert (row["segmentation"] is not None) == (Task.SEGMENT_INSTANCES in found.written)
        if row["segmentation"] is None:
            assert row["area"] == pytest.approx(row["bbox"]["width"] * row["bbox"]["height"], rel=1e-4, abs=0.1)
        else:
            assert row["area"] == measured(row["segmentation"], image)[0]
        assert (row["keypoints"] is not None) == (Task.DETECT_KEYPOINTS in found.written)
        if row["keypoints"] is not None:
            points = np.reshape(row["keypoints"], (len(found.categories[row["category_id"]].keypoints or ()), 3))
            assert np.isfinite(points).all()
            assert (points[:, 2] == 2).all()


def check_segments(rows: list[dict[str, Any]], image: dict[str, Any], found: Labels) -> None:
    check_categories(rows, found.categories)
    assert len({row["segment_id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["isthing"] == found.categories[row["category_id"]].isthing
        assert (row["area"], [*row["bbox"].values()]) == measured(row["segmentation"], image)
        assert row["area"] > 0
    for kind in ("panoptic", "semantic"):
        masks = [row["segmentation"] for row in rows if row["kind"] == kind]
        areas = [row["area"] for row in rows if row["kind"] == kind]
        assert sum(areas) == (coco_mask.area(coco_mask.merge(masks)) if masks else 0)  # disjoint


def check_proposals(rows: list[dict[str, Any]], image: dict[str, Any]) -> None:
    assert len(rows) <= OPTIONS.keep_proposals
    check_ranks(rows, "proposal_id", image)
    for row in rows:
        check_inside(row["bbox"], image)


def check_ranks(rows: list[dict[str, Any]], key: str, image: dict[str, Any]) -> None:
    assert [row[key] for row in rows] == [image["image_id"] * ROWS_PER_IMAGE + rank for rank in range(len(rows))]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def check_inside(bbox: dict[str, float], image: dict[str, Any]) -> None:
    assert min(bbox.values()) >= -0.01
    assert bbox["x"] + bbox["width"] <= image["width"] + 0.01
    assert bbox["y"] + bbox["height"] <= image["height"] + 0.01


def measured(segmentation: dict[str, Any], image: dict[str, Any]) -> tuple[int, list[float]]:
    """A mask's area and box as pycocotools has them."""
    assert segmentation["size"] == [image["height"], image["width"]]
    return int(coco_mask.area(segmentation)), coco_mask.toBbox(segmentation).tolist()


@every_job
def test_a_broken_file_is_a_row_that_says_so(name: str) -> None:
    tables = labels(name).together["broken"]
    (image,) = tables.pop("images")
    assert (image["status"], image["error_code"], image["num_annotations"]) == ("failed", "truncated", 0)
    assert not any(tables.values())


@every_job
def test_gray_is_three_equal_channels(name: str) -> None:
    gray, color = (labels(name).alone[key] for key in ("gray", "gray as RGB"))
    for table, rows in gray.items():
        assert [content(row) for row in rows] == [content(row) for row in color[table]]


def content(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what says which file it is about."""
    about = {"image_id", "annotation_id", "proposal_id", "key", "uri", "num_bytes", "digest"}
    return {name: row[name] for name in row.keys() - about}


def test_black_shows_no_thing() -> None:
    """No likely one, that is: annotations begin at a score of 0.05."""
    tables = labels("scenes").together["black"]
    assert all(row["score"] < 0.5 for row in tables["annotations"])
    assert not any(row["isthing"] for row in tables["segments"] if row["kind"] == "panoptic")
