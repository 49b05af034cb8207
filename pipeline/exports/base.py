"""What an export is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from prelabel.pipeline.selection import Labels
from prelabel.schemas.tables import SCHEMA_VERSION


@dataclass(frozen=True)
class ExportSummary:
    """What was written where."""

    to: str
    images: int
    annotations: int


class Exporter(ABC):
    """Writes committed labels in another tool's format; a subclass handles one, its name goes into the registry."""

    @abstractmethod
    def write(self, dataset: Labels, to: str) -> ExportSummary:
        """Writes the file or folder `to`, which appears whole or not at all.

        Memory does not grow with the number of annotations.

        Args:
            dataset: all labels of a job, or those of `LabelDataset.select`
            to: path or URL

        Raises:
            UserError: the labels can't be said in this format.
        """


def document_info(dataset: Labels) -> dict[str, Any]:
    """The "info" of a COCO document."""
    return {
        "description": f"labels by {', '.join(model['name'] for model in dataset.record.models)}",
        "date_created": dataset.record.created,
        "version": SCHEMA_VERSION,
        "fingerprint": dataset.record.fingerprint,
    }
