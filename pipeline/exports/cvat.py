"""CVAT for images 1.1: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson

from prelabel.pipeline.colors import color_of
from prelabel.pipeline.exports.base import Exporter, ExportSummary
from prelabel.pipeline.exports.names import check_names
from prelabel.pipeline.exports.rows import Row, labeled_images
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.row_runs import row_runs
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import Storage, writing, writing_folder
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle

SCORE = {"name": "score", "mutable": False, "input_type": "number", "default_value": "0", "values": ["0", "1", "0.001"]}
"""The attribute of every label, as CVAT describes attributes: its values are from, to and step."""

RETURN = {"\r": "&#13;"}
"""What a parser would take for the end of a line."""


class CvatImages(Exporter):
    """A folder: `annotations.xml`, `labels.json` for the task that is to take them, and `images` where they are put.

    An object is its mask, or its box where it has none. Its keypoints are a skeleton besides, in a group with it, whose
    label is `NAME skeleton`: CVAT's labels are either for skeletons or for everything else.
    """

    tables = ()

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All images that could be read, one after the other; the labels of whole images are tags."""
        if "annotations" not in dataset.record.tables and "classify" not in dataset.record.tasks:
            raise UserError(f"{dataset.url} has no objects: label with --task detect")
        labels = _labels(dataset.categories)
        for some in (labels, *(label["sublabels"] for label in labels if "sublabels" in label)):
            check_names((label["name"] for label in some), "CVAT")
        shapes, num_images, num_objects = _Shapes(dataset.categories), 0, 0
        with (
            writing_folder(to) as folder,
            images.into(f"{folder}/images") as put,
            writing(f"{folder}/annotations.xml") as out,
        ):
            Storage(folder).add("labels.json", orjson.dumps(labels, option=orjson.OPT_INDENT_2))
            out.write(_head(labels, dataset.record.created).encode())
            for image, rows in labeled_images(dataset, "annotations"):
                name = images.name(image)
                put(image, name)
                size = f'width="{image["width"]}" height="{image["height"]}"'
                head = f'<image id="{image["image_id"]}" name={quoteattr(name)} {size}>\n'
                out.write("".join([head, *shapes.of(image, rows["annotations"]), "</image>\n"]).encode())
                num_images, num_objects = num_images + 1, num_objects + len(rows["annotations"])
            out.write(b"</annotations>\n")
        return ExportSummary(to, num_images, num_objects)


class _Shapes:
    """What a job's labels are as elements of XML."""

    def __init__(self, categories: CategorySet) -> None:
        self._categories = categories
        self._names = {one.id: quoteattr(one.name) for one in categories}
        self._skeletons = {one.id: quoteattr(_skeleton_name(one)) for one in categories}
        self._groups = count(1)

    def of(self, image: Row, objects: list[Row]) -> Iterator[str]:
        """Those of an image; of two objects, the one of higher score is on top."""
        for height, row in zip(range(len(objects))[::-1], objects, strict=True):
            posed = row["keypoints"] is not None and any(row["keypoints"][2::3])
            common = f'source="auto" z_order="{height}"' + (f' group_id="{next(self._groups)}"' if posed else "")
            score = _score(row["score"])
            yield self._outline(row, common, score)
            if posed:
                yield self._pose(row, common, score)
        for label in image["labels"] or ():
            if name := self._names.get(label["category_id"]):  # images are selected with all of their labels
                yield f'<tag label={name} source="auto">{_score(label["score"])}</tag>\n'

    def _outline(self, row: Row, common: str, score: str) -> str:
        start = f'label={self._names[row["category_id"]]} occluded="0" {common}'
        if row["segmentation"] is not None and row["area"]:
            return f"<mask {start} {_mask(row['segmentation'])}>{score}</mask>\n"
        x, y, width, height = (row["bbox"][side] for side in ("x", "y", "width", "height"))
        corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + width:.2f}" ybr="{y + height:.2f}"'
        return f"<box {start} {corners}>{score}</box>\n"

    def _pose(self, row: Row, common: str, score: str) -> str:
        """A skeleton; where nobody has named its points, just those that were placed."""
        values, category = row["keypoints"], self._categories[row["category_id"]]
        points = list(zip(values[::3], values[1::3], values[2::3], strict=True))
        if not category.keypoints:
            placed = ";".join(f"{x:.2f},{y:.2f}" for x, y, visible in points if visible)
            return (
                f'<points label={self._names[category.id]} occluded="0" {common} points="{placed}">{score}</points>\n'
            )
        parts = (
            f'<points label={quoteattr(name)} source="auto" outside="{int(not visible)}" occluded="{int(visible == 1)}"'
            f' points="{x:.2f},{y:.2f}"></points>\n'
            for name, (x, y, visible) in zip(category.keypoints, points, strict=True)
        )
        return f"<skeleton label={self._skeletons[category.id]} {common}>\n{''.join(parts)}{score}</skeleton>\n"


def _score(score: float) -> str:
    return f'<attribute name="score">{score:.7g}</attribute>'


def _mask(segmentation: Row) -> str:
    """The attributes of a mask: its tight box, and its runs in that, which never exceed it (CVAT's issue 9460)."""
    (left, top, width, height), lengths = row_runs(Rle(segmentation["size"], segmentation["counts"]))
    runs = ", ".join(map(str, lengths.tolist()))
    return f'rle="{runs}" left="{left}" top="{top}" width="{width}" height="{height}"'


def _skeleton_name(category: Category) -> str:
    return f"{category.name} skeleton"


def _labels(categories: CategorySet) -> list[dict[str, Any]]:
    """What CVAT's label constructor takes as "raw"."""
    colors = {one.id: "#{:02x}{:02x}{:02x}".format(*one.color or color_of(one.id)) for one in categories}
    plain = [{"name": one.name, "color": colors[one.id], "type": "any", "attributes": [SCORE]} for one in categories]
    return plain + [
        {
            "name": _skeleton_name(one),
            "color": colors[one.id],
            "type": "skeleton",
            "attributes": [SCORE],
            "sublabels": [
                {"name": name, "color": colors[one.id], "type": "points", "attributes": []} for name in one.keypoints
            ],
            "svg": _drawing(one.keypoints, one.skeleton or ()),
        }
        for one in categories
        if one.keypoints
    ]


def _drawing(names: tuple[str, ...], lines: tuple[tuple[int, int], ...]) -> str:
    """A skeleton as CVAT's constructor draws it, in a square of 100 x 100: here with its points on a circle."""
    angles = [2 * math.pi * k / len(names) for k in range(len(names))]
    places = [(round(50 + 40 * math.sin(angle), 2), round(50 - 40 * math.cos(angle), 2)) for angle in angles]
    edges = (
        f'<line x1="{places[a - 1][0]}" y1="{places[a - 1][1]}" x2="{places[b - 1][0]}" y2="{places[b - 1][1]}" '
        f'stroke="black" data-type="edge" data-node-from="{a}" stroke-width="0.5" data-node-to="{b}"></line>'
        for a, b in lines
    )
    nodes = (
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x}" cy="{y}" stroke-width="0.1" '
        f'data-type="element node" data-element-id="{k}" data-node-id="{k}" data-label-name={quoteattr(name)}></circle>'
        for k, (name, (x, y)) in enumerate(zip(names, places, strict=True), start=1)
    )
    return "".join([*edges, *nodes])


def _head(labels: list[dict[str, Any]], created: str) -> str:
    elements = (_label(label, *([f"<svg>{escape(label['svg'])}</svg>"] if "svg" in label else [])) for label in labels)
    parts = (
        _label(part, f"<parent>{escape(label['name'])}</parent>")
        for label in labels
        for part in label.get("sublabels", ())
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>\n<task>\n'
        f"<mode>annotation</mode>\n<labels>\n{''.join([*elements, *parts])}</labels>\n</task>\n"
        f"<dumped>{escape(created)}</dumped>\n</meta>\n"
    )


def _label(label: dict[str, Any], *more: str) -> str:
    texts = (f"<{key}>{escape(label[key], RETURN)}</{key}>" for key in ("name", "color", "type"))
    attributes = "".join(
        "<attribute><name>{name}</name><mutable>{mutable}</mutable><input_type>{input_type}</input_type>"
        "<default_value>{default_value}</default_value><values>{lines}</values></attribute>".format(
            **attribute, lines="\n".join(attribute["values"])
        )
        for attribute in label["attributes"]
    )
    return f"<label>{''.join(texts)}<attributes>{attributes}</attributes>{''.join(more)}</label>\n"
