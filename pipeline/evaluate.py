"""How good the labels are, measured against a COCO ground truth by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from numbers import Real
from typing import Any, cast

import orjson
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.storage import read_input
from prelabel.schemas.coco import write_results
from prelabel.schemas.errors import UserError

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
KINDS = {"boxes": "bbox", "masks": "segm"}
NEEDED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list, "area": Real, "iscrowd": int},
    "categories": {"id": int},
}


def evaluate(dataset: LabelDataset, truth: str) -> dict[str, dict[str, float]]:
    """COCO's AP and AR (Lin et al. 2014, as pycocotools has them) by kind: boxes, and masks where both sides have them.

    Args:
        dataset: the labels
        truth: URL of a COCO instances document; its images are matched by file name

    Raises:
        UserError: the truth is no such document, none of its images was labeled, it can't be told which, or those
            have no objects of the truth.
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
        if have_masks:
            _encode_masks(expected, list(ids.values()), truth)
        figures = {kind: _measure(expected, results, kind, sorted(ids.values())) for kind in kinds}
    if all(value == -1 for metrics in figures.values() for value in metrics.values()):
        raise UserError(
            f"there is nothing to measure: {truth} has no objects in the {len(ids)} images of it that were labeled, "
            "or none that counts: check its annotations' image_id, category_id, area and iscrowd"
        )
    return figures


def _read(truth: str) -> dict[str, Any]:
    try:
        document = orjson.loads(read_input(truth, "--truth"))
    except orjson.JSONDecodeError as error:
        raise UserError(f"--truth {truth} is not JSON: {error}") from error
    for part, types in NEEDED.items():
        items = document.get(part) if isinstance(document, dict) else None
        if not isinstance(items, list) or not all(_fits(item, types) for item in items):
            needed = ", ".join(sorted(types))
            raise UserError(
                f"--truth {truth} is no COCO instances document: {part} must be a list, each with {needed} as COCO "
                "has them"
            )
    return cast("dict[str, Any]", document)


def _fits(item: Any, types: dict[str, type]) -> bool:
    """Whether an image, annotation or category has these keys with values of these types; a box has four numbers."""
    if not isinstance(item, dict) or not all(isinstance(item.get(key), kind) for key, kind in types.items()):
        return False
    return "bbox" not in types or (len(item["bbox"]) == 4 and all(isinstance(side, Real) for side in item["bbox"]))


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


def _encode_masks(expected: COCO, image_ids: list[int], truth: str) -> None:
    """Does what COCOeval would do with the segmentations, and says which of them can't be one."""
    for annotation in expected.loadAnns(expected.getAnnIds(imgIds=image_ids)):
        try:
            annotation["segmentation"] = expected.annToRLE(annotation)
        except Exception as error:  # whatever pycocotools stumbles over
            raise UserError(f"--truth {truth}: annotation {annotation['id']} has no valid segmentation") from error


def _measure(expected: COCO, results: list[dict[str, Any]], kind: str, image_ids: list[int]) -> dict[str, float]:
    # A result with a box gets the box's area, which sorts masks into the wrong sizes.
    left_out = {"boxes": "segmentation", "masks": "bbox"}[kind]
    found = [{key: value for key, value in result.items() if key != left_out} for result in results]
    # loadRes can't take an empty list
    evaluation = COCOeval(expected, expected.loadRes(found) if found else COCO(), KINDS[kind])
    evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=False)}
