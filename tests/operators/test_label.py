"""A unit's tables depend on its images alone: not on batches, threads, or what the memory holds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prelabel.operators.base import Instances, Model, Prediction, Task
from prelabel.operators.detect import Detect
from prelabel.operators.images import DecodedImage, decode
from prelabel.operators.label import Advance, Asked, Labeler, make_tables
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.tables import ANNOTATIONS, IMAGES

UNIT = pa.schema(
    [
        ("image_id", pa.int64()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.large_binary()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("shard", pa.string()),
        ("unit", pa.int32()),
    ]
)


class Counting(Model):
    """Finds as many objects as the first pixel's red says; remembers its batches, and may be short of memory."""

    name = "fake:counting"
    tasks = frozenset({Task.DETECT})
    categories = CategorySet([Category(1, "dot"), Category(2, "dash")])

    def __init__(self, memory: int = 2**60) -> None:
        self.memory = memory
        self.batches: list[list[tuple[int, int]]] = []

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 4) * 4, -(-width // 4) * 4

    def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
        assert tasks == self.tasks
        assert len({self.input_size(*image.shape[1:]) for image in images}) == 1
        if sum(image[0].numel() for image in images) > self.memory:
            if len(images) % 2:  # as a processor's allocator says it
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory")
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append([tuple(image.shape[1:]) for image in images])
        return [self._find(image) for image in images]

    def _find(self, image: torch.Tensor) -> Prediction:
        count = int(image[0, 0, 0])
        corners = np.arange(count, dtype=np.float32)
        boxes = np.stack([corners, corners, corners + 2, corners + image.shape[1]], 1)
        scores = np.linspace(1, 0.5, count, dtype=np.float32)
        return Prediction(Instances(boxes, scores, np.arange(count, dtype=np.int32) % 2 + 1))


def png(height: int, width: int, red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def unit_of(images: Sequence[bytes | None], first: int = 10) -> pa.Table:
    """None is an image that could not be read."""
    rows = [
        {
            "image_id": first + k,
            "key": f"{k}.png",
            "uri": f"/images/{k}.png",
            "bytes": data,
            "error_code": "missing" if data is None else None,
            "error": "it is not there" if data is None else None,
            "shard": "/images",
            "unit": 3,
        }
        for k, data in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, schema=UNIT)


def label(images: Sequence[bytes | None], model: Model | None = None, **options: Any) -> dict[str, pa.Table]:
    given = {"batch_size": 4, "threads": 2, "max_pixels": 10_000} | options
    model, unit = model or Counting(), unit_of(images)
    labeler = Labeler([Asked(model, frozenset({Task.DETECT}), {1: 1, 2: 2})], **given)
    return make_tables(unit, labeler.look(unit), [Detect(model.categories)])


def ids(table: pa.Table) -> list[int]:
    return table["image_id"].to_pylist()


def test_rows_are_in_the_units_order_whatever_the_batches() -> None:
    images = [png(4 + 4 * (k % 3), 8, k) for k in range(9)]
    tables = label(images, batch_size=3)
    assert tables["images"].schema == IMAGES
    assert tables["annotations"].schema == ANNOTATIONS
    assert ids(tables["images"]) == list(range(10, 19))
    assert ids(tables["annotations"]) == [10 + k for k in range(9) for _ in range(k)]
    assert tables["images"]["num_annotations"].to_pylist() == list(range(9))
    assert tables["annotations"]["annotation_id"].to_pylist() == [
        (10 + k) * 65536 + rank for k in range(9) for rank in range(k)
    ]


def test_row_of_an_image_says_what_it_is() -> None:
    image = png(5, 7, 2)
    (row,) = label([image])["images"].to_pylist()
    assert row == {
        "image_id": 10,
        "key": "0.png",
        "uri": "/images/0.png",
        "shard": "/images",
        "unit": 3,
        "width": 7,
        "height": 5,
        "orientation": 1,
        "format": "png",
        "num_bytes": len(image),
        "digest": hashlib.sha256(image).hexdigest(),
        "status": "ok",
        "error_code": None,
        "error": None,
        "num_annotations": 2,
        "labels": None,
    }


def test_only_images_of_one_input_size_share_a_batch_which_is_never_too_large() -> None:
    model = Counting()
    label([png(*size, 1) for size in [(4, 4), (8, 4), (3, 4), (8, 3), (4, 1), (8, 4), (4, 4), (99, 1)]], model)
    assert sorted(map(sorted, model.batches)) == [[(3, 4), (4, 1), (4, 4), (4, 4)], [(8, 3), (8, 4), (8, 4)], [(99, 1)]]
    model = Counting()
    label([png(4, 4, 1)] * 10, model, batch_size=4)
    assert [len(batch) for batch in model.batches] == [4, 4, 2]
    model = Counting()
    label([png(*size, 1) for size in [(4, 4)] * 6 + [(8, 4)] * 3], model, batch_size=4, batch_pixels=40)
    assert sorted(map(len, model.batches)) == [1, 1, 1, 2, 2, 2]


def test_batch_that_does_not_fit_into_memory_is_halved() -> None:
    images = [png(4, 4, k) for k in range(7)]
    model = Counting(memory=2 * 16)
    assert label(images, model, batch_size=7) == label(images)
    assert max(map(len, model.batches)) <= 2


def test_image_that_does_not_fit_alone_costs_no_other() -> None:
    images = [png(4, 4, 1), png(4, 3, 2), png(4, 4, 3)]
    tables = label(images, Counting(memory=12))
    rows = tables["images"].to_pylist()
    assert [row["error_code"] for row in rows] == ["too_large", None, "too_large"]
    assert [row["status"] for row in rows] == ["failed", "ok", "failed"]
    assert [row["num_annotations"] for row in rows] == [0, 2, 0]
    assert rows[0]["width"] == 4
    assert ids(tables["annotations"]) == [11, 11]


def test_failed_images_are_rows_and_leave_their_neighbours_alone() -> None:
    whole = png(40, 40, 1)
    images = [whole, b"", b"<html>", None, whole[: len(whole) // 2], png(101, 101, 1), whole]
    tables = label(images)
    rows = tables["images"].to_pylist()
    codes = [None, "empty", "not_an_image", "missing", "truncated", "too_large", None]
    assert [row["error_code"] for row in rows] == codes
    assert [row["status"] for row in rows] == ["failed" if code else "ok" for code in codes]
    assert [row["error"] is None for row in rows] == [code is None for code in codes]
    assert [row["num_bytes"] for row in rows] == [None if data is None else len(data) for data in images]
    assert rows[3]["error"] == "it is not there"
    assert ids(tables["annotations"]) == [10, 16]


def test_unit_of_failures_and_unit_of_nothing_have_whole_tables() -> None:
    for images in ([None, b""], []):
        tables = label(images)
        assert tables["images"].num_rows == len(images)
        assert tables["images"].schema == IMAGES
        assert tables["annotations"] == ANNOTATIONS.empty_table()


def test_error_in_the_model_is_not_made_a_row() -> None:
    class Broken(Counting):
        def _find(self, image: torch.Tensor) -> Prediction:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        label([png(4, 4, 1)], Broken())


def test_progress_counts_each_image_and_each_failure_once() -> None:
    told: list[Advance] = []
    tables = label([png(4 + k, 4, 1) for k in range(9)] + [None, b""], Counting(memory=16), progress=told.append)
    assert sum(advance.images for advance in told) == 11
    assert sum(advance.failed for advance in told) == 11 - tables["images"]["error_code"].null_count == 10
    assert all(set(advance.seconds) <= {"fake:counting"} for advance in told)


def test_seconds_are_those_of_the_model_and_of_the_threads_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Counting):
        def predict(self, images: Sequence[torch.Tensor], tasks: frozenset[Task]) -> list[Prediction]:
            clock[0] += 10
            return super().predict(images, tasks)

    def slowly(data: bytes, max_pixels: int) -> DecodedImage:
        clock[0] += 1
        return decode(data, max_pixels)

    def seconds(model: Model) -> dict[str, float]:
        labeler = Labeler([Asked(model, model.tasks, {})], batch_size=2, max_pixels=10_000, threads=1)
        return labeler.look(unit_of([png(4, 4, 1)] * 5)).seconds

    monkeypatch.setattr("prelabel.operators.label.perf_counter", lambda: clock[0])
    assert seconds(Slow())["predict fake:counting"] == 30
    monkeypatch.setattr("prelabel.operators.label.decode", slowly)
    assert seconds(Counting())["decode"] == 5


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.none() | st.just(b"") | st.builds(png, st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(40, 400),
)
def test_tables_depend_on_images_alone(images: list[bytes | None], batch_size: int, threads: int, memory: int) -> None:
    tables = label(images, Counting(memory=max(81, memory)), batch_size=batch_size, threads=threads)
    alone = [label([image], batch_size=1, threads=1) for image in images]
    for name in ("images", "annotations"):
        expected = [row | _moved(row, k, name) for k, one in enumerate(alone) for row in one[name].to_pylist()]
        assert tables[name].to_pylist() == expected


def _moved(row: dict[str, Any], k: int, name: str) -> dict[str, Any]:
    """The row of an image that was alone in its unit, in the k-th place."""
    if name == "images":
        return {"image_id": row["image_id"] + k, "key": f"{k}.png", "uri": f"/images/{k}.png"}
    return {"image_id": row["image_id"] + k, "annotation_id": row["annotation_id"] + k * 65536}
