"""A COCO ground truth: read, checked, and matched with a job's images and categories."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.figures import MatchedImages, Names
from prelabel.pipeline.storage import read_input
from prelabel.schemas.categories import ALIASES, CategorySet
from prelabel.schemas.errors import UserError, printable

Needed = dict[str, dict[str, type]]

_IMAGES: dict[str, type] = {"id": int, "file_name": str, "height": int, "width": int}
INSTANCES: Needed = {
    "images": _IMAGES,
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list, "area": Real, "iscrowd": int},
    "categories": {"id": int},
}
PANOPTIC: Needed = {
    "images": _IMAGES,
    "annotations": {"image_id": int, "file_name": str, "segments_info": list},
    "categories": {"id": int, "isthing": int},
}
SEGMENT: dict[str, type] = {"id": int, "category_id": int, "iscrowd": int}

logger = logging.getLogger("prelabel")


@dataclass(frozen=True)
class Truth:
    """A ground truth beside a job.

    Attributes:
        url: as the user named it
        document: COCO's instances, keypoints or panoptic document; every value that is used has the right type
        is_panoptic: which of them
        images: our image ids -> the truth's, of the images that both have
        matched: which these are, and which are not among them
        categories: our category ids -> the truth's, of the categories that both have
        names: the truth's category ids -> our name, or the truth's own where we have no such category
    """

    url: str
    document: dict[str, Any]
    is_panoptic: bool
    images: dict[int, int]
    matched: MatchedImages
    categories: dict[int, int]
    names: dict[int, str]

    @cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Height and width of the truth's images by id, as the document has them."""
        return {image["id"]: (image["height"], image["width"]) for image in self.document["images"]}

    def batches(self, dataset: LabelDataset, table: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """As `LabelDataset.batches`, but of the images that both have: a truth is often of a few among millions."""
        common = pa.array(self.images, pa.int64())
        for batch in dataset.batches(table, columns):
            yield batch.filter(pc.is_in(batch["image_id"], common))


def read_truth(url: str, dataset: LabelDataset) -> Truth:
    """Reads a truth, and finds the job's images and categories in it.

    Raises:
        UserError: it is no COCO document, or can't be matched with the job.
    """
    try:
        document = orjson.loads(read_input(url, "--truth"))
    except orjson.JSONDecodeError as error:
        raise UserError(f"--truth {url} is not JSON: {error}") from error
    is_panoptic = _is_panoptic(document)
    name, needed = ("panoptic", PANOPTIC) if is_panoptic else ("instances", INSTANCES)
    for part, types in needed.items():
        items = document.get(part) if isinstance(document, dict) else None
        if not isinstance(items, list) or not all(_fits(item, types) for item in items):
            keys = ", ".join(sorted(types))
            raise UserError(
                f"--truth {url} is no COCO {name} document: {part} must be a list, each with {keys} as COCO has them"
            )
    _check_unique(document, url, is_panoptic)
    images, matched = _matching_images(dataset, document, url, is_panoptic)
    categories = _matching_categories(dataset.categories, document, url)
    names = _names(dataset.categories, categories, document)
    return Truth(url, document, is_panoptic, images, matched, categories, names)


def _is_panoptic(document: Any) -> bool:
    annotations = document.get("annotations") if isinstance(document, dict) else None
    return isinstance(annotations, list) and any(
        isinstance(one, dict) and "segments_info" in one for one in annotations
    )


def _fits(item: Any, types: dict[str, type]) -> bool:
    """Whether an object has these keys with values of these types; a box has four numbers, a segment an id above 0."""
    if not isinstance(item, dict) or not all(_is(item.get(key), kind) for key, kind in types.items()):
        return False
    if "segments_info" in types:
        return all(_fits(segment, SEGMENT) and segment["id"] > 0 for segment in item["segments_info"])
    return "bbox" not in types or (len(item["bbox"]) == 4 and all(isinstance(side, Real) for side in item["bbox"]))


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (not isinstance(value, int) or abs(value) < 2**63)


def _check_unique(document: dict[str, Any], url: str, is_panoptic: bool) -> None:
    unique = [("images", "id"), ("images", "file_name"), ("categories", "id")]
    for part, key in [*unique, ("annotations", "image_id")] if is_panoptic else unique:
        for value, times in Counter(item[key] for item in document[part]).most_common(1):
            if times > 1:
                raise UserError(f"--truth {url} has {times} {part} of the {key} {value!r}: each must have its own")


def _matching_images(
    dataset: LabelDataset, document: dict[str, Any], url: str, is_panoptic: bool
) -> tuple[dict[int, int], MatchedImages]:
    """Our image ids -> the truth's: a file_name is our key, or the end of it."""
    # A panoptic document's image without an annotation is unknown; in an instances document it is empty.
    known = {one["image_id"] for one in document["annotations"]} if is_panoptic else None
    theirs = {one["file_name"]: one for one in document["images"] if known is None or one["id"] in known}
    ids: dict[int, int] = {}
    keys: dict[str, str] = {}
    failed = without_truth = of_other_size = Names(0, ())
    for image_id, key, status, height, width in _images(dataset):
        name = next((end for end in _ends(key) if end in theirs), None)
        if name is None:
            without_truth = without_truth.plus(key)
            continue
        if name in keys:
            raise UserError(f"{keys[name]!r} and {key!r} both match {name!r} of {url}: give longer file_names")
        keys[name], ids[image_id] = key, theirs[name]["id"]
        if status != "ok":
            failed = failed.plus(key)
        elif (height, width) != (theirs[name]["height"], theirs[name]["width"]):
            of_other_size = of_other_size.plus(key)
    if not ids:
        raise UserError(f"none of the images in {url} was labeled: file_name must be an image's key, or the end of it")
    if of_other_size.count:
        shown = ", ".join(map(printable, of_other_size.first[:5]))
        message = "%s images had another size, upright, when they were labeled than %s says, so nothing may fit: %s"
        logger.warning(message, of_other_size.count, url, shown)
    not_labeled = Names.of(name for name in theirs if name not in keys)
    return ids, MatchedImages(len(ids), failed, not_labeled, without_truth)


def _images(dataset: LabelDataset) -> Iterator[tuple[int, str, str, int | None, int | None]]:
    names = ["image_id", "key", "status", "height", "width"]
    for batch in dataset.batches("images", names):
        yield from zip(*(batch[name].to_pylist() for name in names), strict=True)


def _ends(key: str) -> Iterator[str]:
    """The key, and what is left of it without its first folders."""
    yield key
    while "/" in key:
        key = key.partition("/")[2]
        yield key


def _matching_categories(ours: CategorySet, document: dict[str, Any], url: str) -> dict[int, int]:
    """Our category ids -> the truth's: of the same name; where no name is in both, of the same id."""
    names = {entry["id"]: _known_as(entry.get("name")) for entry in document["categories"]}
    by_name = {name: category_id for category_id, name in names.items()}
    ids = {
        category.id: category.id if names.get(category.id) == name else by_name[name]
        for category in ours
        if (name := _known_as(category.name)) in by_name
    }
    if not ids:
        logger.warning("%s has no category name in common with the job: categories are compared by id", url)
        return {category_id: category_id for category_id in ours.ids if category_id in names}
    if missing := [name for category_id, name in names.items() if category_id not in ids.values()]:
        shown = ", ".join(map(printable, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        logger.warning("the job can't find these categories of %s: %s", url, shown)
    return ids


def _names(ours: CategorySet, categories: dict[int, int], document: dict[str, Any]) -> dict[int, str]:
    """The truth's category ids -> a name of its own for each: ours, where we have it."""
    wanted = {entry["id"]: str(entry.get("name") or entry["id"]) for entry in document["categories"]}
    known = {theirs: ours[category_id].name for category_id, theirs in categories.items()}
    names: dict[str, int] = {}
    for category_id, name in (known | wanted | known).items():  # ours first
        names[f"{name} ({category_id})" if name in names else name] = category_id
    return {category_id: name for name, category_id in names.items()}


def _known_as(name: object) -> str:
    return ALIASES.get(name, name) if isinstance(name, str) else ""
