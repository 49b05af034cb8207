"""COCO documents, read back by pycocotools."""

import io
import json
from itertools import pairwise

import numpy as np
import orjson
import pyarrow as pa
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.coco import Counts, write_instances, write_results
from prelabel.schemas.tables import ANNOTATIONS, IMAGES, ROWS_PER_IMAGE

CATEGORIES = CategorySet([Category(1, "cat", "animal"), Category(17, "dog")])
HEIGHT, WIDTH = 40, 60


def ring():
    """A mask with a hole, and a part of its own beside it."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[5:25, 10:40] = 1
    mask[10:20, 15:30] = 0
    mask[30:35, 50:55] = 1
    return mask


def image(image_id, key, status="ok"):
    size = {"width": WIDTH, "height": HEIGHT} if status == "ok" else {}
    place = {"image_id": image_id, "key": key, "uri": key, "shard": "s", "unit": 0}
    return {**place, **size, "status": status, "num_annotations": 0}


def annotation(image_id, rank, mask=None, score=0.1, bbox=(1.5, 2.25, 10.1, 3.3)):
    segmentation = None
    if mask is not None:
        segmentation = {"size": mask.shape, "counts": mask_api.encode(mask)["counts"].decode()}
    return {
        "annotation_id": image_id * ROWS_PER_IMAGE + rank,
        "image_id": image_id,
        "category_id": 17,
        "category": "dog",
        "score": score,
        "bbox": dict(zip(("x", "y", "width", "height"), bbox, strict=True)),
        "area": float(mask.sum()) if mask is not None else 33.33,
        "segmentation": segmentation,
        "iscrowd": False,
        "model": "m",
    }


def batches(rows, schema, rows_each=2):
    return pa.Table.from_pylist(rows, schema=schema).to_batches(rows_each)


@pytest.fixture
def documents(tmp_path):
    """An instances document and a results document of the same five objects, as files."""
    images = [image(0, "a/é.jpg"), image(1, "broken.jpg", "failed"), image(2, 'b"\n.jpg')]
    annotations = [
        annotation(0, 0, ring()),
        annotation(0, 1),
        annotation(0, 2),
        annotation(2, 0),
        annotation(2, 1, ring()),
    ]
    truth, results = tmp_path / "instances.json", tmp_path / "results.json"
    with truth.open("wb") as out:
        found = batches(annotations, ANNOTATIONS)
        assert write_instances(out, batches(images, IMAGES), found, CATEGORIES, {"year": 2026}) == Counts(2, 5)
    with results.open("wb") as out:
        assert write_results(out, batches(annotations, ANNOTATIONS)) == 5
    return truth, results


def test_pycocotools_reads_an_instances_document(documents):
    coco = COCO(documents[0])
    assert coco.dataset["info"] == {"year": 2026}
    assert coco.dataset["images"] == [
        {"id": 0, "file_name": "a/é.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": 'b"\n.jpg', "width": WIDTH, "height": HEIGHT},
    ]
    assert CategorySet.from_json(json.dumps(coco.dataset["categories"])) == CATEGORIES
    assert coco.getAnnIds(imgIds=[2]) == [131072, 131073]
    assert coco.loadAnns([1]) == [
        {
            "id": 1,
            "image_id": 0,
            "category_id": 17,
            "bbox": [1.5, 2.25, 10.1, 3.3],
            "segmentation": [],
            "area": 33.33,
            "iscrowd": 0,
            "score": 0.1,
        }
    ]


def test_a_mask_with_a_hole_is_whole_and_no_crowd(documents):
    coco = COCO(documents[0])
    for annotation_id in (0, 131073):
        (found,) = coco.loadAnns([annotation_id])
        assert found["iscrowd"] == 0
        assert found["area"] == ring().sum()
        assert (coco.annToMask(found) == ring()).all()


def test_pycocotools_reads_results(documents):
    truth, results = documents
    found = COCO(truth).loadRes(str(results)).dataset["annotations"]
    assert [(entry["image_id"], entry["score"]) for entry in found] == [(0, 0.1)] * 3 + [(2, 0.1)] * 2
    masked = ["segmentation" in entry for entry in json.loads(results.read_bytes())]
    assert masked == [True, False, False, False, True]
    assert (mask_api.decode(found[4]["segmentation"]) == ring()).all()


def test_numbers_are_short_and_read_back_exactly():
    boxes = np.random.default_rng(0).uniform(0, 5000, (500, 4)).astype(np.float32)
    out = io.BytesIO()
    write_results(out, batches([annotation(0, k, bbox=box.tolist()) for k, box in enumerate(boxes)], ANNOTATIONS, 100))
    assert (np.array([entry["bbox"] for entry in json.loads(out.getvalue())], np.float32) == boxes).all()
    assert b"00000" not in out.getvalue()


def test_empty_documents():
    for no_rows in ([], [pa.RecordBatch.from_pylist([], schema=ANNOTATIONS)]):
        out = io.BytesIO()
        assert write_instances(out, [], no_rows, CATEGORIES, {}) == Counts(0, 0)
        document = json.loads(out.getvalue())
        assert (document["images"], document["annotations"]) == ([], [])
        out = io.BytesIO()
        assert write_results(out, no_rows) == 0
        assert json.loads(out.getvalue()) == []


class Sink(io.RawIOBase):
    """Keeps nothing but the sizes of what was written."""

    def __init__(self):
        self.sizes = []

    def write(self, data):
        self.sizes.append(len(data))
        return len(data)


def test_a_batch_is_written_before_the_next_is_asked_for():
    (batch,) = batches([annotation(0, k) for k in range(100)], ANNOTATIONS, 100)
    sink, written = Sink(), []

    def many():
        for _ in range(10):
            written.append(sum(sink.sizes))
            yield batch

    assert write_results(sink, many()) == 1000
    assert all(after - before > 5000 for before, after in pairwise(written))


def test_a_large_batch_is_written_in_pieces():
    batch = batches([annotation(0, k) for k in range(1000)], ANNOTATIONS, 1000)[0]
    large = pa.Table.from_batches([batch] * 100).combine_chunks().to_batches()[0]
    sink = Sink()
    assert write_results(sink, [large]) == 100_000
    assert max(sink.sizes) < sum(sink.sizes) / 4


ODD = [  # what Arrow would write otherwise, or is not there
    {},
    {"score": 1e-12},
    {"bbox": dict.fromkeys(("x", "y", "width", "height"), 2e11)},
    {"area": 1e-6},
    {"area": float("nan")},
    {"segmentation": None},
    {"segmentation": {"size": [3, 4], "counts": 'a"\\\x01é'}},
    {"segmentation": {"size": None, "counts": "12"}},
    {"keypoints": [1.5, 2.0, 2.0]},
]


@pytest.mark.parametrize("odd", ODD)
def test_documents_are_what_orjson_makes_of_each_object(odd):
    rows = [annotation(image_id, 0, ring() if image_id % 2 else None, image_id / 7) for image_id in range(40)]
    rows[20] |= odd
    table = pa.Table.from_pylist(rows, schema=ANNOTATIONS)
    instances, results = io.BytesIO(), io.BytesIO()
    write_instances(instances, [], [table.to_batches()[0].slice(1)], CATEGORIES, {})
    write_results(results, [table.to_batches()[0].slice(1)])
    expected = list(map(as_objects, table.to_pylist()[1:]))
    assert instances.getvalue().split(b'"annotations":[\n')[1] == dumps([one for one, _ in expected]) + b"]}\n"
    assert results.getvalue() == b"[\n" + dumps([one for _, one in expected]) + b"]\n"


def as_objects(row):
    """A row as an annotation and as a result."""
    box = [np.float32(row["bbox"][side]) for side in ("x", "y", "width", "height")]
    mask, score = row["segmentation"], np.float32(row["score"])
    if mask:
        mask = {"size": mask["size"] or [0, 0], "counts": mask["counts"]}
    instance = {name.removeprefix("annotation_"): row[name] for name in ("annotation_id", "image_id", "category_id")}
    instance |= {"bbox": box, "segmentation": mask or [], "area": row["area"], "iscrowd": 0, "score": score}
    result = {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": box, "score": score}
    result |= {"segmentation": mask} if mask else {}
    return instance, result | ({"keypoints": points_of(row["keypoints"])} if row["keypoints"] else {})


def points_of(numbers):
    return [int(number) if place % 3 == 2 else np.float32(number) for place, number in enumerate(numbers)]


def dumps(objects):
    return orjson.dumps(objects, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
