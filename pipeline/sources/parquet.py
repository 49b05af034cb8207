"""Parquet files that hold the images' bytes: a binary column, or Hugging Face's struct of bytes and path."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prelabel.pipeline.sources.base import READ_SCHEMA, ImageRef, Shard, Source, Unit
from prelabel.pipeline.sources.names import escape
from prelabel.pipeline.sources.shards import check_rows, check_unchanged, find_shards, open_parquet
from prelabel.schemas.errors import SourceError, redacted

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "bytes")
KEY_NAMES = ("__key__", "key", "file_name", "filename", "path", "id")
_BATCH_ROWS = 64
_SLACK = 2**28  # bytes
_KEY_ROWS = 65_536


class ParquetSource(Source):
    """The rows of Parquet files, one image each, in the order of the file.

    The image column is `options.image_column`, or the only one that holds bytes, or the first of IMAGE_NAMES among
    several. A row's key is the first that is neither null nor empty of: the struct's path, the first text or integer
    column of KEY_NAMES, `row-N`. A row without bytes is a missing image, also where its struct names a path: a file
    beside the table is not looked for. The URI is `SHARD#row=N`.
    """

    def shards(self) -> Iterator[Shard]:
        """The Parquet files, sorted."""
        yield from find_shards("parquet", self.url, (".parquet",))

    def index(self, shard: Shard) -> Iterator[ImageRef]:
        """One image per row, its size estimated as its row group's mean; only the keys are read."""
        with open_parquet(shard) as parquet:
            image = image_field(shard, parquet.schema_arrow, self.options.image_column)
            row = 0
            for group in range(parquet.num_row_groups):
                size = _mean_size(parquet.metadata.row_group(group), image.name)
                for key in _keys(parquet, group, row, image):
                    yield ImageRef(key, row, size)
                    row += 1
            check_rows(parquet, row)

    def read(self, unit: Unit) -> pa.Table:
        """The bytes of the unit's rows, from the row groups that hold them."""
        check_unchanged(unit.shard)
        with open_parquet(unit.shard) as parquet:
            image = image_field(unit.shard, parquet.schema_arrow, self.options.image_column)
            data = _read_rows(parquet, image, int(unit.offsets[0]), int(unit.offsets[-1]) + 1)
        large = pc.fill_null(pc.greater(pc.binary_length(data), self.options.max_image_bytes), False)
        gone = data.is_null()
        text = pa.scalar(None, pa.string())
        columns = [
            pa.array(unit.image_ids),
            unit.keys,
            [f"{unit.shard.uri}#row={row}" for row in unit.offsets],
            pc.if_else(large, None, data),
            pc.if_else(gone, "missing", pc.if_else(large, "too_large", text)),
            pc.if_else(
                gone,
                "the table holds no bytes in this row",
                pc.if_else(large, f"more than {self.options.max_image_bytes} bytes", text),
            ),
        ]
        return pa.table(columns, schema=READ_SCHEMA)


def holds_images(shard: Shard, image_column: str | None) -> bool:
    """Whether a Parquet file holds images rather than their URIs; SourceError if it is damaged."""
    with open_parquet(shard) as parquet:
        schema = parquet.schema_arrow
    names = schema.names if image_column is None else [image_column]
    return any(_is_image_type(_type_of(schema, name)) for name in names)


def image_field(shard: Shard, schema: pa.Schema, image_column: str | None) -> pa.Field:
    """The column that holds the images.

    Raises:
        SourceError: there is none, or it is not clear which.
    """
    fields = {field.name: field for field in schema if _is_image_type(field.type)}
    if image_column is not None:
        fields = {image_column: fields[image_column]} if image_column in fields else {}
    if len(fields) == 1:
        return next(iter(fields.values()))
    if not fields:
        named = f"column {image_column!r}" if image_column else "no column"
        raise SourceError(
            f"{shard.uri}: {named} holds {'no ' if image_column else ''}image bytes; --image-column names the one that "
            f"does, among {', '.join(schema.names)}"
        )
    for name in IMAGE_NAMES:
        if name in fields:
            return fields[name]
    raise SourceError(f"{shard.uri}: say with --image-column which holds the images: {', '.join(fields)}")


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        kind = _type_of(kind, "bytes")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _key_columns(schema: pa.Schema, image: pa.Field) -> list[str]:
    """The columns to read keys from, the first wins: the struct's path (as `image.path`), one of KEY_NAMES."""
    columns = []
    if pa.types.is_struct(image.type) and _is_text(_type_of(image.type, "path")):
        columns.append(f"{image.name}.path")
    named = (
        name for name in KEY_NAMES if _is_text(_type_of(schema, name)) or pa.types.is_integer(_type_of(schema, name))
    )
    return [*columns, *islice(named, 1)]


def _type_of(fields: pa.Schema | pa.StructType, name: str) -> pa.DataType:
    """The type of a field by name; null where there is none, or more than one."""
    index = fields.get_field_index(name)
    return fields.field(index).type if index >= 0 else pa.null()


def _key_values(batch: pa.RecordBatch, column: str, image: pa.Field) -> pa.Array:
    """The values of a key column as large_binary, null where empty."""
    if column == f"{image.name}.path":
        values = pc.struct_field(batch.column(image.name), "path")
    else:
        values = batch.column(column)
    if pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    raw = values.cast(pa.large_binary())
    return pc.if_else(pc.equal(raw, b""), None, raw)


def _keys(parquet: pq.ParquetFile, group: int, first: int, image: pa.Field) -> Iterator[str]:
    """The keys of a row group that begins with the row `first`."""
    columns = _key_columns(parquet.schema_arrow, image)
    if not columns:
        yield from _row_names(first, parquet.metadata.row_group(group).num_rows)
        return
    for batch in parquet.iter_batches(_KEY_ROWS, row_groups=[group], columns=columns):
        names = [_key_values(batch, column, image) for column in columns]
        names.append(pa.array(_row_names(first, len(batch)), pa.large_binary()))
        keys = (escape(key.decode("utf-8", "surrogateescape")) for key in pc.coalesce(*names).to_pylist())
        yield from (redacted(key) if "://" in key else key for key in keys)  # where an image once came from
        first += len(batch)


def _row_names(first: int, count: int) -> list[str]:
    return [f"row-{row}" for row in range(first, first + count)]


def _mean_size(group: pq.RowGroupMetaData, column: str) -> int:
    return _stored_bytes(group, column) // max(group.num_rows, 1)


def _stored_bytes(group: pq.RowGroupMetaData, column: str) -> int:
    """Of a column, without compression, but with a value that stands in a dictionary counted once."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(f"{column}."))


def _batch_rows(stored: int) -> int:
    """So few that they fit in memory even if each is all that is stored."""
    return max(1, min(_BATCH_ROWS, _SLACK // max(stored, 1)))


def _read_rows(parquet: pq.ParquetFile, image: pa.Field, start: int, end: int) -> pa.Array:
    """The image bytes of the rows [start, end), as large_binary, from the row groups that hold them, batch by batch."""
    counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    firsts = list(accumulate(counts, initial=0))
    groups = [group for group in range(len(counts)) if firsts[group] < end and start < firsts[group + 1]]
    is_struct = pa.types.is_struct(image.type)
    column = f"{image.name}.bytes" if is_struct else image.name
    row, pieces = firsts[groups[0]], []
    stored = [_stored_bytes(parquet.metadata.row_group(group), column) for group in groups]
    for batch in parquet.iter_batches(_batch_rows(max(stored)), row_groups=groups, columns=[column]):
        values = batch.column(0)[max(start - row, 0) : max(end - row, 0)]
        pieces.append((pc.struct_field(values, "bytes") if is_struct else values).cast(pa.large_binary()))
        row += len(batch)
        if sum(piece.nbytes for piece in pieces) > sum(stored) + _SLACK:
            raise pa.ArrowInvalid(f"a few bytes stand for many times as many in the rows {start}-{end}")
        if row >= end:
            break
    if sum(map(len, pieces)) != end - start:
        raise pa.ArrowInvalid(f"the rows {start}-{end} are not all there")
    return pa.concat_arrays(pieces)
