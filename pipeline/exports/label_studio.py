"""Label Studio: a folder of task files, and the labeling configuration that they are made for.

https://labelstud.io/guide/predictions says what a prediction is. Positions are percentages of the upright image's
width and height. A region's `id` is the object's annotation_id, so that `prelabel import` knows it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import orjson

from prelabel.pipeline.brush import encode_brush
from prelabel.pipeline.colors import color_of
from prelabel.pipeline.exports.base import Exporter, ExportSummary
from prelabel.pipeline.exports.names import check_names
from prelabel.pipeline.exports.rows import Row, labeled_images
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing, writing_folder
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

TASKS = 500
"""Of a file, at most; more make Label Studio slow."""
BYTES = 32 * 2**20
"""Of a file, unless one task is larger. Label Studio takes 250 MiB (its DATA_UPLOAD_MAX_MEMORY_SIZE), proxies less."""
FACTS = ("image_id", "key", "width", "height", "sampling_reason", "sampling_weight")
"""Of an image, in its task's data."""
KEYPOINT_SIZE = 0.5
"""In percent of the width, as it is drawn."""
FORBIDDEN = re.compile("^\\$|[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""A variable's sign, and what XML can't say: https://www.w3.org/TR/xml/#charsets."""
SEGMENTS = {"panoptic": "fuse_panoptic", "semantic": "segment_semantic"}
"""Kinds of segments, and the task that each is from."""


class Control(NamedTuple):
    """What draws one kind of regions.

    Attributes:
        tag: in the labeling configuration; in lower case it is the regions' type
        name: its own
        more: of its attributes
    """

    tag: str
    name: str
    more: str = ""


RECTANGLES = Control("RectangleLabels", "rectangles", ' canRotate="false"')
MASKS = Control("BrushLabels", "masks")
KEYPOINTS = Control("KeyPointLabels", "keypoints")
CHOICES = Control("Choices", "labels", ' choice="single" showInline="true"')
CONTROLS = {
    "detect": RECTANGLES,
    "segment_instances": MASKS,
    "segment_semantic": MASKS,
    "fuse_panoptic": MASKS,
    "detect_keypoints": KEYPOINTS,
    "classify": CHOICES,
}


class LabelStudioTasks(Exporter):
    """`tasks-000000.json` and so on, each a list of tasks with one prediction; `config.xml`; maybe the images.

    An object is one region: its mask where it has one, else its box; its keypoints are regions below it. Where a job
    has no objects, segments are regions. An image's best label is a choice.
    """

    tables = ()

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All images that could be read; one without objects has a prediction that says so, with an empty result."""
        regions = _Regions(dataset)
        count = 0
        with writing_folder(to) as folder, images.into(folder) as put:
            served = quote(os.path.basename(to.rstrip("/")))

            def url(image: Row) -> str:
                if not images.are_put:
                    return images.url(image) or str(image["uri"])
                name = f"images/{images.name(image)}"
                put(image, name)
                return f"/data/local-files/?d={served}/{quote(name)}"

            found = labeled_images(dataset, regions.table)
            tasks = (_task(image, url(image), regions.prediction(image, rows[regions.table])) for image, rows in found)
            for number, some in groupby(tasks, key=_Files().number):
                with writing(f"{folder}/tasks-{number:06d}.json") as file:
                    for place, task in enumerate(some):
                        file.write(b",\n" if place else b"[\n")
                        file.write(task)
                        count += 1
                    file.write(b"\n]\n")
            with writing(f"{folder}/config.xml") as file:
                file.write(regions.config().encode())
        return ExportSummary(to, count, regions.count, (*regions.notes, *_places(to, images)))


def _task(image: Row, url: str, prediction: Row) -> bytes:
    facts = {name: image[name] for name in FACTS if name in image}
    task = {"data": {"image": url} | facts, "predictions": [prediction]}
    return orjson.dumps(task, option=orjson.OPT_SERIALIZE_NUMPY)


class _Files:
    """Says of one task after the other in which file it goes."""

    def __init__(self) -> None:
        self._number = self._tasks = self._bytes = 0

    def number(self, task: bytes) -> int:
        """Of the file."""
        if self._tasks and (self._tasks == TASKS or self._bytes + len(task) > BYTES):
            self._number, self._tasks, self._bytes = self._number + 1, 0, 0
        self._tasks, self._bytes = self._tasks + 1, self._bytes + len(task)
        return self._number


def _places(to: str, images: ImageFiles) -> Iterator[str]:
    """What to say of where Label Studio looks for images."""
    if images.are_put:
        root, name = os.path.split(to.rstrip("/") if "://" in to else os.path.abspath(to))
        yield (
            f"the tasks' images are local files of Label Studio: start it with LOCAL_FILES_SERVING_ENABLED=true and "
            f"LOCAL_FILES_DOCUMENT_ROOT={root}, and give the project a local files storage {root}/{name}/images"
        )


class _Regions:
    """Makes predictions, and the configuration that has what they use.

    Attributes:
        table: whose rows are regions
        count: of those rows, so far
        notes: what a person should know of them
    """

    def __init__(self, dataset: Labels) -> None:
        record, self._categories = dataset.record, dataset.categories
        check_names(self._categories.names, "Label Studio", FORBIDDEN)
        self._version = f"{', '.join(model['name'] for model in record.models)} {record.fingerprint[:8]}"
        self._kind = next((kind for kind, task in SEGMENTS.items() if task in record.tasks), None)
        self.table = "annotations" if "annotations" in record.tables else "segments"
        if self.table not in record.tables and "classify" not in record.tasks:
            raise UserError(f"{dataset.url} has nothing to correct: label with --task detect, segment_* or classify")
        left_out = SEGMENTS.values() if self.table == "annotations" else ()
        self._controls = {CONTROLS[task] for task in record.tasks if task in CONTROLS and task not in left_out}
        self.notes = ("segments are left out: the regions are the objects",) if self._kind and left_out else ()
        self._points = dict.fromkeys(name for one in self._categories for name in one.keypoints or ())
        self.count = 0

    def prediction(self, image: Row, rows: list[Row]) -> Row:
        """Of an image, from its rows of the table; its score is the mean of theirs."""
        if self.table == "segments":
            rows = [row for row in rows if row["kind"] == self._kind]
        self.count += len(rows)
        result = [region for row in rows for region in self._regions(image, row)]
        best = [one for one in (image["labels"] or ())[:1] if one["category_id"] in self._categories]  # as selected
        result += [self._region(CHOICES, "label", one["category"], one["score"], {}) for one in best]
        scores = [region["score"] for region in result if "score" in region]
        return {"model_version": self._version, "score": np.mean(scores) if scores else None, "result": result}

    def _regions(self, image: Row, row: Row) -> Iterator[Row]:
        """An object's or a segment's own region, then those of its keypoints."""
        region_id = str(row["annotation_id"]) if self.table == "annotations" else f"segment-{row['segment_id']}"
        size = {"original_width": image["width"], "original_height": image["height"], "image_rotation": 0}
        control, value = _shape(image, row)
        yield self._region(control, region_id, row["category"], row["score"], value) | size
        for x, y, meta in self._keypoints(row):
            value = _percent(image, x=x, y=y) | {"width": KEYPOINT_SIZE}
            region = self._region(KEYPOINTS, f"{region_id}.{meta['keypoint']}", meta["name"], row["score"], value)
            yield region | size | {"parentID": region_id, "meta": meta}

    def _keypoints(self, row: Row) -> Iterator[tuple[float, float, Row]]:
        """x and y of those that were placed; their names and numbers, from 1, of how many, and visibilities."""
        points = np.reshape(row.get("keypoints") or (), (-1, 3)).tolist()
        names = self._categories[row["category_id"]].keypoints or [f"keypoint {k}" for k in range(1, len(points) + 1)]
        self._points |= dict.fromkeys(names if points else ())
        for k, (name, (x, y, visibility)) in enumerate(zip(names, points, strict=False), 1):
            if visibility:
                yield x, y, {"name": name, "keypoint": k, "of": len(points), "visibility": int(visibility)}

    def _region(self, control: Control, region_id: str, label: str, score: float | None, value: Row) -> Row:
        self._controls.add(control)
        kind = control.tag.lower()
        region: Row = {"id": region_id, "from_name": control.name, "to_name": "image", "type": kind}
        region["value"] = value | {kind: [label]}
        return region if score is None else region | {"score": np.float32(score)}

    def config(self) -> str:
        """The labeling configuration, as XML."""
        check_names([*self._points], "Label Studio", FORBIDDEN)
        labels = [_label(one.name, one.color or color_of(one.id)) for one in self._categories]
        inside = {RECTANGLES: labels, MASKS: labels}
        inside[KEYPOINTS] = [_label(name, color_of(k)) for k, name in enumerate(self._points)]
        inside[CHOICES] = [f"    <Choice value={quoteattr(name)}/>" for name in self._categories.names]
        lines = ["<View>", '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>']
        for control, values in inside.items():
            if control in self._controls:
                lines.append(f'  <{control.tag} name="{control.name}" toName="image"{control.more}>')
                lines += [*values, f"  </{control.tag}>"]
        return "\n".join([*lines, "</View>", ""])


def _shape(image: Row, row: Row) -> tuple[Control, Row]:
    """What draws a row, and its mask if that has pixels, else its box."""
    if row["segmentation"] is None or not row["area"]:
        return RECTANGLES, _percent(image, **row["bbox"]) | {"rotation": 0}
    return MASKS, {"format": "rle", "rle": encode_brush(Rle(**row["segmentation"]))}


def _percent(image: Row, **pixels: float) -> Row:
    """Lengths by name, in percent of the image; never more than 100, which Label Studio would refuse."""
    sides = {"x": image["width"], "width": image["width"], "y": image["height"], "height": image["height"]}
    return {name: min(max(100 * value / sides[name], 0.0), 100.0) for name, value in pixels.items()}


def _label(name: str, color: tuple[int, int, int]) -> str:
    return f'    <Label value={quoteattr(name)} background="#{bytes(color).hex()}"/>'
