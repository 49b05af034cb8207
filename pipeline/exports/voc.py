"""Pascal VOC's folders: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from prelabel.pipeline.exports.base import Exporter, ExportSummary
from prelabel.pipeline.exports.names import FORBIDDEN, check_names
from prelabel.pipeline.exports.rows import Row, labeled_images
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import Storage, writing, writing_folder
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import UserError
from prelabel.schemas.rle import Rle, decode

BACKGROUND = "background"
LAST = 254
"""The highest index of a class or an object in a PNG; 255 is VOC's void, which trainers pass over."""
LONGEST = 200
"""Bytes of a stem; file systems take 255 with the suffix."""
NOT_LISTED = re.compile(rf"^#|[:\n\r]|{FORBIDDEN.pattern}")
"""What a name in `labelmap.txt` can't have: its fields are parted by colons, its comments begin with #."""


class Voc(Exporter):
    """A folder: Annotations (boxes as XML), ImageSets (`trainval.txt`), JPEGImages where they are put, `labelmap.txt`;
    and where the job has masks SegmentationClass and SegmentationObject (PNGs with VOC's palette).
    """

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """All images that could be read; each has an XML, and PNGs where the job has masks, even without objects."""
        check_names([BACKGROUND, *dataset.categories.names], "VOC's labelmap.txt", NOT_LISTED)
        masked = "segment_instances" in dataset.record.tasks
        if masked and len(dataset.categories) > LAST:
            raise UserError(
                f"VOC's PNGs have room for {LAST} categories, and there are {len(dataset.categories)}: choose some "
                "with --category"
            )
        with writing_folder(to) as folder, images.into(f"{folder}/JPEGImages") as put, ExitStack() as stack:
            kinds = ("Main", "Segmentation") if masked else ("Main",)
            lists = [stack.enter_context(writing(f"{folder}/ImageSets/{kind}/trainval.txt")) for kind in kinds]
            files = Storage(folder)
            files.add("labelmap.txt", _label_map(dataset.categories).encode())
            pngs = _Pngs(dataset.categories)
            num_images = num_objects = 0
            for image, rows in labeled_images(dataset, "annotations"):
                (stem, suffix), objects = images.flat_name(image), rows["annotations"]
                put(image, stem + suffix)
                document = _document(image, stem + suffix, objects, masked, images.url(image))
                files.add(f"Annotations/{stem}.xml", document.encode())
                if masked:
                    for kind, png in pngs.of(image, objects):
                        files.add(f"{kind}/{stem}.png", png)
                for each in lists:
                    each.write(f"{stem}\n".encode())
                num_images, num_objects = num_images + 1, num_objects + len(objects)
        return ExportSummary(to, num_images, num_objects, pngs.notes())


def _document(image: Row, name: str, objects: list[Row], segmented: bool, url: str | None) -> str:
    width, height = image["width"], image["height"]
    path = f"<path>{escape(url)}</path>\n" if url else ""
    return (
        f"<annotation>\n<folder>JPEGImages</folder>\n<filename>{escape(name)}</filename>\n{path}"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"<segmented>{int(segmented)}</segmented>\n"
        + "".join(_object(row, width, height) for row in objects)
        + "</annotation>\n"
    )


def _object(row: Row, width: int, height: int) -> str:
    box = row["bbox"]
    left, right = _pixels(box["x"], box["width"], width)
    top, bottom = _pixels(box["y"], box["height"], height)
    return (
        f"<object><name>{escape(row['category'])}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        f"</bndbox><attributes><attribute><name>score</name><value>{row['score']:.7g}</value></attribute></attributes>"
        "</object>\n"
    )


def _pixels(start: float, length: float, most: int) -> tuple[int, int]:
    """The first and the last pixel of a side, counted from 1: one at least, and otherwise the nearest borders."""
    first = min(round(start), most - 1)
    return first + 1, max(round(start + length), first + 1)


class _Pngs:
    """What is in each pixel of an image: its category, and which of its objects, the best where there are several."""

    def __init__(self, categories: CategorySet) -> None:
        self._index = {category_id: index for index, category_id in enumerate(categories.ids, start=1)}
        self._palette = bytes(value for index in range(256) for value in voc_color(index))
        self._masks = self._covered = self._beyond = 0

    def of(self, image: Row, objects: list[Row]) -> Iterator[tuple[str, bytes]]:
        """The folder and the PNG of each."""
        masked = [row for row in objects if row["segmentation"] is not None]
        shown = masked[:LAST]
        instances = np.zeros((image["height"], image["width"]), np.uint8, order="F")  # as masks are: many times faster
        for number, row in reversed([*enumerate(shown, start=1)]):
            np.copyto(instances, np.uint8(number), where=decode(Rle.from_coco(row["segmentation"])))
        visible = np.bincount(instances.ravel("K"), minlength=len(shown) + 1)[1:]
        self._masks += len(masked)
        self._beyond += len(masked) - len(shown)
        self._covered += int(np.count_nonzero(visible < [row["area"] for row in shown]))
        indices = np.array([0, *(self._index[row["category_id"]] for row in shown)], np.uint8)
        instances = np.ascontiguousarray(instances)
        yield "SegmentationClass", self._encode(indices[instances])
        yield "SegmentationObject", self._encode(instances)

    def _encode(self, indices: np.ndarray) -> bytes:
        png, out = Image.fromarray(indices), io.BytesIO()
        png.putpalette(self._palette)
        png.save(out, "PNG", compress_type=zlib.Z_RLE)  # four times as fast as the default, and no larger
        return out.getvalue()

    def notes(self) -> tuple[str, ...]:
        """What the PNGs could not hold."""
        covered = f"{self._covered:,} of {self._masks:,} masks lie in part under others of higher score"
        beyond = f"{self._beyond:,} masks are not in the PNGs, which hold the best {LAST} of an image"
        return (*([covered] if self._covered else []), *([beyond] if self._beyond else []))


def voc_color(index: int) -> tuple[int, int, int]:
    """The color of a class or an object: the bits of its index dealt to red, green and blue, highest first."""
    red, green, blue = (sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(8)) for channel in range(3))
    return red, green, blue


def _label_map(categories: CategorySet) -> str:
    """Name, color, parts and actions of each label, in the order of the indices."""
    lines = (
        f"{name}:{','.join(map(str, voc_color(index)))}::" for index, name in enumerate([BACKGROUND, *categories.names])
    )
    return "\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n"
