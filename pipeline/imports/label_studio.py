"""Label Studio's JSON export: what people left of each task (https://labelstud.io/guide/task_format)."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from prelabel.pipeline.imports.base import ImportedImage, ImportedObject, Importer
from prelabel.pipeline.imports.regions import KEYPOINT, OBJECTS, Place, Region, keypoints_of, object_of, regions_of
from prelabel.pipeline.storage import open_url
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import PrelabelError, UserError, one_line

CHUNK = 2**24
"""Bytes of the export that are read at a time."""
BEGIN, BETWEEN = re.compile(r"\s*\["), re.compile(r"[\s,]*")
UPLOADED = re.compile(r"data/upload/\d+/[0-9a-f]{8}-")
ODD = {
    "unannotated": "tasks are left out: they have no annotation",
    "size": "tasks are left out: nothing says how large their images are",
    "rotated": "rectangles are rotated: their bounding boxes are taken",
    "shape": "regions are left out: only rectangles, brush masks, polygons and keypoints can be read",
    "label": "regions are left out: they have no label",
    "parent": "keypoints are left out: they lie below no object, or nothing tells which of its keypoints they are",
}
"""What is said of what could not be taken as it is."""

Row = dict[str, Any]
logger = logging.getLogger("prelabel")


class LabelStudioImporter(Importer):
    """A list of tasks; of each the latest annotation that was not cancelled, and nothing of its predictions.

    A rectangle, a brush mask or a polygon is an object of its label's category; keypoints belong to the object that
    they lie below. A task without an annotation is left out: nobody has looked at it. So are choices.
    """

    name: ClassVar[str] = "label-studio"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        digest = hashlib.sha256()
        names: set[str] = set()
        self._keypoints: dict[str, Place] = {}
        for _, regions in self._annotated(digest.update):
            for region in regions or ():
                if region.shape in OBJECTS:
                    names.update(region.labels)
                elif region.place:
                    self._keypoints[region.place.name] = region.place._replace(visibility=2)
        self._digest = digest.hexdigest()
        self._categories = CategorySet(Category(number, name) for number, name in enumerate(sorted(names), 1))

    @property
    def digest(self) -> str:
        """Of the file."""
        return self._digest

    def categories(self) -> CategorySet:
        """The labels that objects have, by name; the export does not say which others there could be."""
        return self._categories

    def images(self) -> Iterator[ImportedImage]:
        """Those that somebody has annotated; what was left out is told at the end."""
        odd: Counter[str] = Counter()
        for task, regions in self._annotated():
            size = _size(task["data"], regions) if regions is not None else None
            if regions is None or size is None:
                odd["unannotated" if regions is None else "size"] += 1
                continue
            with self._in(task):
                objects = self._objects(regions, *size, odd)
            image_id = task["data"].get("image_id")
            yield ImportedImage(_key(task["data"]), *size, image_id if type(image_id) is int else None, objects)
        for kind, times in (+odd).items():
            logger.warning("%s: %d %s", self.url, times, ODD[kind])

    def _annotated(self, look: Callable[[bytes], object] = len) -> Iterator[tuple[Row, list[Region] | None]]:
        """The tasks, with the regions of the annotation that counts; `look` is shown all bytes of the export."""
        try:
            for task in _elements(_chunks(self.url, look)):
                annotations, data = task.get("annotations"), task.get("data")
                if not isinstance(annotations, list) or not isinstance(data, dict):
                    raise ValueError("a task has no annotations or no data; export as JSON, not as JSON-MIN")
                results = _latest(annotations)
                with self._in(task):
                    regions = None if results is None else list(regions_of(results))
                if regions is not None:  # half of a surrogate pair is no text, though JSON can say it
                    "".join([_key(data), *(label for region in regions for label in region.labels)]).encode()
                yield task, regions
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.url} is no list of tasks as Label Studio exports it: {one_line(error)}") from None

    @contextmanager
    def _in(self, task: Row) -> Iterator[None]:
        """Says of an error which task it is in."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.url}: task {task.get('id')!r:.40}: {error}") from None

    def _place(self, region: Region) -> Place | None:
        """Which keypoint it is: what the export said, unless it was renamed, or is new."""
        if region.place and region.place.name in region.labels:
            return region.place
        return next((self._keypoints[label] for label in region.labels if label in self._keypoints), None)

    def _objects(self, regions: list[Region], height: int, width: int, odd: Counter[str]) -> list[ImportedObject]:
        found: dict[str, list[ImportedObject]] = {}
        points: dict[str, list[tuple[Place, Region]]] = {}
        for region in regions:
            if region.shape == KEYPOINT:
                if place := self._place(region):
                    points.setdefault(region.parent or "", []).append((place, region))
                odd["parent"] += not place
            elif region.shape in OBJECTS and region.labels:
                found[region.region_id] = [object_of(region, label, height, width) for label in region.labels]
                odd["rotated"] += bool(region.value.get("rotation"))
            else:
                odd["label" if region.shape in OBJECTS else "shape"] += 1
        for parent, some in points.items():
            if parent in found:
                placed = keypoints_of(some, height, width)
                found[parent] = [replace(one, keypoints=placed) for one in found[parent]]
            odd["parent"] += 0 if parent in found else len(some)
        return [one for some in found.values() for one in some]


def _chunks(url: str, look: Callable[[bytes], object]) -> Iterator[bytes]:
    try:
        fs, path = open_url(url)
        with fs.open(path, "rb") as file:
            while data := file.read(CHUNK):
                look(data)
                yield data
    except PrelabelError:
        raise
    except Exception as error:  # each file system has its own
        raise UserError(f"{url} can't be read: {one_line(error)}; check the path") from error


def _elements(chunks: Iterator[bytes]) -> Iterator[Row]:
    """The objects in a JSON list, one at a time; raises ValueError where it is none, or ends early."""
    decode, loads = getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
    text, place, gap = "", 0, BEGIN
    for chunk in chain(chunks, [b""]):
        text, place = text[place:] + decode(chunk, final=not chunk), 0
        while before := gap.match(text, place):
            place, gap = before.end(), BETWEEN
            if text[place : place + 1] in ("", "]"):
                break
            try:
                element, place = loads(text, place)
            except json.JSONDecodeError:
                if chunk:  # it goes on
                    break
                raise
            if not isinstance(element, dict):
                raise ValueError(f"{element!r:.60} is in it")
            yield element
    if gap is BEGIN or text[place:].strip() != "]":
        raise ValueError("it is no list, or was cut off")


def _latest(annotations: list[Any]) -> list[Any] | None:
    """The results of the latest annotation that was not cancelled; raises ValueError where it is none."""
    if not all(isinstance(one, dict) and isinstance(one.get("result"), list) for one in annotations):
        raise ValueError("an annotation has no result")
    times = [(str(one.get("updated_at") or one.get("created_at")), k) for k, one in enumerate(annotations)]
    kept = [time for time, one in zip(times, annotations, strict=True) if not one.get("was_cancelled")]
    return annotations[max(kept)[1]]["result"] if kept else None


def _size(data: Row, regions: list[Region]) -> tuple[int, int] | None:
    """Height and width of a task's image, where an export or a region says so."""
    for height, width in ((data.get("height"), data.get("width")), *(region.size for region in regions)):
        if type(height) is int and type(width) is int and min(height, width) > 0 and height * width < 2**32:
            return height, width
    return None


def _key(data: Row) -> str:
    """What an image is called: as an export told it, else by the path in its URL."""
    if isinstance(data.get("key"), str):
        return str(data["key"])
    url = next((value for value in (data.get("image"), *data.values()) if isinstance(value, str)), "")
    path = urlsplit(url)
    served = parse_qs(path.query).get("d") if "/data/local-files/" in path.path else None
    return UPLOADED.sub("", served[0] if served else unquote(path.path).lstrip("/"))
