"""A job whose names, masks and boxes are what formats stumble over, over images that are there to be copied."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from jobs import FAILED, HEIGHT, MODEL, WIDTH, ring
from labels import Row, box, write_labels
from PIL import Image
from shards import write_files

from prelabel.pipeline.dataset import LabelDataset
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.tables import ROWS_PER_IMAGE

UNRULY = CategorySet(
    [
        Category(0, '고양이, "큰" <b>&amp;\'', color=(1, 2, 3)),
        Category(3, "🐈‍⬛ two\twords,"),
        Category(7, "person", keypoints=('left "eye"', "<nose>", "발"), skeleton=((1, 2), (2, 3))),
    ]
)
TASKS = ("classify", "detect_keypoints", "segment_instances")
KEYS = [
    "#1.png", " around .png", "50%.png", "a%2Fb.png", "a/b.png", "c/b.png", "c/b.2.png", "c/x.jpeg.png", "empty.png",
    "new\nline.png", "\\back.png", "\"q\", <i>&amp;'.png", "이미지, 1.png", "🐈‍⬛.png",
]  # fmt: skip
"""Of the source's files; of the image that can't be read as well."""


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (10 * number, 90, 200)).save(file, "PNG")
    return file.getvalue()


def masks(seed: int) -> list[np.ndarray | None]:
    """One with a hole, dust, one pixel, all pixels, none, no mask at all, half of the image: in an order of chance."""
    rng = np.random.default_rng(seed)
    dust, pixel, half = rng.random((HEIGHT, WIDTH)) < 0.2, np.zeros((HEIGHT, WIDTH), bool), ~ring(0)
    pixel[rng.integers(HEIGHT), rng.integers(WIDTH)] = True
    half[:, : WIDTH // 2] = False
    some = [ring(seed % 4), dust, pixel, ~pixel | pixel, pixel & ~pixel, None, half]
    return [some[k] for k in rng.permutation(len(some))[: rng.integers(len(some) + 1)]]


def rows_of(image: Row) -> dict[str, list[Row]]:
    image_id = image["image_id"]
    image["digest"] = hashlib.sha256(Path(image["uri"]).read_bytes()).hexdigest() if Path(image["uri"]).exists() else ""
    if image_id == FAILED:
        return {"annotations": []}
    found = [] if image["key"] == "empty.png" else masks(image_id)
    rng = np.random.default_rng(image_id + 100)
    scores = -np.sort(-rng.random(len(found), np.float32))
    image["num_annotations"] = len(found)
    image["labels"] = [{"category_id": 3, "category": UNRULY[3].name, "score": 0.625}] if image_id % 2 else []
    return {
        "annotations": [_annotation(image_id, rank, found[rank], float(scores[rank])) for rank in range(len(found))]
    }


def no_objects(image: Row) -> dict[str, list[Row]]:
    image["num_annotations"] = 0
    return {"annotations": []}


def _annotation(image_id: int, rank: int, mask: np.ndarray | None, score: float) -> Row:
    rng = np.random.default_rng(ROWS_PER_IMAGE * image_id + rank)
    category = list(UNRULY)[(image_id + rank) % 3]
    start, end = np.sort(rng.random((2, 2)), axis=0) * (WIDTH, HEIGHT)
    sides = np.float32([*start, *(end - start)])
    points = [3.25, 4.5, 2, 5.5, 6.75, 1, 0, 0, 0] if category.keypoints and rank % 2 else None
    runs = None if mask is None else rle.encode(mask)
    return {
        "annotation_id": image_id * ROWS_PER_IMAGE + rank,
        "image_id": image_id,
        "category_id": category.id,
        "category": category.name,
        "score": score,
        "bbox": box(*sides),
        "area": float(sides[2]) * float(sides[3]) if runs is None else rle.area(runs),
        "segmentation": None if runs is None else runs.to_coco(),
        "keypoints": points,
        "iscrowd": False,
        "model": MODEL,
    }


def write_unruly(folder: Path, **changes: Any) -> LabelDataset:
    """The job, in `folder/labels`; `changes` are what else `write_labels` takes."""
    write_files(f"{folder}/images", {key: picture(number) for number, key in enumerate(KEYS)})
    options: dict[str, Any] = {"rows": rows_of, "tasks": TASKS, "categories": UNRULY} | changes
    return write_labels(f"{folder}/images", f"{folder}/labels", **options)


def objects_by_image(labels: LabelDataset) -> dict[int, list[Row]]:
    """Of the images that could be read, with their masks decoded: bool (HEIGHT, WIDTH), None where there is none."""
    rows = labels.table("annotations").to_table().to_pylist()
    images = labels.table("images").to_table().to_pylist()
    found: dict[int, list[Row]] = {row["image_id"]: [] for row in images if row["status"] == "ok"}
    for row in rows:
        mask = row["segmentation"]
        found[row["image_id"]].append(row | {"mask": None if mask is None else labels.mask(mask)})
    return found
