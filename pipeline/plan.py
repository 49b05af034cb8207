"""The plan: every image of every source, cut into units, once, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import pyarrow as pa

from prelabel.operators.threads import map_ahead
from prelabel.pipeline.sources import open_source
from prelabel.pipeline.sources.base import ImageRef, Shard, Source, SourceOptions, Unit
from prelabel.schemas.errors import SourceError
from prelabel.schemas.job import Labels

PLAN_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("shard_size", pa.int64()),
        pa.field("shard_version", pa.string()),
        pa.field("first_image_id", pa.int64(), nullable=False),
        pa.field("keys", pa.list_(pa.string()), nullable=False),
        pa.field("offsets", pa.list_(pa.int64()), nullable=False),
        pa.field("sizes", pa.list_(pa.int64()), nullable=False),
    ]
)
INDEX_THREADS = 8


@dataclass(frozen=True)
class Limits:
    """Where a shard is cut."""

    unit_images: int
    unit_bytes: int


def source_options(labels: Labels) -> SourceOptions:
    """How the job's sources are to be read."""
    return SourceOptions(**{field.name: getattr(labels, field.name) for field in fields(SourceOptions)})


def plan_units(labels: Labels, progress: Callable[[int], object] = int) -> Iterator[Unit]:
    """The job's units in plan order; `progress` is told how many images are planned so far.

    Raises:
        SourceError: a source is absent, damaged or without any image.
    """
    limits = Limits(labels.unit_images, labels.unit_bytes)
    number, images = 0, 0
    for shard, refs in _indexed_shards(labels):
        for run in _runs(islice(refs, None if labels.limit is None else labels.limit - images), limits):
            yield _unit(number, shard, images, run)
            number, images = number + 1, images + len(run)
            progress(images)
        if images == labels.limit:
            return
    if images == 0:
        names = ", ".join(labels.sources)
        raise SourceError(f"no images in {names}; check the path, or name the files to take with --include GLOB")


def _indexed_shards(labels: Labels) -> Iterator[tuple[Shard, Iterable[ImageRef]]]:
    options = source_options(labels)
    sources = [open_source(url, options) for url in labels.sources]
    shards: dict[str, tuple[Source, Shard]] = {}
    for source in sources:
        shards |= {shard.uri: (source, shard) for shard in source.shards()}
    ordered = [shards[uri] for uri in sorted(shards)]
    if len(ordered) == 1:  # as a folder is: its images are not held in memory at once
        yield from ((shard, _index(source, shard)) for source, shard in ordered)
    else:
        yield from map_ahead(lambda one: (one[1], list(_index(*one))), ordered, INDEX_THREADS, INDEX_THREADS)


def _index(source: Source, shard: Shard) -> Iterator[ImageRef]:
    try:
        yield from source.index(shard)
    except OSError as error:
        raise SourceError(f"{shard.uri} can't be read for now ({error}): give the same command again later") from error


def _runs(refs: Iterable[ImageRef], limits: Limits) -> Iterator[list[ImageRef]]:
    """Cuts so that no run is over a limit, unless a single image is."""
    run: list[ImageRef] = []
    size = 0
    for ref in refs:
        if run and (len(run) == limits.unit_images or size + ref.size > limits.unit_bytes):
            yield run
            run, size = [], 0
        run.append(ref)
        size += ref.size
    if run:
        yield run


def _unit(number: int, shard: Shard, first_image_id: int, refs: list[ImageRef]) -> Unit:
    keys, offsets, sizes = zip(*refs, strict=True)
    return Unit(number, shard, first_image_id, list(keys), np.array(offsets, np.int64), np.array(sizes, np.int64))


def to_table(units: Iterable[Unit]) -> pa.Table:
    """Units as rows of the plan."""
    rows = [
        {
            "unit": unit.number,
            "kind": unit.shard.kind,
            "shard": unit.shard.uri,
            "shard_size": unit.shard.size,
            "shard_version": unit.shard.version,
            "first_image_id": unit.first_image_id,
            "keys": unit.keys,
            "offsets": unit.offsets,
            "sizes": unit.sizes,
        }
        for unit in units
    ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def from_table(table: pa.Table) -> Iterator[Unit]:
    """The units behind rows of the plan."""
    for batch in table.to_batches(max_chunksize=64):
        for row in batch.to_pylist():
            shard = Shard(row["kind"], row["shard"], row["shard_size"], row.get("shard_version"))
            arrays = np.array(row["offsets"], np.int64), np.array(row["sizes"], np.int64)
            yield Unit(row["unit"], shard, row["first_image_id"], row["keys"], *arrays)
