"""The panoptic merge against a plain one on dense label maps, and what must hold for any merge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from prelabel.operators.base import Answer, ImageInfo, Instances, Prediction, Segments
from prelabel.operators.masks import MaskRuns
from prelabel.operators.options import Options
from prelabel.operators.panoptic import FusePanoptic
from prelabel.operators.rows import annotation_rows
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet, unite
from prelabel.schemas.tables import SEGMENTS

THINGS = CategorySet([Category(1, "cat"), Category(2, "dog")])
SURFACES = CategorySet(
    [Category(0, "dog"), Category(1, "sky", isthing=False), Category(2, "sea", isthing=False), Category(3, "cat")]
)
UNITED, (_, SURFACE_IDS) = unite([THINGS, SURFACES])
LOOSE = Options(panoptic_stuff_area=0)


def runs_of(mask: np.ndarray) -> MaskRuns:
    runs = rle.encode(mask)
    return MaskRuns(runs, rle.area(runs), rle.bbox(runs))


def instances_of(masks: np.ndarray, scores: np.ndarray, category_ids: np.ndarray) -> Prediction:
    """Of masks bool (N, H, W), in any order."""
    order = np.argsort(-scores, kind="stable")
    boxes = np.zeros((len(order), 4), np.float32)
    found = Instances(boxes, scores[order], category_ids[order], [runs_of(mask) for mask in masks[order]])
    return Prediction(instances=found)


def semantic_of(labels: np.ndarray) -> Prediction:
    """Of a label map int (H, W)."""
    ids = np.unique(labels)
    return Prediction(semantic=Segments(ids.astype(np.int32), [runs_of(labels == one) for one in ids]))


def fuse(size: tuple[int, int], *answers: Answer, options: Options = LOOSE, image_id: int = 3) -> pa.Table:
    table = FusePanoptic(UNITED, options).rows(ImageInfo(image_id, *size), answers)
    table.validate(full=True)
    assert table.schema == SEGMENTS
    return table


def layer_of(table: pa.Table, size: tuple[int, int]) -> np.ndarray:
    """The segment_id of each pixel, 0 for void; fails where two segments overlap, or say anything wrong of a mask."""
    layer = np.zeros(size, np.int64)
    assert table["segment_id"].to_pylist() == list(range(1, len(table) + 1))
    for row in table.to_pylist():
        mask = rle.decode(rle.Rle.from_coco(row["segmentation"]))
        assert mask.shape == size
        assert not layer[mask].any()
        ys, xs = np.nonzero(mask)
        assert row["area"] == len(ys) > 0
        assert list(row["bbox"].values()) == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert (row["category"], row["isthing"]) == (
            UNITED[row["category_id"]].name,
            UNITED[row["category_id"]].isthing,
        )
        assert row["kind"] == "panoptic"
        layer[mask] = row["segment_id"]
    return layer


@dataclass
class Case:
    """What two detectors and a semantic network, each with its own categories, might say of an image."""

    masks: list[np.ndarray]
    scores: list[np.ndarray]
    category_ids: list[np.ndarray]
    labels: np.ndarray
    options: Options


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    masks, scores, category_ids = [], [], []
    for _ in range(2):
        count = rng.integers(0, 8)
        y, x = np.mgrid[:height, :width]
        cy, cx = rng.integers(0, height, count)[:, None, None], rng.integers(0, width, count)[:, None, None]
        ry, rx = (
            rng.integers(-1, 1 + height // 3, count)[:, None, None],
            rng.integers(1, 2 + width // 3, count)[:, None, None],
        )
        noise = rng.random((count, height, width)) < rng.choice([0.7, 1])
        masks.append((abs(y - cy) <= ry) & (abs(x - cx) < rx) & noise)
        scores.append(rng.choice(np.linspace(0.1, 1, 10), count).astype(np.float32))
        category_ids.append(rng.choice(THINGS.ids, count).astype(np.int32))
    blocks = rng.choice(SURFACES.ids, (1 + height // 8, 1 + width // 8))
    labels = np.kron(blocks, np.ones((8, 8), int))[:height, :width]
    options = Options(
        panoptic_score=rng.choice([None, 0.0, 0.3, 0.7]),
        panoptic_overlap=rng.choice([None, 0.0, 0.25, 0.8, 1.0]),
        panoptic_stuff_area=int(rng.choice([0, 1, 20, 4096])),
    )
    return Case(masks, scores, category_ids, labels, options)


def detections(case: Case) -> list[Answer]:
    found = map(instances_of, case.masks, case.scores, case.category_ids)
    return [Answer(f"detector {k}", prediction) for k, prediction in enumerate(found)]


def merged(case: Case) -> tuple[np.ndarray, list[tuple[object, ...]]]:
    """The merge on dense arrays: the layer, and (name, score, annotation_id, model) of each segment."""
    least_score = 0.5 if case.options.panoptic_score is None else case.options.panoptic_score
    overlap = 0.5 if case.options.panoptic_overlap is None else case.options.panoptic_overlap
    layer, segments = np.zeros(case.labels.shape, int), []
    found = []
    for model in range(2):
        for mask, score, one in zip(case.masks[model], case.scores[model], case.category_ids[model], strict=True):
            found.append((-score, THINGS[one].name, mask, model))
    found.sort(key=lambda instance: instance[0])  # which keeps the order of ties
    for rank, (minus, name, mask, model) in enumerate(found):
        visible = mask & (layer == 0)
        if -minus < np.float32(least_score) or not visible.any() or visible.sum() / mask.sum() < overlap:
            continue
        segments.append((name, -minus, 3 * 65536 + rank, f"detector {model}"))
        layer[visible] = len(segments)
    for one in SURFACES:
        left = (case.labels == one.id) & (layer == 0)
        if not one.isthing and left.any() and left.sum() >= case.options.panoptic_stuff_area:
            segments.append((one.name, None, None, "surfaces"))
            layer[left] = len(segments)
    return layer, segments


def test_the_merge_is_the_plain_one() -> None:
    lengths = set()
    for seed in range(200):
        case = random_case(seed)
        first, second = detections(case)
        surfaces = Answer("surfaces", semantic_of(case.labels).renumbered(SURFACE_IDS))
        table = fuse(case.labels.shape, first, surfaces, second, options=case.options)
        layer, segments = merged(case)
        columns = [table[name].to_pylist() for name in ("category", "score", "annotation_id", "model")]
        assert list(zip(*columns, strict=True)) == segments, seed
        np.testing.assert_array_equal(layer_of(table, case.labels.shape), layer, f"seed {seed}")
        lengths.add(len(table))
    assert {0, 1, 2, 8} <= lengths


def test_things_name_their_annotation() -> None:
    named = set()
    for seed in range(10):
        case = random_case(seed)
        image, answers = ImageInfo(3, *case.labels.shape), detections(case)
        annotations = {row["annotation_id"]: row for row in annotation_rows(image, answers, UNITED).to_pylist()}
        for thing in fuse(case.labels.shape, *answers).to_pylist():
            annotation = annotations[thing["annotation_id"]]
            for name in ("image_id", "category_id", "score", "model"):
                assert thing[name] == annotation[name]
            assert thing["area"] <= annotation["area"]
            named.add((thing["annotation_id"] % 65536, thing["model"]))
    assert {(0, "detector 0"), (0, "detector 1"), (3, "detector 0"), (3, "detector 1")} <= named


def test_what_equals_a_threshold_is_kept() -> None:
    masks = np.zeros((2, 8, 10), bool)
    masks[0, :, :5], masks[1, :, 2:8] = True, True  # half of the second one is left
    found = instances_of(masks, np.array([0.9, 0.7], np.float32), np.array([1, 2], np.int32))
    labels = semantic_of(np.ones((8, 10), int)).renumbered(SURFACE_IDS)  # 16 pixels of sky are left
    answers = Answer("detector", found), Answer("surfaces", labels)

    def names(**options: float) -> list[str]:
        return fuse((8, 10), *answers, options=Options(**{"panoptic_stuff_area": 16} | options))["category"].to_pylist()

    assert names(panoptic_score=0.7, panoptic_overlap=0.5) == ["cat", "dog", "sky"]
    assert names(panoptic_stuff_area=17) == ["cat", "dog"]
    assert names(panoptic_overlap=0.51) == names(panoptic_score=0.71) == ["cat", "sky"]


def test_segments_of_an_end_to_end_model_are_written_as_they_are() -> None:
    left, right = np.zeros((6, 4), bool), np.zeros((6, 4), bool)
    left[1:4, :2], right[:, 3] = True, True
    scores = np.array([0.25, 0.75], np.float32)
    segments = Segments(np.array([2, 1], np.int32), [runs_of(left), runs_of(right)], scores)
    whole = instances_of(np.ones((1, 6, 4), bool), np.ones(1, np.float32), np.array([1], np.int32))
    table = fuse((6, 4), Answer("detector", whole), Answer("maskformer", Prediction(panoptic=segments)))
    np.testing.assert_array_equal(layer_of(table, (6, 4)), left + 2 * right)
    expected = {"category_id": [2, 1], "score": [0.25, 0.75], "annotation_id": [None] * 2, "model": ["maskformer"] * 2}
    assert {name: table[name].to_pylist() for name in expected} == expected


@pytest.mark.parametrize("size", [(1, 1), (200, 20_000)])
def test_sizes_at_the_ends(size: tuple[int, int]) -> None:
    found = instances_of(np.ones((1, *size), bool), np.array([0.8], np.float32), np.array([1], np.int32))
    sky = semantic_of(np.ones(size, int)).renumbered(SURFACE_IDS)
    none = instances_of(np.zeros((0, *size), bool), np.zeros(0, np.float32), np.zeros(0, np.int32))
    only = {"cat": [found, sky], "sky": [none, sky]}
    for name, predictions in only.items():
        table = fuse(size, *(Answer("model", one) for one in predictions))
        assert table["category"].to_pylist() == [name]
        assert (layer_of(table, size) == 1).all()


def test_parts_that_are_missing_leave_void() -> None:
    boxes = Instances(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones(1, np.int32))
    assert len(fuse((5, 5))) == 0
    assert len(fuse((5, 5), Answer("detector of boxes", Prediction(instances=boxes)))) == 0
    nothing = Segments(np.zeros(0, np.int32), [])
    assert len(fuse((5, 5), Answer("one", Prediction(semantic=nothing)))) == 0
    assert len(fuse((5, 5), Answer("one", Prediction(panoptic=nothing)))) == 0
