"""The one door for readers: the rows of committed units, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FSSpecHandler, PyFileSystem

from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.storage import Storage
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import JobError, one_line
from prelabel.schemas.job import JobRecord
from prelabel.schemas.tables import TABLES, part_name


class LabelDataset:
    """A job's output, to read.

    Attributes:
        url: of the output
        record: what `job.json` says
        categories: what could be found
        units: numbers of the committed units, sorted

    Raises:
        JobError: there is no job.
    """

    def __init__(self, url: str) -> None:
        self._storage = Storage(url)
        manifest = Manifest(self._storage)
        self.url = self._storage.url
        self.record: JobRecord = manifest.read_job()
        self.categories = CategorySet(map(Category.from_coco, self.record.categories))
        self.units = sorted(manifest.committed())

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return len(self.units) == self.record.units

    def table(self, name: str) -> ds.Dataset:
        """A pyarrow dataset over the committed parts of a table, in image order; no rows where the job wrote none.

        Raises:
            JobError: there is no table of that name.
        """
        if name not in TABLES:
            raise JobError(f"there is no table {name!r}: choose from {', '.join(TABLES)}")
        units = self.units if name in self.record.tables else []
        paths = [self._storage.path(f"{name}/{part_name(unit)}") for unit in units]
        files = PyFileSystem(FSSpecHandler(self._storage.fs))
        return ds.FileSystemDataset.from_paths(paths, schema=TABLES[name], format=_format(), filesystem=files)

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """A table's rows in image order, one row group at a time: memory does not grow with the table.

        Raises:
            JobError: there is no such table, or one of its parts is missing or damaged.
        """
        for fragment in self.table(name).get_fragments():
            try:
                yield from fragment.to_batches(columns=columns, use_threads=False, batch_readahead=1)
            except (OSError, pa.ArrowException) as error:
                reason = one_line(error)
                raise JobError(f"{fragment.path} can't be read ({reason}): put it back, or label anew") from error


def _format() -> ds.ParquetFileFormat:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False, use_buffered_stream=True)
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


def open_dataset(url: str) -> LabelDataset:
    """The committed rows of a job.

    Raises:
        JobError: there is no job at the URL.
    """
    return LabelDataset(url)
