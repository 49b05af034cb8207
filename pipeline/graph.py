"""The job on Ray Data: read tasks, a pool of actors that hold the model, write tasks. The only module that imports ray.

One unit is one block from read to write, and nothing may merge or split it: exactly one read task per unit, no largest
block size, no batch size. Read and write tasks ask for other resources than the actors, which keeps Ray from fusing
them with the model: it would wait for storage.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, TextIO, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasink
from ray.exceptions import RayError

from prelabel.operators.models import ModelSpec
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.pool import Pool
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import SourceOptions, Unit
from prelabel.pipeline.storage import Storage, local_copy
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.errors import ModelError, PrelabelError, UserError

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
        spec: the model
        tasks: what it is asked for
        max_pixels: of one image
        digest: of the weights that the job was planned with
        metadata: what each Parquet file carries
    """

    output: str
    options: SourceOptions
    spec: ModelSpec
    tasks: tuple[str, ...]
    max_pixels: int
    digest: str
    metadata: dict[str, str]


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, quiet: the caller's if it is there, the cluster at the address, or one of our own on this machine."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")  # which Ray would follow anyway
    # One processor more than there are: storage waits, mostly, and must never wait for the model.
    own = {} if address else {"num_cpus": (os.cpu_count() or 1) + 1, "include_dashboard": False}
    _check_answers(address)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _stderr_closed(), _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at --address {address}: {error}") from error
    try:
        with redirect_stdout(cast(TextIO, _WithoutRay(sys.stdout))):
            yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raises UserError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at --address {address}: {error}") from error


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Nothing reaches the terminal past Python: Ray's own libraries greet there, whatever the log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _WithoutRay:
    """Standard output, less what Ray's threads print there of dead workers, also with log_to_driver=False."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self.stream.write(text)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself and exits on the spot; whoever set a handler before gets it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def resources() -> tuple[int, float]:
    """Processors that actors may have, and GPUs, of the whole cluster; one processor is left to storage."""
    found = ray.cluster_resources()
    return max(1, int(found.get("CPU", 1)) - 1), float(found.get("GPU", 0))


@dataclass(frozen=True)
class ModelDescription:
    """What the driver must know about a model without importing torch."""

    tasks: tuple[str, ...]
    tables: tuple[str, ...]
    categories_json: str
    digest: str
    versions: dict[str, str]


def describe(spec: ModelSpec, tasks: Iterable[str]) -> ModelDescription:
    """Builds the model once, in a worker process, and says what it is.

    Raises:
        ModelError: it can't be built, or can't do the tasks.
    """
    # max_calls: the process ends with the task, and gives torch's memory back.
    found = ray.get(ray.remote(max_calls=1, num_cpus=1)(_describe).remote(spec, tuple(tasks)))
    if isinstance(found, PrelabelError):
        raise found
    assert isinstance(found, ModelDescription)
    return found


def _describe(spec: ModelSpec, asked: tuple[str, ...]) -> ModelDescription | PrelabelError:
    from importlib.metadata import version

    from prelabel.operators.models import load_model
    from prelabel.operators.registry import chosen_tasks, operators_for

    try:
        model = load_model(_here(spec))
        tasks = chosen_tasks(model, asked)
    except PrelabelError as error:
        return error
    tables = {"images", *(operator.table for operator in operators_for(tasks))}
    packages = ("prelabel", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow", "numba")
    return ModelDescription(
        tuple(map(str, tasks)),
        tuple(sorted(tables)),
        model.categories.to_json(),
        model.digest,
        {package: version(package) for package in packages},
    )


def _here(spec: ModelSpec) -> ModelSpec:
    return replace(spec, weights=local_copy(spec.weights)) if spec.weights and "://" in spec.weights else spec


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
        tables = _with_workers(blocks, len(units), work, pool, counter)
        try:
            tables.write_datasink(_Commits(work), ray_remote_args={"num_cpus": IO_CPUS})
        except RayError as error:
            errors.append(str(error))
    return errors


def _with_workers(blocks: ray.data.Dataset, units: int, work: Work, pool: Pool, counter: Any) -> ray.data.Dataset:
    with warnings.catch_warnings():
        # Ray 2.60 deprecates further arguments, and has no other way yet to say max_task_retries; its default would
        # retry for ever a unit that kills its worker every time.
        warnings.simplefilter("ignore")
        return blocks.map_batches(
            _Worker,
            fn_constructor_args=(work, pool, counter),
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
    """An actor of the pool: holds the model; a unit's block in, its tables in one row out."""

    def __init__(self, work: Work, pool: Pool, counter: Any) -> None:
        import torch

        from prelabel.operators.base import Task
        from prelabel.operators.label import Labeler
        from prelabel.operators.models import load_model
        from prelabel.operators.registry import operators_for

        torch.set_num_threads(pool.cpus)
        self.work = work
        model = load_model(replace(_here(work.spec), device="cuda" if pool.gpus else "cpu"))
        if model.digest != work.digest:
            raise ModelError(
                f"{model.name} has other weights than when the job was planned: the file has changed, or the factory "
                "makes new ones each time (load or seed them)"
            )
        self.labeler = Labeler(
            model,
            operators_for(map(Task, work.tasks)),
            batch_size=pool.batch_size,
            max_pixels=work.max_pixels,
            threads=min(pool.cpus, DECODE_THREADS),
            progress=lambda images: counter.add.remote(images),
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        unit = block["unit"][0].as_py()
        began = perf_counter()
        with _failure_recorded(self.work, unit):
            tables = self.labeler.label(block)
        packed = {name: [_to_ipc(table)] for name, table in tables.items()}
        return pa.table({"unit": [unit], "label_seconds": [perf_counter() - began], **packed})


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
