"""The Arrow schemas of every table that a job writes, and the metadata that travels in each file.

Boxes are COCO's: x, y of the top-left corner, width, height, in pixels of the upright image. A mask is COCO's
compressed run-length encoding, the very object that pycocotools takes.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = "1"
ROWS_PER_IMAGE = 65_536
"""annotation_id = image_id * 65,536 + rank; both stay below 2**53, which JSON readers in any language keep."""


def _required(name: str, of: pa.DataType) -> pa.Field:
    return pa.field(name, of, nullable=False)


NAME = pa.dictionary(pa.int32(), pa.string())
BBOX = pa.struct([_required(side, pa.float32()) for side in ("x", "y", "width", "height")])
SEGMENTATION = pa.struct([pa.field("size", pa.list_(pa.int32(), 2)), pa.field("counts", pa.string())])
LABEL = pa.struct(
    [_required("category_id", pa.int32()), _required("category", pa.string()), _required("score", pa.float32())]
)

IMAGES = pa.schema(
    [
        _required("image_id", pa.int64()),  # position in the plan, from 0
        _required("key", pa.string()),
        _required("uri", pa.string()),
        _required("shard", pa.string()),
        _required("unit", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("orientation", pa.int8()),  # EXIF 1-8, as applied
        pa.field("format", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("digest", pa.string()),  # SHA-256 of the encoded bytes, hexadecimal
        _required("status", NAME),  # ok, failed
        pa.field("error_code", pa.string()),
        pa.field("error", pa.string()),
        _required("num_annotations", pa.int32()),
        pa.field("labels", pa.list_(LABEL)),
    ]
)

ANNOTATIONS = pa.schema(
    [
        _required("annotation_id", pa.int64()),
        _required("image_id", pa.int64()),
        _required("category_id", pa.int32()),
        _required("category", NAME),
        _required("score", pa.float32()),
        _required("bbox", BBOX),
        _required("area", pa.float64()),  # of the mask; of the box where there is no mask
        pa.field("segmentation", SEGMENTATION),
        pa.field("keypoints", pa.list_(pa.float32())),
        _required("iscrowd", pa.bool_()),
        _required("model", NAME),
    ]
)

SEGMENTS = pa.schema(
    [
        _required("segment_id", pa.int32()),  # unique in its image, > 0
        _required("image_id", pa.int64()),
        _required("category_id", pa.int32()),
        _required("category", NAME),
        _required("isthing", pa.bool_()),
        pa.field("score", pa.float32()),
        _required("area", pa.int64()),
        _required("bbox", BBOX),
        _required("segmentation", SEGMENTATION),
        pa.field("annotation_id", pa.int64()),  # the instance it came from
        _required("kind", NAME),  # panoptic, semantic
        _required("model", NAME),
    ]
)

PROPOSALS = pa.schema(
    [
        _required("proposal_id", pa.int64()),  # image_id * 65,536 + rank
        _required("image_id", pa.int64()),
        _required("score", pa.float32()),  # objectness
        _required("bbox", BBOX),
        _required("model", NAME),
    ]
)

REVIEWS = pa.schema(
    [
        _required("review_id", pa.string()),
        _required("image_id", pa.int64()),
        pa.field("annotation_id", pa.int64()),  # null: of the image as a whole
        pa.field("verdict", NAME),  # accept, reject, flag; null: taken back
        pa.field("note", pa.string()),
        _required("reviewer", NAME),
        _required("reviewed_at", pa.timestamp("us")),  # in UTC
    ]
)
VERDICTS = ("accept", "reject", "flag")

SAMPLES = pa.schema(
    [
        _required("sample", NAME),  # its name, that of the file
        _required("image_id", pa.int64()),
        _required("key", pa.string()),
        _required("stratum", NAME),  # failed, empty, found
        _required("reason", pa.string()),
        _required("probability", pa.float64()),  # of inclusion, above 0, up to 1
        _required("weight", pa.float64()),  # 1 / probability: as many images of the job does it stand for
        pa.field("score_threshold", pa.float64()),  # what scores lower does not count; null: all does
    ]
)

TABLES: dict[str, pa.Schema] = {
    "images": IMAGES,
    "annotations": ANNOTATIONS,
    "segments": SEGMENTS,
    "proposals": PROPOSALS,
    "reviews": REVIEWS,
    "samples": SAMPLES,
}
"""Folder name -> schema, for every table of a job: those that it writes, and what people add to them afterwards."""
ADDED = ("reviews", "samples")
"""What people add: files of any name, which need no commit."""


def empty_table(name: str) -> pa.Table:
    """A table of no rows with the schema of that name."""
    return TABLES[name].empty_table()


def file_metadata(fingerprint: str, categories_json: str) -> dict[str, str]:
    """The key-value metadata of each Parquet file of a job."""
    return {
        "prelabel.schema_version": SCHEMA_VERSION,
        "prelabel.fingerprint": fingerprint,
        "prelabel.categories": categories_json,
    }


def part_name(unit: int) -> str:
    """`part-00000042.parquet`: the same in each table's folder, so that writing a unit again replaces it."""
    return f"part-{unit:08d}.parquet"
