"""Every figure of objects against pycocotools: on real truths with made-up results, and on awkward scenes."""

from __future__ import annotations

import copy
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from jobs import MODEL, write_images
from labels import Row, box, write_labels
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate import Evaluation, evaluate
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.rle import Rle

TASKS = ["detect", "segment_instances", "detect_keypoints", "propose"]
AREAS = ("", "_small", "_medium", "_large")
HEIGHT, WIDTH = 160, 200
Document = dict[str, Any]


class Case(NamedTuple):
    labels: LabelDataset
    truth: Path
    document: Document


def awkward_objects(document: Document, rng: np.random.Generator) -> None:
    """Makes some of a truth's objects crowds, and gives some an area that does not count."""
    for annotation in document["annotations"]:
        annotation["iscrowd"] = int(rng.random() < 0.05)
        if rng.random() < 0.03:
            annotation["area"] = -1


def results_of(annotations: list[Document], ids: list[int], rng: np.random.Generator) -> Iterator[Document]:
    """Each object found again, up to twice or not at all: moved, sometimes far or as something else, scores equal."""
    for annotation in annotations:
        for _ in range(rng.choice(3, p=[0.15, 0.65, 0.2])):
            far = rng.random() < 0.15
            dx, dy = rng.integers(-40, 41, 2) if far else rng.integers(-3, 4, 2)
            category_id = annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(ids))
            found = {"category_id": category_id, "score": round(float(rng.beta(2, 2 + 3 * far)), 2)}
            x, y, width, height = annotation["bbox"]
            found["bbox"] = box(x + dx, y + dy, width * rng.uniform(0.8, 1.2), height * rng.uniform(0.8, 1.2))
            if "segmentation" in annotation:
                mask = Rle.from_coco(annotation["segmentation"])
                found["segmentation"] = rle.place(mask, mask.size, int(dy), int(dx)).to_coco()
            if "keypoints" in annotation:
                points = np.array(annotation["keypoints"], float).reshape(17, 3)
                points[:, :2] += rng.normal(0, 2, (17, 2)) + np.array([dx, dy])
                found["keypoints"] = points.ravel().tolist()
            yield found


def write_case(folder: Path, images: str, document: Document, tasks: list[str], seed: int) -> Case:
    """A job over the images with results made from the truth."""
    rng = np.random.default_rng(seed)
    categories = CategorySet([Category(one["id"], one["name"]) for one in document["categories"]])
    names = {one["id"]: one["file_name"] for one in document["images"]}
    by_name = defaultdict(list)
    for annotation in document["annotations"]:
        by_name[names[annotation["image_id"]]].append(annotation)

    def rows(image: Row) -> dict[str, list[Row]]:
        found = sorted(results_of(by_name[image["key"]], categories.ids, rng), key=lambda one: -one["score"])
        common = {"image_id": image["image_id"], "model": MODEL}
        of_objects = common | {"category": "", "area": 1, "iscrowd": False}
        number = count(65_536 * image["image_id"])
        tables = {"annotations": [{"annotation_id": next(number)} | of_objects | one for one in found]}
        if "propose" in tasks:
            number = count(65_536 * image["image_id"])
            regions = [common | {name: one[name] for name in ("bbox", "score")} for one in found * 3]
            tables["proposals"] = [{"proposal_id": next(number)} | one for one in regions]
        return tables

    labels = write_labels(images, f"{folder}/labels", rows, tasks, categories)
    awkward_objects(document, rng)
    (folder / "truth.json").write_text(json.dumps(document))
    return Case(labels, folder / "truth.json", document)


def generated(rng: np.random.Generator) -> Document:
    """Ellipses of all sizes with keypoints: many in the first image, none in the second; none of category 9."""
    annotations = []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for image_id, many in enumerate([130, 0, 12, 12, 12, 12], start=1):
        for _ in range(many):
            radius = rng.uniform(3, 70, 2)
            x, y = rng.uniform(20, WIDTH - 20), rng.uniform(20, HEIGHT - 20)
            mask = rle.encode(((columns - x) / radius[0]) ** 2 + ((rows - y) / radius[1]) ** 2 < 1)
            points = np.concatenate(
                [rng.uniform(-5, 5, (17, 2)) + np.array([x, y]), rng.integers(0, 3, (17, 1))], axis=1
            )
            points[:, 2] *= rng.random() < 0.9
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 2 if image_id == 1 else int(rng.choice([2, 5])),
                    "bbox": list(map(float, rle.bbox(mask))),
                    "area": rle.area(mask),
                    "segmentation": mask.to_coco(),
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
    images = [{"id": k, "file_name": f"image-{k - 1}.png", "height": HEIGHT, "width": WIDTH} for k in range(1, 7)]
    names = {2: "ball", 5: "leaf", 9: "stone"}
    categories = [{"id": one, "name": name} for one, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module", params=["generated", "nuclei", "blood_cells"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    if request.param == "generated":
        document = generated(np.random.default_rng(5))
        return write_case(folder, write_images(f"{folder}/images", 6), document, TASKS, seed=6)
    data = request.getfixturevalue("shared_data") / request.param
    document = json.loads((data / "instances.json").read_bytes())
    document["images"] = document["images"][:24]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
    return write_case(folder, str(data / "images"), document, TASKS[:2], seed=7)


@pytest.fixture(scope="module")
def found(case: Case) -> Evaluation:
    return evaluate(case.labels, str(case.truth))


def results(case: Case, table: str = "annotations", *left_out: str) -> list[Document]:
    """The rows of a table as COCO's results."""
    names = {one["file_name"]: one["id"] for one in case.document["images"]}
    images = case.labels.table("images").to_table(columns=["image_id", "key"]).to_pylist()
    ids = {row["image_id"]: names.get(row["key"]) for row in images}
    listed = []
    for row in case.labels.table(table).to_table().to_pylist():
        one = {"category_id": case.document["categories"][0]["id"]} | row | {"image_id": ids[row["image_id"]]}
        one["bbox"] = list(row["bbox"].values())
        if one["image_id"] is not None:
            listed.append({key: value for key, value in one.items() if value is not None and key not in left_out})
    return listed


def reference(case: Case, found: list[Document], kind: str, **params: Any) -> COCOeval:
    """What pycocotools says."""
    with redirect_stdout(io.StringIO()), np.errstate(over="ignore"):
        truth = COCO()
        truth.dataset = copy.deepcopy(case.document)
        truth.createIndex()
        stock = COCOeval(truth, truth.loadRes(found), kind)
        vars(stock.params).update(params)
        stock.evaluate()
        stock.accumulate()
        if not params:
            stock.summarize()
    return stock


def mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else -1


def of_category(stock: COCOeval, category: int, recall: str) -> dict[str, float]:
    """A category's metrics, by COCO's definition."""
    metrics = {}
    for size, name in enumerate(stock.params.areaRngLbl):
        precision = stock.eval["precision"][:, :, category, size, -1]
        suffix = "" if name == "all" else f"_{name}"
        values = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
        values[recall] = stock.eval["recall"][:, category, size, -1]
        metrics |= {f"{key}{suffix}": mean(value) for key, value in values.items()}
    return metrics


LEFT_OUT = {
    "boxes": ("bbox", ["segmentation", "keypoints"]),
    "masks": ("segm", ["bbox", "keypoints"]),
    "keypoints": ("keypoints", ["bbox", "segmentation"]),
}


KINDS = [
    ("generated", "boxes"),
    ("generated", "masks"),
    ("generated", "keypoints"),
    ("nuclei", "boxes"),
    ("nuclei", "masks"),
    ("blood_cells", "boxes"),
]


@pytest.mark.parametrize(("case", "kind"), KINDS, indirect=["case"])
def test_average_precision_is_pycocotools(case: Case, found: Evaluation, kind: str) -> None:
    name, left_out = LEFT_OUT[kind]
    stock = reference(case, results(case, "annotations", *left_out), name)
    assert list(found[kind].values()) == pytest.approx(stock.stats[: len(found[kind])].tolist(), abs=1e-9)
    assert 0.1 < found[kind]["AP"] < 0.9
    for place, category_id in enumerate(stock.params.catIds):
        metrics = found.categories[kind].get(stock.cocoGt.cats[category_id]["name"])
        expected = of_category(stock, place, "AR" if kind == "keypoints" else "AR100")
        assert metrics == pytest.approx(expected, abs=1e-9) if metrics else set(expected.values()) == {-1}


@pytest.mark.parametrize("case", ["generated"], indirect=True)
def test_recall_of_proposals_is_pycocotools(case: Case, found: Evaluation) -> None:
    stock = reference(case, results(case, "proposals"), "bbox", useCats=0, maxDets=[100, 300, 1000])
    recall = stock.eval["recall"][:, 0]
    expected = {f"AR{most}": mean(recall[:, 0, k]) for k, most in enumerate([100, 300, 1000])}
    expected |= {f"AR{size}": mean(recall[:, k, 2]) for k, size in enumerate(AREAS) if k}
    assert found["proposals"] == pytest.approx(expected, abs=1e-9)


def test_partners_are_pycocotools(case: Case, found: Evaluation) -> None:
    """Who is right at an IoU of 0.5, crowds and all, but of all objects and not the best 100 of an image alone."""
    assert found.detections is not None
    kind = {"masks": "segm", "boxes": "bbox"}[found.detections.matched_by]
    left_out = "bbox" if kind == "segm" else "segmentation"
    stock = reference(case, results(case, "annotations", left_out), kind, maxDets=[10_000], iouThrs=np.array([0.5]))
    everywhere = [one for one in stock.evalImgs if one and one["aRng"] == stock.params.areaRng[0]]
    for category_id in stock.params.catIds:
        own = [one for one in everywhere if one["category_id"] == category_id]
        quality = found.detections.categories.get(stock.cocoGt.cats[category_id]["name"])
        if quality is None:
            assert not own
            continue
        scores = np.concatenate([one["dtScores"] for one in own])
        right = np.concatenate([one["dtMatches"][0] > 0 for one in own])
        counts = ~np.concatenate([one["dtIgnore"][0] for one in own])
        truth = sum(int((one["gtIgnore"] == 0).sum()) for one in own)
        assert (quality.truth, quality.found, quality.right) == (truth, counts.sum(), (right & counts).sum())
        best = max(
            (f1_of(right[counts & (scores >= score)], truth) for score in scores[counts]), key=lambda one: one[2]
        )
        if quality.best:
            assert (quality.best.precision, quality.best.recall, quality.best.f1) == pytest.approx(best)
        else:
            assert best[2] == 0


def f1_of(right: np.ndarray, truth: int) -> tuple[float, float, float]:
    precision, recall = right.mean(), right.sum() / truth if truth else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_labels_without_any_object(tmp_path: Path) -> None:
    document = generated(np.random.default_rng(5))
    document["annotations"] = [one | {"iscrowd": 0} for one in document["annotations"]]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    source, categories = write_images(f"{tmp_path}/images", 6), CategorySet([Category(2, "ball"), Category(5, "leaf")])
    labels = write_labels(source, f"{tmp_path}/labels", lambda image: {"annotations": []}, TASKS[:2], categories)
    found = evaluate(labels, f"{tmp_path}/truth.json")
    assert set(found["masks"].values()) == {0}
    assert found.detections is not None
    assert found.detections.overall.ece == -1
    assert found.detections.thresholds() == {}
    assert {(row, column) for row, column, _ in found.detections.confusion.counts} == {(0, 2), (1, 2)}
