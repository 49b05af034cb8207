"""A job with images of every kind that the review page meets, and a client that asks its server."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from jobs import CATEGORIES, FAILED, HEIGHT, WIDTH, annotation_row, ring
from labels import Row, keypoints_of, segment_row, write_labels
from PIL import Image
from shards import write_files
from starlette.testclient import TestClient

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.review import Review
from prelabel.pipeline.review.app import app_of

IMAGES = 12
TURNED, TIFF, GONE, CHANGED = 1, 2, 7, 8
"""image_ids of those that are not like the others; FAILED is 4."""
OF_THE_PAGE = {"X-Prelabel": "1"}


def pixels(image_id: int) -> np.ndarray:
    return np.random.default_rng(image_id).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encoded(image_id: int) -> tuple[str, bytes]:
    """The key, and the file: of chance, but red above and blue below where the pixels lie on their side."""
    file, image = io.BytesIO(), Image.fromarray(pixels(image_id))
    if image_id == TURNED:
        image = Image.new("RGB", (WIDTH, HEIGHT), "red")
        image.paste("blue", (0, HEIGHT // 2, WIDTH, HEIGHT))
        exif = Image.Exif()
        exif[274] = 6  # to be shown turned to the right
        image.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=exif)
        return f"{image_id:02d} turned.jpg", file.getvalue()
    if image_id == TIFF:
        image.save(file, "TIFF")
        return f"{image_id:02d} <b>&amp;'\"%2e.tif", file.getvalue()
    image.save(file, "PNG")
    return f"{image_id:02d}.png", file.getvalue()


def rows(image: Row) -> dict[str, list[Row]]:
    """Up to four objects with scores of chance; in some images a segment, too."""
    image_id, rng = image["image_id"], np.random.default_rng(image["image_id"])
    kinds = {TURNED: {"orientation": 6, "format": "jpeg"}, TIFF: {"format": "tiff"}}
    digest = hashlib.sha256(encoded(image_id)[1]).hexdigest()
    image |= {"digest": digest} | kinds.get(image_id, {}) | ({"width": WIDTH + image_id} if image_id > 9 else {})
    if image_id == FAILED:
        return {"annotations": [], "segments": [], "proposals": []}
    scores = np.sort(rng.random(image_id % 5).astype(np.float32))[::-1]
    image["num_annotations"] = len(scores)
    objects = [
        annotation_row(image_id, rank) | {"score": float(score), "keypoints": keypoints_of(rank)}
        for rank, score in enumerate(scores)
    ]
    for one in objects:
        category = list(CATEGORIES)[int(rng.integers(2))]
        one |= {"category_id": category.id, "category": category.name}
    segments = [segment_row(image_id, 1, CATEGORIES[5], ring(0)) | {"score": 0.5}] if image_id % 3 == 0 else []
    boxes = [{"proposal_id": image_id * 65_536 + k, "image_id": image_id, "score": 1 - k / 200} for k in range(150)]
    proposals = [box | {"bbox": annotation_row(0, 0)["bbox"], "model": "m"} for box in boxes]
    return {"annotations": objects, "segments": segments, "proposals": proposals}


def write_job(folder: Path, units: int | None = None) -> LabelDataset:
    source = folder / "images"
    write_files(str(source), dict(map(encoded, range(IMAGES))))
    dataset = write_labels(str(source), str(folder / "labels"), rows, ("detect",), units=units)
    (source / encoded(GONE)[0]).unlink()
    (source / encoded(CHANGED)[0]).write_bytes(encoded(0)[1])
    return dataset


def built(review: Review) -> Review:
    review.index.build()
    return review


def client_of(review: Review, token: str | None = None) -> TestClient:
    return TestClient(app_of(review, token), base_url="http://localhost", headers=OF_THE_PAGE, follow_redirects=False)


def say(client: TestClient, *reviews: Row) -> Any:
    blank = {"annotation_id": None, "verdict": None, "note": None}
    return client.post("/api/verdicts", json={"reviews": [blank | review for review in reviews]})
