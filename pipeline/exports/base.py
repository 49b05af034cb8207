"""What an export is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from prelabel.pipeline.image_files import ImageFiles
from prelabel.pipeline.selection import Labels
from prelabel.pipeline.storage import check_absent
from prelabel.schemas.errors import UserError
from prelabel.schemas.tables import SCHEMA_VERSION

Advance = Callable[[int], object]


@dataclass(frozen=True)
class ExportSummary:
    """What was written where.

    Attributes:
        notes: what a person should know of it, such as what the format could not hold; a line each
    """

    to: str
    images: int
    annotations: int
    notes: tuple[str, ...] = ()


class Exporter(ABC):
    """Writes committed labels in another tool's format; a subclass handles one, its name goes into the registry.

    Attributes:
        suffix: of the file that it writes; "" where it writes a folder
        tables: that the labels must have, one of them at least; no need where there are none
    """

    suffix: ClassVar[str] = ""
    tables: ClassVar[tuple[str, ...]] = ("annotations",)

    def write(self, dataset: Labels, to: str, images: str = "none", progress: Advance = int) -> ExportSummary:
        """Writes the file or folder `to`, which appears whole or not at all; on a bucket, what names the rest is last.

        Memory does not grow with the number of annotations. Each row passes the gate: `GatedDataset`.

        Args:
            dataset: all labels of a job, or those of `LabelDataset.select`
            to: path or URL, where nothing is yet
            images: "none" names them, "copy" and "link" put them beside the labels, and a URL goes before their names
            progress: is told of how many rows more have been read

        Raises:
            UserError: the labels can't be said in this format.
            JobError: there is something at `to`, it can't be written, or a label breaks a promise.
        """
        check_absent(to)
        if self.tables and not {*self.tables} & {*dataset.record.tables}:
            wanted = {"annotations": "objects: label with --task detect"}
            kind = self.tables[0]
            raise UserError(f"{dataset.url} has no {wanted.get(kind, kind)}")
        files = ImageFiles(images, dataset)
        labels = dataset.gated()
        written = self.export(cast(Labels, _Told(labels, progress)), to, files)
        notes = (*written.notes, *labels.notes(), *files.notes())
        return ExportSummary(written.to, written.images, written.annotations, notes)

    @abstractmethod
    def export(self, dataset: Labels, to: str, images: ImageFiles) -> ExportSummary:
        """Writes labels that have passed the gate, for `write`, which says the rest."""


class _Told:
    """Labels that tell how many rows have been read from them."""

    def __init__(self, dataset: Any, progress: Advance) -> None:
        self._dataset = dataset
        self._progress = progress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def batches(self, *arguments: Any, **named: Any) -> Iterator[Any]:
        """As the dataset's."""
        for batch in self._dataset.batches(*arguments, **named):
            yield batch
            self._progress(batch.num_rows)


def document_info(dataset: Labels) -> dict[str, Any]:
    """The "info" of a COCO document."""
    return {
        "description": f"labels by {', '.join(model['name'] for model in dataset.record.models)}",
        "date_created": dataset.record.created,
        "version": SCHEMA_VERSION,
        "fingerprint": dataset.record.fingerprint,
    }
