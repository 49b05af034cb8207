"""WebDataset: tars in which a JSON of labels lies beside each image."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from prelabel.pipeline.exports.base import Advance, Exporter, ExportSummary, document_info
from prelabel.pipeline.exports.rows import Row, labeled_images
from prelabel.pipeline.image_bytes import check_not_linked, with_bytes
from prelabel.pipeline.image_files import ImageFiles, safe_name
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing, writing_folder
from prelabel.schemas.categories import CategorySet

SHARD_IMAGES = 10_000
SHARD_BYTES = 10**9
Member = tuple[str, bytes]


class WebDataset(Exporter):
    """`shard-00000.tar` and so on, and `dataset.json`, which names them and has the categories.

    WebDataset takes what stands before the first dot of a file's name for its key, so a member is called by image_id,
    as `000000042.jpg` and `000000042.json`; the image's key is in the JSON. An image lies there as it was, so where the
    JSON has an `orientation`, EXIF's, readers must turn it.
    """

    tables = ("annotations", "segments")

    def write(self, dataset: Labels, to: str, images: str = "none", progress: Advance = int) -> ExportSummary:
        """As any export's; a tar can't hold links to images."""
        check_not_linked(images, "a tar")
        return super().write(dataset, to, images, progress)

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """The images that could be read, with their objects and segments; where images are not copied, JSON alone.

        An image that can't be copied is left out, for readers want pairs.
        """
        shards: list[dict[str, Any]] = []
        with writing_folder(to) as folder:
            found = with_bytes(labeled_images(dataset, *self.tables), dataset, images)
            members = (
                _members(*one, images, dataset.categories) for one in found if one[2] is not None or not images.are_put
            )
            for number, some in groupby(_cut(members), key=itemgetter(0)):
                name = f"shard-{number:05d}.tar"
                shards.append({"name": name} | _write_tar(f"{folder}/{name}", some))
            about = {"info": document_info(dataset), "categories": dataset.categories.to_coco(), "shards": shards}
            with writing(f"{folder}/dataset.json") as out:
                out.write(orjson.dumps(about, option=orjson.OPT_APPEND_NEWLINE))
        notes = () if images.are_put else ("the tars hold labels alone: --images copy puts the images beside them",)
        images_written, labels = (sum(shard[name] for shard in shards) for name in ("images", "labels"))
        return ExportSummary(to, images_written, labels, notes)


def _members(
    image: Mapping[str, Any],
    rows: dict[str, list[Row]],
    data: bytes | None,
    files: ImageFiles,
    categories: CategorySet,
) -> tuple[int, list[Member]]:
    """How many labels an image has, and its files."""
    labels = image["labels"] and _labels([one for one in image["labels"] if one["category_id"] in categories])
    about = {name: image[name] for name in ("image_id", "width", "height")}
    about |= {"file_name": image["key"], "url": files.url(image), "labels": labels}
    if image["orientation"] != 1:
        about["orientation"] = image["orientation"]
    about |= {name: _labels(some) for name, some in rows.items() if some or name == "annotations"}
    text = orjson.dumps({k: v for k, v in about.items() if v is not None}, option=orjson.OPT_SERIALIZE_NUMPY)
    key = f"{image['image_id']:09d}"
    suffix = safe_name("", image["format"])[1] or safe_name(image["key"], None)[1] or ".img"
    picture = [] if data is None else [(key + suffix.lower(), data)]
    return sum(map(len, rows.values())), [*picture, (f"{key}.json", text)]


def _labels(rows: list[Row]) -> list[Row]:
    """Rows as JSON has them: a box is a list, and what is not there is left out."""
    return [{name: _value(name, value) for name, value in row.items() if value is not None} for row in rows]


def _value(name: str, value: Any) -> Any:
    if name == "bbox":
        return np.array([*value.values()], np.float32)
    return np.array(value, np.float32) if name == "keypoints" else np.float32(value) if name == "score" else value


def _cut(images: Iterable[tuple[int, list[Member]]]) -> Iterator[tuple[int, int, list[Member]]]:
    """Says of each image in which shard it goes."""
    shard = count = size = 0
    for labels, members in images:
        weight = sum(len(data) for _, data in members)
        if count == SHARD_IMAGES or (count and size + weight > SHARD_BYTES):
            shard, count, size = shard + 1, 0, 0
        count, size = count + 1, size + weight
        yield shard, labels, members


def _write_tar(url: str, images: Iterable[tuple[int, int, list[Member]]]) -> dict[str, int]:
    """Writes one shard; returns its numbers of images and of labels."""
    counts = {"images": 0, "labels": 0}
    with writing(url) as out, tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for _, labels, members in images:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            counts = {"images": counts["images"] + 1, "labels": counts["labels"] + labels}
    return counts
