"""Units through Ray Data: read tasks, pools of actors that hold the models, write tasks.

One unit is one block from read to write, and nothing may merge or split it: exactly one read task per unit, no largest
block size, no batch size. Read and write tasks ask for other resources than the actors, which keeps Ray from fusing
them with the models: they would wait for storage.
"""

from __future__ import annotations

import gc
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasink
from ray.exceptions import RayError

from prelabel.operators.models import ModelSpec
from prelabel.pipeline.graph.describe import Description, here
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.pool import Pool
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import SourceOptions, Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.errors import ModelError

IO_CPUS = 0.5
"""What a read or a write task asks for: two of them share the processor that the actors leave."""
DECODE_THREADS = 8
"""More would hold more decoded images at once than they are worth: 70 MB for one of 24 megapixels."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """All that a task or actor needs to know about the job; travels with each.

    Attributes:
        output: the job's URL
        options: how the sources are read
        specs: the models
        description: what they are asked for, and what they were when the job was planned
        max_pixels: of one image
        metadata: what each Parquet file carries
    """

    output: str
    options: SourceOptions
    specs: tuple[ModelSpec, ...]
    description: Description
    max_pixels: int
    metadata: dict[str, str]


def label_wave(
    work: Work, units: list[Unit], pool: Pool, max_failed_units: int, progress: Callable[[int], object]
) -> list[str]:
    """Reads, labels and commits units; the manifest says afterwards which of them are done.

    `progress` is told, about twice a second, how many images have been labeled so far. Returns what Ray Data had to
    say of units that failed.
    """
    gc.collect()  # the actors of a wave that failed hang on a cycle of references, and on to their processors
    context = DataContext.get_current().copy()
    context.target_max_block_size = None
    context.max_errored_blocks = max_failed_units
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    with DataContext.current(context), _errors_collected() as errors, _counted(progress) as counter:
        blocks = ray.data.read_datasource(_Units(work, units), override_num_blocks=len(units), num_cpus=IO_CPUS)
        for group in pool.groups:
            blocks = _through(blocks, len(units), work, pool, group, counter)
        try:
            blocks.write_datasink(_Commits(work), ray_remote_args={"num_cpus": IO_CPUS})
        except RayError as error:
            errors.append(str(error))
    return errors


def _through(
    blocks: ray.data.Dataset, units: int, work: Work, pool: Pool, group: tuple[int, ...], counter: Any
) -> ray.data.Dataset:
    """The blocks after the workers that hold one group of the models."""
    with warnings.catch_warnings():
        # Ray 2.60 deprecates further arguments, and has no other way yet to say max_task_retries; its default would
        # retry for ever a unit that kills its worker every time.
        warnings.simplefilter("ignore")
        return blocks.map_batches(
            _Worker,
            fn_constructor_args=(work, pool, group, counter),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=min(pool.fewest, units), max_size=min(pool.most, units)),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            max_task_retries=2,
        )


class _Collector(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record))


@contextmanager
def _errors_collected() -> Iterator[list[str]]:
    """What Ray Data logs as errors: with max_errored_blocks, a failed block is otherwise nowhere to be seen."""
    errors: list[str] = []
    ray_data, collector = logging.getLogger("ray.data"), _Collector(errors)
    handlers, propagate = ray_data.handlers[:], ray_data.propagate
    ray_data.handlers, ray_data.propagate = [collector], False
    try:
        yield errors
    finally:
        ray_data.handlers, ray_data.propagate = handlers, propagate


class _Count:
    """An actor that adds up the images labeled so far: Ray Data's own progress counts blocks, minutes of work each."""

    def __init__(self) -> None:
        self.images = 0

    def add(self, images: int) -> None:
        self.images += images

    def total(self) -> int:
        return self.images


@contextmanager
def _counted(progress: Callable[[int], object]) -> Iterator[Any]:
    counter = ray.remote(num_cpus=0)(_Count).remote()
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_SECONDS):
            try:
                progress(ray.get(counter.total.remote(), timeout=5))
            except RayError:
                continue

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        done.set()
        thread.join()


class _Units(Datasource):
    """One read task per unit."""

    def __init__(self, work: Work, units: list[Unit]) -> None:
        super().__init__()
        self.work = work
        self.units = units

    def get_name(self) -> str:
        return "Units"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(int(unit.sizes.sum()) for unit in self.units)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(partial(_read, self.work, unit), BlockMetadata(len(unit), int(unit.sizes.sum()), None, None))
            for unit in self.units
        ]


def _read(work: Work, unit: Unit) -> Iterator[Block]:
    with _failure_recorded(work, unit.number):
        rows = source_of_kind(unit.shard.kind, unit.shard.uri, work.options).read(unit)
    rows = rows.append_column("shard", pa.array([unit.shard.uri] * len(rows), pa.string()))
    yield rows.append_column("unit", pa.array([unit.number] * len(rows), pa.int32()))


@contextmanager
def _failure_recorded(work: Work, unit: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # What a disk or a network answers may change; what a shard or a model says of an image does not.
        final = not isinstance(error, OSError)
        with suppress(OSError):
            Manifest(Storage(work.output)).record_failure(unit, type(error).__name__, str(error), final)
        raise


class _Worker:
    """An actor that holds some of the models: adds their findings to a unit's block.

    The actor of the last models makes it one row that holds the unit's tables.
    """

    def __init__(self, work: Work, pool: Pool, group: tuple[int, ...], counter: Any) -> None:
        import torch

        from prelabel.operators.base import Task
        from prelabel.operators.label import Asked, Labeler
        from prelabel.operators.registry import operators_for
        from prelabel.schemas.categories import CategorySet

        torch.set_num_threads(pool.cpus)
        self.work = work
        self.is_last = group == pool.groups[-1]
        description, options = work.description, work.specs[0].options
        categories = CategorySet.from_json(description.categories_json)
        self.operators = operators_for(map(Task, description.tasks), categories, options)
        asked = [
            Asked(
                _load(work, place, pool),
                frozenset(map(Task, description.asked[place])),
                description.category_ids[place],
            )
            for place in group
        ]
        self.labeler = Labeler(
            asked,
            batch_size=pool.batch_size,
            max_pixels=work.max_pixels,
            threads=min(pool.cpus, DECODE_THREADS),
            progress=lambda images: counter.add.remote(images) if self.is_last else None,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        from prelabel.operators.label import make_tables

        unit = block["unit"][0].as_py()
        began, before = perf_counter(), _findings_in(block)
        with _failure_recorded(self.work, unit):
            findings = self.labeler.look(block, before)
            tables = make_tables(block, findings, self.operators) if self.is_last else {}
        seconds = perf_counter() - began + (block["seconds"][0].as_py() if before else 0.0)
        if not self.is_last:
            return _with_findings(block, findings, seconds)
        packed = {name: [_to_ipc(table)] for name, table in tables.items()}
        return pa.table({"unit": [unit], "label_seconds": [seconds], **packed})


def _load(work: Work, place: int, pool: Pool) -> Any:
    from prelabel.operators.models import load_model

    model = load_model(replace(here(work.specs[place]), device="cuda" if pool.gpus else "cpu"))
    if model.digest != work.description.digests[place]:
        raise ModelError(
            f"{model.name} has other weights than when the job was planned: the file has changed, or the factory "
            "makes new ones each time (load or seed them)"
        )
    return model


def _with_findings(block: pa.Table, findings: Any, seconds: float) -> pa.Table:
    """The unit's rows with what some models found, for the next ones."""
    found = [pickle.dumps(pair) for pair in zip(findings.facts, findings.answers, strict=True)]
    known = block.select([name for name in block.column_names if name not in ("findings", "seconds")])
    known = known.append_column("findings", pa.array(found, pa.large_binary()))
    return known.append_column("seconds", pa.array([seconds] * len(block)))


def _findings_in(block: pa.Table) -> Any:
    if "findings" not in block.column_names:
        return None
    from prelabel.operators.label import Findings

    # Our own workers' bytes, by way of Ray, which pickles all that it carries.
    pairs = [pickle.loads(pair) for pair in block["findings"].to_pylist()]
    return Findings([facts for facts, _ in pairs], [answers for _, answers in pairs])


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries().combine_chunks())
    return sink.getvalue().to_pybytes()


class _Commits(Datasink[None]):
    """Writes each unit's parts and its commit, in the write task: a callback at the end would die with the driver."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        manifest = Manifest(Storage(self.work.output))
        for block in blocks:
            for row in block.to_pylist():
                unit, timings = row.pop("unit"), {"label_seconds": round(row.pop("label_seconds"), 3)}
                tables = {name: pa.ipc.open_stream(data).read_all() for name, data in row.items()}
                with _failure_recorded(self.work, unit):
                    write_unit(manifest, unit, tables, self.work.metadata, timings)
