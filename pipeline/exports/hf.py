"""A dataset directory of Hugging Face's `datasets`: Parquet with features, and a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from prelabel.pipeline.exports.base import Advance, Exporter, ExportSummary
from prelabel.pipeline.exports.rows import Row, labeled_images, table_rows
from prelabel.pipeline.image_bytes import check_not_linked, with_bytes
from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import writing, writing_folder
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.tables import SEGMENTATION

SHARD_BYTES = 500 * 10**6
OBJECT_BYTES = 1_000
"""Of an object, as a rule, mask included: shards are cut before their rows are read."""
GROUP_ROWS = 1_000
GROUP_BYTES = 32 * 2**20
OBJECTS = {
    "id": pa.int64(),
    "category": pa.int64(),
    "bbox": pa.list_(pa.float32(), 4),
    "area": pa.float64(),
    "score": pa.float32(),
    "iscrowd": pa.bool_(),
    "segmentation": SEGMENTATION,
    "keypoints": pa.list_(pa.float32()),
}
"""What is said of an image's objects: a list for each."""
CARD = """---
task_categories:
- object-detection
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

{images:,} images with {annotations:,} objects, labeled by {models}.

`image` is {image}, `file_name` the image's name where it was labeled. `objects` holds a list for each of: `id`;
`category`, a ClassLabel; `bbox`, COCO's x, y, width, height in pixels of the upright image; `area`; `score`;
`iscrowd`; `segmentation`, COCO's compressed run lengths, what pycocotools' `mask.decode` takes; `keypoints`, x, y and
visibility of each point. Where an object has no mask or keypoints, they are null.
"""


class HuggingFace(Exporter):
    """`data/train-….parquet` of about 500 MB each, and `README.md`: a folder that `datasets.load_dataset` opens.

    Copied images lie in the rows; otherwise `image` is the image's URL, or the name that it had where it was labeled.
    """

    def write(self, dataset: Labels, to: str, images: str = "none", progress: Advance = int) -> ExportSummary:
        """As any export's; a row can't hold a link to an image."""
        check_not_linked(images, "Parquet")
        return super().write(dataset, to, images, progress)

    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """The images that could be read, with their objects; one that can't be copied has none in its place."""
        schema, classes = _schema(dataset.categories, images.are_put)
        shards = _cut(dataset, images.are_put)
        found = with_bytes(labeled_images(dataset, "annotations"), dataset, images)
        rows = (_row(image, labels["annotations"], data, classes, images) for image, labels, data in found)
        annotations = 0
        with writing_folder(to) as folder:
            for number, count in enumerate(shards):
                name = f"data/train-{number:05d}-of-{len(shards):05d}.parquet"
                annotations += _write_shard(f"{folder}/{name}", islice(rows, count), schema)
            with writing(f"{folder}/README.md") as out:
                out.write(_card(dataset, sum(shards), annotations, images.are_put).encode())
        return ExportSummary(to, sum(shards), annotations)


def _schema(categories: CategorySet, with_bytes: bool) -> tuple[pa.Schema, dict[int, int]]:
    """The columns, with the features that `datasets` finds in their metadata; and category ids -> classes."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if with_bytes else pa.string()
    objects = pa.struct([(name, pa.list_(kind)) for name, kind in OBJECTS.items()])
    facts = {"image_id": pa.int64(), "file_name": pa.string(), "width": pa.int32(), "height": pa.int32()}
    features = {"image": {"_type": "Image"} if with_bytes else _feature(image)}
    features |= {name: _feature(kind) for name, kind in facts.items()}
    of_objects = {name: _feature(kind) for name, kind in OBJECTS.items()}
    of_objects["category"] = {"names": _class_names(categories), "_type": "ClassLabel"}
    features["objects"] = {"feature": of_objects, "_type": "Sequence"}
    told = {"huggingface": orjson.dumps({"info": {"features": features}}).decode()}
    schema = pa.schema({"image": image, **facts, "objects": objects}, metadata=told)
    return schema, {category_id: place for place, category_id in enumerate(categories.ids)}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """What `datasets` calls an Arrow type; `Sequence` is what all of its versions know."""
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _class_names(categories: CategorySet) -> list[str]:
    """A name for each; two of one name are told apart by their ids."""
    times = Counter(categories.names)
    return [one.name if times[one.name] == 1 else f"{one.name} ({one.id})" for one in categories]


def _cut(dataset: Labels, with_bytes: bool) -> list[int]:
    """How many images go into each shard."""
    counts, size = [0], 0
    for row in table_rows(dataset, "images", ["status", "num_bytes", "num_annotations"]):
        if row["status"] == "ok":
            weight = row["num_annotations"] * OBJECT_BYTES + (row["num_bytes"] if with_bytes else 0)
            if counts[-1] and size + weight > SHARD_BYTES:
                counts.append(0)
                size = 0
            counts[-1] += 1
            size += weight
    return counts


def _row(
    image: Mapping[str, Any], objects: list[Row], data: bytes | None, classes: dict[int, int], files: ImageFiles
) -> Row:
    row = {name: image[name] for name in ("image_id", "width", "height")} | {"file_name": image["key"]}
    if files.are_put:
        row["image"] = None if data is None else {"bytes": data, "path": files.name(image)}
    else:
        row["image"] = files.url(image) or image["key"]
    found = {name: [one.get(name) for one in objects] for name in OBJECTS}
    found["id"] = [one["annotation_id"] for one in objects]
    found["category"] = [classes[one["category_id"]] for one in objects]
    found["bbox"] = [[*one["bbox"].values()] for one in objects]
    return row | {"objects": found}


def _write_shard(url: str, rows: Iterable[Row], schema: pa.Schema) -> int:
    """Writes one file; returns its number of objects."""
    objects = 0
    with writing(url) as out, pq.ParquetWriter(out, schema, compression="zstd", write_page_index=True) as writer:
        for some in _groups(rows):
            writer.write_table(pa.Table.from_pylist(some, schema))
            objects += sum(len(row["objects"]["id"]) for row in some)
    return objects


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that are written together: no more than readers like to have in memory."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += OBJECT_BYTES * len(row["objects"]["id"])
        if isinstance(row["image"], dict):
            size += len(row["image"]["bytes"])
        if len(group) == GROUP_ROWS or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _card(dataset: Labels, images: int, annotations: int, with_bytes: bool) -> str:
    models = ", ".join(f"`{' '.join(model['name'].replace('`', '').split())}`" for model in dataset.record.models)
    image = "the image itself" if with_bytes else "its URL or name"
    return CARD.format(models=models, images=images, annotations=annotations, image=image)
