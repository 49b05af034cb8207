"""COCO documents, written as streams: what is held in memory does not grow with the number of objects.

The format is https://cocodataset.org/#format-data and, for results, https://cocodataset.org/#format-results. Numbers
are the shortest that read back as the same float32, so 0.1 and not 0.10000000149011612.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from prelabel.schemas.categories import CategorySet
from prelabel.schemas.json_texts import NotPlainError, Piece, json_rows

_ROWS = 16_384
"""As many rows are put into JSON at a time, however large the batches are."""
MORE_OF_IMAGES = ("coco_url", "sampling_reason", "sampling_weight")
"""Fields that images have where there are such columns."""


class Counts(NamedTuple):
    """What a document holds."""

    images: int
    annotations: int


def write_instances(
    out: BinaryIO,
    images: Iterable[pa.RecordBatch],
    annotations: Iterable[pa.RecordBatch],
    categories: CategorySet,
    info: dict[str, Any],
) -> Counts:
    """Write what pycocotools, labeling tools and trainers take as ground truth, with the scores besides.

    A mask is compressed run-length encoding, which says nothing about crowds: `iscrowd` is the table's. Where there
    is no mask `segmentation` is an empty list, for readers that expect the key.

    Args:
        out: where to; it is written from front to back
        images: of the images table, columns image_id, key, width, height and status, and those of MORE_OF_IMAGES
            that there are; the failed are left out
        annotations: of the annotations table, all columns but category, keypoints and model; read after the images
        categories: that the annotations may have
        info: the document's "info"
    """
    return _write_document(out, images, _parts(annotations, _instances), categories, info)


def write_keypoints(
    out: BinaryIO,
    images: Iterable[pa.RecordBatch],
    annotations: Iterable[pa.RecordBatch],
    categories: CategorySet,
    info: dict[str, Any],
) -> Counts:
    """Write the like of COCO's person_keypoints: as `write_instances`, of the objects that have keypoints alone.

    `keypoints` is x, y in pixels and visibility of each in turn; `num_keypoints` counts those that are not 0, the
    ones that were placed. Their names and skeleton are the categories'.
    """
    return _write_document(out, images, _parts(annotations, _dumped(_keypoint_objects)), categories, info)


def write_panoptic(
    out: BinaryIO,
    images: Iterable[pa.RecordBatch],
    annotations: Iterable[dict[str, Any]],
    categories: CategorySet,
    info: dict[str, Any],
) -> Counts:
    """Write the document of https://cocodataset.org/#format-data, section 4; whose PNGs are the caller's.

    Args:
        out: where to; it is written from front to back
        images: as for `write_instances`
        annotations: one of each image: image_id, file_name of its PNG, and segments_info; read after the images
        categories: that the segments may have
        info: the document's "info"
    """
    return _write_document(out, images, (_dump([one]) for one in annotations), categories, info)


def _write_document(
    out: BinaryIO,
    images: Iterable[pa.RecordBatch],
    annotations: Iterable[_Part],
    categories: CategorySet,
    info: dict[str, Any],
) -> Counts:
    out.write(b'{"info":' + orjson.dumps(info) + b',"licenses":[],"categories":' + categories.to_json().encode())
    out.write(b',"images":[')
    num_images = _write_list(out, _parts(images, _dumped(_image_objects)))
    out.write(b'],"annotations":[')
    num_annotations = _write_list(out, annotations)
    out.write(b"]}\n")
    return Counts(num_images, num_annotations)


def write_results(out: BinaryIO, annotations: Iterable[pa.RecordBatch]) -> int:
    """Write the list of detections that `COCO.loadRes` and evaluation servers take; returns their number.

    `loadRes` takes the area of a result with a box from the box: to evaluate masks or
    keypoints by their own size, drop "bbox".

    Args:
        out: where to; it is written from front to back
        annotations: of the annotations table, columns image_id, category_id, bbox, score, segmentation and keypoints
    """
    out.write(b"[")
    count = _write_list(out, _parts(annotations, _results))
    out.write(b"]\n")
    return count


def write_proposals(out: BinaryIO, proposals: Iterable[pa.RecordBatch], category_id: int = 1) -> int:
    """Write proposals as results of one category, to evaluate with `useCats = 0`; returns their number.

    Args:
        out: where to; it is written from front to back
        proposals: of the proposals table, columns image_id, bbox and score
        category_id: of all; pycocotools passes over results of a category that the truth does not have
    """

    def results(batch: pa.RecordBatch) -> list[dict[str, Any]]:
        columns = (_values(batch[name]) for name in ("image_id", "score"))
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for box, image_id, score in zip(_boxes(batch), *columns, strict=True)
        ]

    out.write(b"[")
    count = _write_list(out, _parts(proposals, _dumped(results)))
    out.write(b"]\n")
    return count


class _Part(NamedTuple):
    """Some objects of a list: how many, and their JSON with a comma between each two."""

    number: int
    text: bytes | memoryview


def _write_list(out: BinaryIO, parts: Iterable[_Part]) -> int:
    """Write the objects of all parts between brackets that are there already; returns their number."""
    count = 0
    for part in parts:
        if part.number:
            out.write(b",\n" if count else b"\n")
            out.write(part.text)
            count += part.number
    return count


def _parts(batches: Iterable[pa.RecordBatch], to_part: Callable[[pa.RecordBatch], _Part]) -> Iterator[_Part]:
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield to_part(batch.slice(start, _ROWS))


def _dumped(to_objects: Callable[[pa.RecordBatch], list[dict[str, Any]]]) -> Callable[[pa.RecordBatch], _Part]:
    return lambda batch: _dump(to_objects(batch))


def _dump(objects: list[dict[str, Any]]) -> _Part:
    return _Part(len(objects), memoryview(orjson.dumps(objects, option=orjson.OPT_SERIALIZE_NUMPY))[1:-1])


def _instances(batch: pa.RecordBatch) -> _Part:
    return _column_wise(_instance_pieces, batch) or _dump(_instance_objects(batch))


def _results(batch: pa.RecordBatch) -> _Part:
    return _column_wise(_result_pieces, batch) or _dump(_result_objects(batch))


def _column_wise(to_pieces: Callable[[pa.RecordBatch], list[Piece]], batch: pa.RecordBatch) -> _Part | None:
    """The part that orjson would make, outside of the GIL; None where it may come out differently."""
    try:
        return _Part(len(batch), json_rows(to_pieces(batch)))
    except NotPlainError:
        return None


def _instance_pieces(batch: pa.RecordBatch) -> list[Piece]:
    """As `_instance_objects`."""
    ids = ['{"id":', batch["annotation_id"], *_ids_and_box(batch, ',"image_id":')]
    mask = [',"segmentation":', *(_mask_pieces(batch) or ["[]"])]
    crowd = [',"area":', batch["area"], ',"iscrowd":', batch["iscrowd"].cast(pa.int32())]
    return [*ids, *mask, *crowd, ',"score":', batch["score"], "}"]


def _result_pieces(batch: pa.RecordBatch) -> list[Piece]:
    """As `_result_objects`."""
    if batch["keypoints"].null_count < len(batch):
        raise NotPlainError("keypoints")
    mask = _mask_pieces(batch)
    score = [',"score":', batch["score"], *([',"segmentation":'] if mask else [])]
    return [*_ids_and_box(batch, '{"image_id":'), *score, *mask, "}"]


def _ids_and_box(batch: pa.RecordBatch, begin: str) -> list[Piece]:
    x, y, width, height = batch["bbox"].flatten()
    ids = [begin, batch["image_id"], ',"category_id":', batch["category_id"]]
    return [*ids, ',"bbox":[', x, ",", y, ",", width, ",", height, "]"]


def _mask_pieces(batch: pa.RecordBatch) -> list[Piece]:
    """Of the masks, none where no object has one."""
    counts, height, width = _runs(batch)
    if counts.null_count == len(counts):
        return []
    return ['{"size":[', height, ",", width, '],"counts":', counts, "}"]


def _image_objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    ok = batch.filter(pc.equal(batch["status"].cast(pa.string()), "ok"))
    names = {"id": "image_id", "file_name": "key", "width": "width", "height": "height"}
    names |= {name: name for name in MORE_OF_IMAGES if name in ok.schema.names}
    columns = (_values(ok[name]) for name in names.values())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _instance_objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    columns = (
        _values(batch[name]) for name in ("annotation_id", "image_id", "category_id", "area", "iscrowd", "score")
    )
    return [
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "segmentation": mask or [],
            "area": area,
            "iscrowd": int(iscrowd),
            "score": score,
        }
        for box, mask, annotation_id, image_id, category_id, area, iscrowd, score in zip(
            _boxes(batch), _masks(batch), *columns, strict=True
        )
    ]


def _keypoint_objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    posed = batch.filter(batch["keypoints"].is_valid())
    return [
        instance | {"num_keypoints": sum(visible > 0 for visible in points[2::3]), "keypoints": points}
        for instance, points in zip(_instance_objects(posed), _keypoints(posed), strict=True)
        if points
    ]


def _result_objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    columns = (_values(batch[name]) for name in ("image_id", "category_id", "score"))
    objects = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for box, image_id, category_id, score in zip(_boxes(batch), *columns, strict=True)
    ]
    for result, mask in zip(objects, _masks(batch), strict=True):
        if mask is not None:
            result["segmentation"] = mask
    for result, points in zip(objects, _keypoints(batch), strict=True):
        if points is not None:
            result["keypoints"] = points
    return objects


def _boxes(batch: pa.RecordBatch) -> np.ndarray:
    """float32 (N, 4): x, y, width, height in pixels."""
    return np.stack([side.to_numpy() for side in batch["bbox"].flatten()], axis=1)


def _masks(batch: pa.RecordBatch) -> list[dict[str, Any] | None]:
    counts, heights, widths = map(_values, _runs(batch))
    return [
        None if runs is None else {"size": (height, width), "counts": runs}
        for runs, height, width in zip(counts, heights, widths, strict=True)
    ]


def _runs(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Counts, null where there is no mask; heights, widths."""
    sizes = pc.struct_field(batch["segmentation"], "size")
    heights, widths = (pc.list_element(sizes, k).fill_null(0) for k in (0, 1))
    return pc.struct_field(batch["segmentation"], "counts"), heights, widths


def _keypoints(batch: pa.RecordBatch) -> list[list[Any] | None]:
    """x, y and visibility of each point in turn; visibility is a whole number, as COCO has it."""
    column = batch["keypoints"].to_numpy(zero_copy_only=False)
    return [None if points is None else _with_whole_visibility(points) for points in column]


def _with_whole_visibility(points: np.ndarray) -> list[Any]:
    values: list[Any] = list(points)
    values[2::3] = points[2::3].astype(int).tolist()
    return values


def _values(column: pa.Array) -> Any:
    """As `to_pylist`, many times faster; float32 stays NumPy's, which orjson writes in its shortest form."""
    values = column.to_numpy(zero_copy_only=False)
    return values if values.dtype == np.float32 else values.tolist()
