"""The one door for readers: the rows of committed units, and no others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from prelabel.pipeline.manifest import Manifest, waiting
from prelabel.pipeline.storage import Storage
from prelabel.schemas import rle
from prelabel.schemas.categories import Category, CategorySet
from prelabel.schemas.errors import JobError, UserError, one_line
from prelabel.schemas.job import JobRecord
from prelabel.schemas.tables import ADDED, TABLES, part_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from polars import LazyFrame

    from prelabel.pipeline.notebook import LabeledImage
    from prelabel.pipeline.selection import Selection


class LabelDataset:
    """A job's output, to read.

    Attributes:
        url: of the output
        storage: the output folder
        record: what `job.json` says
        categories: what could be found
        units: numbers of the committed units, sorted

    Raises:
        JobError: there is no job.
    """

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)
        manifest = Manifest(self.storage)
        self.url = self.storage.url
        self.record: JobRecord = manifest.read_job()
        self.categories = CategorySet(map(Category.from_coco, self.record.categories))
        self.units = sorted(manifest.committed())
        self._amended = manifest.amended()

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return len(self.units) == self.record.units

    def parts(self, name: str) -> list[str]:
        """The committed parts of a table in image order, as named in the storage; none where the job wrote none.

        Raises:
            JobError: there is no table of that name.
        """
        if name not in TABLES:
            raise JobError(f"there is no table {name!r}: choose from {', '.join(TABLES)}")
        if name in ADDED:
            return [f"{name}/{part}" for part in self.storage.names(name) if part.endswith(".parquet")]
        units = self.units if name in self.record.tables else []
        return [self._part(name, unit) for unit in units]

    def _part(self, name: str, unit: int) -> str:
        path = f"{name}/{part_name(unit)}"
        return waiting(path) if unit in self._amended else path

    def table(self, name: str) -> ds.Dataset:
        """A pyarrow dataset over the committed parts of a table, in image order; no rows where the job wrote none.

        Raises:
            JobError: there is no table of that name.
        """
        return self._over(name, self.parts(name))

    def _over(self, name: str, parts: list[str]) -> ds.Dataset:
        paths = [self.storage.path(part) for part in parts]
        # Arrow's own where it can be: calling back into Python, it swallows a Ctrl-C that comes just then
        files = LocalFileSystem() if self.storage.is_local else PyFileSystem(FSSpecHandler(self.storage.fs))
        return ds.FileSystemDataset.from_paths(paths, schema=TABLES[name], format=_format(), filesystem=files)

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """A table's rows in image order, one row group at a time: memory does not grow with the table.

        Raises:
            JobError: there is no such table, or one of its parts is missing or damaged.
        """
        return self.read_parts(name, self.parts(name), columns=columns)

    def read_parts(self, name: str, parts: list[str], **scan: Any) -> Iterator[pa.RecordBatch]:
        """The rows of some parts of a table, a row group at a time; `scan` is what a pyarrow fragment's scanner takes.

        Raises:
            JobError: a part is missing or damaged.
        """
        for fragment in self._over(name, parts).get_fragments():
            with reading_part(fragment.path):
                yield from fragment.to_batches(**scan, use_threads=False, batch_readahead=1)

    @property
    def origin(self) -> LabelDataset:
        """The job's labels, all of them: itself."""
        return self

    def gated(self) -> LabelDataset:
        """The same labels for an export: `batches` checks them, and raises JobError where one breaks a promise."""
        from prelabel.pipeline.gate import GatedDataset

        return GatedDataset(self.url)

    def notes(self) -> tuple[str, ...]:
        """What a person should know of the labels that `batches` has read."""
        return ()

    def rows(self, name: str, image_id: int) -> pa.Table:
        """An image's rows of a table, found by reading one part; none where the image's unit is not committed.

        Raises:
            JobError: there is no such table, or one of its parts is missing or damaged.
        """
        place = bisect_right(self.units, image_id, key=self._first_image_id) - 1
        parts = self.parts(name)[max(place, 0) : place + 1]
        batches = self.read_parts(name, parts, filter=pc.field("image_id") == image_id)
        return pa.Table.from_batches(batches, TABLES[name])

    def _first_image_id(self, unit: int) -> int:
        first = next(self.read_parts("images", [self._part("images", unit)], columns=["image_id"]))
        return int(first["image_id"][0].as_py())

    def masks(self, image_id: int) -> dict[int, np.ndarray]:
        """The masks of an image's annotations, bool (height, width), by annotation_id; those without one are left out.

        Raises:
            JobError: a part is missing or damaged.
        """
        rows = self.rows("annotations", image_id).select(["annotation_id", "segmentation"]).to_pylist()
        return {row["annotation_id"]: self.mask(row["segmentation"]) for row in rows if row["segmentation"]}

    def select(
        self,
        score_threshold: float | Mapping[str, float] | None = None,
        categories: Iterable[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
    ) -> Selection:
        """Some of the labels, for an exporter to write, or to read with its `batches`; nothing is renumbered.

        Args:
            score_threshold: lowest score of an object, for all categories or by category name; what has no score (a
                stuff segment) stays; images stay
            categories: names; objects of others are left out; images stay
            where: an SQL expression over the columns of images and annotations, and verdict, reviewer and note of the
                last review of the object, or else of its image. An object is kept if it holds for it. An image is kept
                if it holds for one of its objects, or for the image by itself, when the columns of annotations are
                NULL. Segments and proposals follow their image.
            limit: most images, of those that could be read

        Raises:
            UserError: there is no such category, or the expression doesn't fit the tables.
            JobError: a part is missing or damaged.
        """
        from prelabel.pipeline.selection import Selection

        return Selection(self, score_threshold, categories, where, limit)

    def image(self, which: int | str) -> LabeledImage:
        """An image and what was found in it; in a notebook it shows itself.

        Args:
            which: its image_id or its key

        Raises:
            UserError: no committed unit has it.
            JobError: a part is missing or damaged.
        """
        from prelabel.pipeline.notebook import find_image

        return find_image(self, which)

    def _repr_html_(self) -> str:
        from prelabel.pipeline.notebook import dataset_html

        return dataset_html(self)

    @staticmethod
    def mask(segmentation: Mapping[str, Any]) -> np.ndarray:
        """The mask of a `segmentation` as the tables have it: bool (height, width).

        Raises:
            UserError: it is no run-length mask.
        """
        return rle.decode(rle.Rle.from_coco(segmentation))

    def duckdb(self) -> DuckDBPyConnection:
        """DuckDB with a view for each table; it can read and write files of yours, too.

        Raises:
            JobError: a part is missing or damaged.
        """
        from prelabel.pipeline.query import connect

        return connect(self, sealed=False)

    def polars(self, name: str) -> LazyFrame:
        """A Polars frame over a table; on a bucket, Polars is given all columns and rows that pyarrow can't leave out.

        Raises:
            JobError: there is no such table.
            UserError: Polars is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise UserError("Polars is not installed: pip install polars") from error
        paths = [self.storage.path(part) for part in self.parts(name)]
        if paths and self.storage.is_local:
            return polars.scan_parquet(paths, glob=False)
        return polars.scan_pyarrow_dataset(self.table(name))


@contextmanager
def reading_part(path: str) -> Iterator[None]:
    """Raises JobError, which names the part, where it is missing, damaged, or not of its table."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise JobError(f"{path} can't be read ({one_line(error)}): put it back, or label anew") from error


def _format() -> ds.ParquetFileFormat:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False, use_buffered_stream=True)
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


def open_dataset(url: str) -> LabelDataset:
    """The committed rows of a job.

    Raises:
        JobError: there is no job at the URL.
    """
    return LabelDataset(url)
