"""How good the labels are, measured against a COCO ground truth by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any, cast

import orjson
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.storage import FINAL_ERRORS, open_url, read_file
from prelabel.schemas.coco import write_results
from prelabel.schemas.errors import UserError

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
KINDS = {"boxes": "bbox", "masks": "segm"}
NEEDED = {
    "images": {"id", "file_name", "height", "width"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    "categories": {"id"},
}


def evaluate(dataset: LabelDataset, truth: str) -> dict[str, dict[str, float]]:
    """COCO's AP and AR (Lin et al. 2014, as pycocotools has them) by kind: boxes, and masks where both sides have them.

    Args:
        dataset: the labels
        truth: URL of a COCO instances document; its images are matched by file name

    Raises:
        UserError: the truth is no such document, none of its images was labeled, or it can't be told which.
    """
    document = _read(truth)
    ids = _matching_ids(dataset, document, truth)
    results = _results(dataset, ids)
    with redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = document
        expected.createIndex()
        have_masks = all(item.get("segmentation") for item in results + document["annotations"])
        kinds = [kind for kind in KINDS if kind == "boxes" or have_masks]
        return {kind: _measure(expected, results, kind, sorted(ids.values())) for kind in kinds}


def _read(truth: str) -> dict[str, Any]:
    fs, path = open_url(truth)
    try:
        document = orjson.loads(read_file(fs, path))
    except FINAL_ERRORS as error:
        raise UserError(f"--truth {truth} can't be read: {error.strerror or error}; check the path") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"--truth {truth} is not JSON: {error}") from error
    for part, keys in NEEDED.items():
        items = document.get(part) if isinstance(document, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) and keys <= item.keys() for item in items):
            needed = ", ".join(sorted(keys))
            raise UserError(f"--truth {truth} is no COCO instances document: {part} must be a list, each with {needed}")
    return cast("dict[str, Any]", document)


def _matching_ids(dataset: LabelDataset, document: dict[str, Any], truth: str) -> dict[int, int]:
    """Our image ids -> the truth's: a file_name is our key, or the end of it."""
    theirs = {image["file_name"]: image["id"] for image in document["images"]}
    ids: dict[int, int] = {}
    keys: dict[str, str] = {}
    for batch in dataset.batches("images", ["image_id", "key"]):
        for image_id, key in zip(batch["image_id"].to_pylist(), batch["key"].to_pylist(), strict=True):
            name = next((end for end in _ends(key) if end in theirs), None)
            if name is None:
                continue
            if name in keys:
                raise UserError(f"{keys[name]!r} and {key!r} both match {name!r} of {truth}: give longer file_names")
            keys[name], ids[image_id] = key, theirs[name]
    if not ids:
        raise UserError(
            f"none of the images in {truth} was labeled: file_name must be an image's key, or the end of it"
        )
    return ids


def _ends(key: str) -> Iterator[str]:
    """The key, and what is left of it without its first folders."""
    yield key
    while "/" in key:
        key = key.partition("/")[2]
        yield key


def _results(dataset: LabelDataset, ids: dict[int, int]) -> list[dict[str, Any]]:
    document = io.BytesIO()
    write_results(document, dataset.batches("annotations"))
    results = orjson.loads(document.getvalue())
    return [result | {"image_id": ids[result["image_id"]]} for result in results if result["image_id"] in ids]


def _measure(expected: COCO, results: list[dict[str, Any]], kind: str, image_ids: list[int]) -> dict[str, float]:
    if not results:  # loadRes can't take an empty list
        return dict.fromkeys(METRICS, 0.0)
    # A result with a box gets the box's area, which sorts masks into the wrong sizes.
    left_out = {"boxes": "segmentation", "masks": "bbox"}[kind]
    found = [{key: value for key, value in result.items() if key != left_out} for result in results]
    evaluation = COCOeval(expected, expected.loadRes(found), KINDS[kind])
    evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=False)}
