"""An imported document becomes a job of its own: a plan, parts and commits like any other's."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import ValidationError

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.imports.base import Importer
from prelabel.pipeline.imports.images import DocumentImages, Images, JobImages, Named
from prelabel.pipeline.imports.rows import Row, object_rows
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.sources.base import SourceOptions, Unit
from prelabel.pipeline.storage import Storage, writing_folder
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.categories import Category, CategorySet, unite
from prelabel.schemas.errors import UserError, redacted
from prelabel.schemas.job import Job, JobRecord, fingerprint, in_one_line
from prelabel.schemas.tables import ROWS_PER_IMAGE, TABLES, file_metadata

Advance = Callable[[int], object]
WHERE = {"sources", *(field.name for field in fields(SourceOptions))}
"""Fields of `Labels` that say where images are."""


@dataclass(frozen=True)
class ImportSummary:
    """What was written where.

    Attributes:
        left_out: images of the other job that could be read, and which the document does not hold
    """

    output: str
    images: int
    annotations: int
    left_out: int = 0


def write_import(
    importer: Importer,
    output: str,
    of: LabelDataset | None = None,
    images: str | None = None,
    progress: Advance = int,
) -> ImportSummary:
    """Writes a document's labels as a job, whole or not at all; on a bucket, what makes it a job is last.

    Everything is read and checked first. Memory grows with the number of images, by a few hundred bytes each, and not
    with that of their objects.

    Args:
        importer: of the document
        output: path or URL of the new job, where nothing is yet
        of: the job that the document was exported from: its images are found there, and keep their rows
        images: without `of`, the folder that file names are relative to; None: nobody looks at the images
        progress: is told of how many images more have been read

    Raises:
        UserError: the document can't be understood, or is of other images than the job.
        SourceError: the folder of images can't be listed.
        JobError: there is something at `output`, or it can't be written.
    """
    target = Storage(output)
    Manifest(target).check_free()
    document, folder = redacted(Storage(importer.url).url), images and Storage(images).url
    categories, names = _categories(importer.categories(), of)
    with tempfile.TemporaryFile() as file:
        spool = _Spool(file)
        with _naming(importer):
            named = list(_read(importer, names, spool, progress))
            found: Images = JobImages(named, of) if of else DocumentImages(named, document, folder)
        record = _record(target.url, _labels(importer, of, folder or document), importer.digest, categories)
        with writing_folder(output) as place:
            writing = _Writing(Manifest(Storage(place)), record, found, spool)
            writing.write()
    return ImportSummary(target.url, writing.images, writing.annotations, found.left_out)


def _categories(document: CategorySet, of: LabelDataset | None) -> tuple[CategorySet, dict[str, Category]]:
    """What the new job may find, and which of these the document's names stand for; ids are those of the job `of`."""
    united, ids = unite([of.categories, document] if of else [document])
    return united, {one.name: united[ids[-1][one.id]] for one in document}


@contextmanager
def _naming(importer: Importer) -> Iterator[None]:
    """Puts the document's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise error if importer.url in str(error) else UserError(f"{importer.url}: {error}") from None


def _read(importer: Importer, names: dict[str, Category], spool: _Spool, progress: Advance) -> Iterator[Named]:
    """What the document says of each image; puts the rows of its objects into the spool."""
    for image in importer.images():
        spool.add(object_rows(image, names))
        yield Named(image.key, image.height, image.width, image.image_id)
        progress(1)
    if not spool.places:
        raise UserError("there are no images in it")


class _Spool:
    """Rows of images, on disk until their place in the plan is known."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.places: list[int] = []

    def add(self, rows: list[Row]) -> None:
        """Keeps the rows of the next image."""
        self.places.append(self._file.tell())
        pickle.dump(rows, self._file)

    def rows(self, number: int) -> list[Row]:
        """The rows of an image; none of a number below 0."""
        if number < 0:
            return []
        self._file.seek(self.places[number])
        rows: list[Row] = pickle.load(self._file)
        return rows


def _labels(importer: Importer, of: LabelDataset | None, source: str) -> dict[str, Any]:
    """The fields of `Labels`: where the images are, for those who read them again, and who labeled them."""
    where = of.record.job.labels.model_dump(include=WHERE) if of else {"sources": (source,)}
    return where | {"models": ({"name": f"import:{importer.name}"},)}


def _record(output: str, labels: dict[str, Any], digest: str, categories: CategorySet) -> JobRecord:
    try:
        job = Job.model_validate({"output": output, "labels": labels})
    except ValidationError as error:
        raise UserError(in_one_line(error)) from error
    return JobRecord(
        job=job,
        fingerprint=fingerprint(job.labels, [digest], categories.digest),
        models=[{"name": model.name, "digest": digest} for model in job.labels.models],
        tasks=(),
        tables=("annotations", "images"),
        categories=categories.to_coco(),
        images=0,
        units=0,
        versions={"prelabel": version("prelabel")},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


class _Writing:
    """The part of an import that writes.

    Attributes:
        images, annotations: rows, so far
        tasks: that the rows could come from, so far
    """

    def __init__(self, manifest: Manifest, record: JobRecord, found: Images, spool: _Spool) -> None:
        self._manifest, self._record, self._found, self._spool = manifest, record, found, spool
        self._categories = CategorySet(map(Category.from_coco, record.categories))
        self.images = self.annotations = 0
        self.tasks = {"detect"}

    def write(self) -> None:
        """Plan, units, and job.json last: it makes all of it count."""
        units, images = self._manifest.write_plan(self._found.units())
        metadata = file_metadata(self._record.fingerprint, self._categories.to_json())
        rows = self._found.rows()
        for unit in self._found.units():
            write_unit(self._manifest, unit.number, self._tables(unit, rows), metadata, {})
        self._manifest.storage.delete_temporary()
        changes = {"units": units, "images": images, "tasks": tuple(sorted(self.tasks))}
        self._manifest.write_job(self._record.model_copy(update=changes))

    def _tables(self, unit: Unit, rows: Iterator[tuple[Row, int]]) -> dict[str, pa.Table]:
        images: list[Row] = []
        annotations: list[Row] = []
        for image_id, (image, number) in zip(unit.image_ids, rows, strict=False):
            objects = self._spool.rows(number)
            own = {"image_id": image_id, "unit": unit.number, "shard": unit.shard.uri, "num_annotations": len(objects)}
            images.append(image | own)
            annotations += (self._annotation(image_id, rank, row) for rank, row in enumerate(objects))
        self.images += len(images)
        self.annotations += len(annotations)
        found = {"images": images, "annotations": annotations}
        return {name: pa.Table.from_pylist(some, schema=TABLES[name]) for name, some in found.items()}

    def _annotation(self, image_id: int, rank: int, row: Row) -> dict[str, Any]:
        if row["segmentation"]:
            self.tasks.add("segment_instances")
        if row["keypoints"]:
            self.tasks.add("detect_keypoints")
        ids = {"annotation_id": image_id * ROWS_PER_IMAGE + rank, "image_id": image_id}
        return ids | row | {"model": self._record.models[0]["name"]}
