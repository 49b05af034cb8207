"""Units through Ray Data: read tasks, pools of actors that hold the models, write tasks.

One unit is one block from read to write, and nothing may merge or split it: exactly one read task per unit, no largest
block size, no batch size. Read and write tasks ask for other resources than the actors, which keeps Ray from fusing
them with the models: they would wait for storage.
"""

from __future__ import annotations

import gc
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasink
from ray.exceptions import RayError

from prelabel.pipeline.amend import amend_unit
from prelabel.pipeline.graph.count import Fates, Limits, counted, fates_of, metrics
from prelabel.pipeline.graph.worker import Calibrator, Prober, Work, Worker, failure_recorded, read, tables_in
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.pool import Pool
from prelabel.pipeline.portions import Portion, Skip
from prelabel.pipeline.progress import Tally
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.errors import ModelError, one_line

IO_CPUS = 0.5
"""What a read or a write task asks for: two of them share the processor that the actors leave."""
SECONDS_TO_START = 900
"""Workers that are to be measured get so long to load their models."""
KEEPING_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""For workers, where the C library is glibc: what is freed stays with the process, but for blocks of 64 MiB and more.

Decoding and networks free megabytes with each image, and glibc gives them back to the system, which has to clear each
page anew for the next image: that took 7 to 15 % of the time of light networks.
"""
RETRIES = 8
"""Of Ray, for a block whose actor dies. `Count` ends those who die of it; these are for who waited behind them."""


def label_wave(
    work: Work,
    portions: list[Portion],
    amended: frozenset[int],
    pool: Pool,
    limits: Limits,
    progress: Callable[[Tally], object],
) -> tuple[Fates, list[str]]:
    """Reads, labels and commits portions, each of another unit.

    Args:
        work: that is to be done
        portions: a block each
        amended: the units that have a commit, and get what is in their portions into their parts
        pool: who does it
        limits: when it ends early
        progress: is told, about twice a second, what the workers have come to so far

    Returns:
        What has become of the portions, and what Ray Data had to say of those that failed.
    """
    with _quietly(len(portions)), _errors_collected() as errors, counted(limits, progress) as counter:
        work = replace(work, counter=counter)
        blocks = _labeled(Worker, work, [[portion] for portion in portions], pool)
        try:
            blocks.write_datasink(_Commits(work, amended), ray_remote_args={"num_cpus": IO_CPUS})
        except RayError as error:
            errors.append(str(error))
        return fates_of(counter), errors


def probe(work: Work, portions: Sequence[Portion], pool: Pool) -> list[Skip | None]:
    """Reads and looks at portions, a block each, and writes nothing; says how workers died of them, if they did.

    That is once, or of a portion of one image twice.
    """
    tries = tuple(1 if len(portion) > 1 else 2 for portion in portions)
    with _quietly(len(portions)), _errors_collected(), counted(Limits(tries), id) as counter:
        work = replace(work, counter=counter, output="")
        blocks = _labeled(Prober, work, [[portion] for portion in portions], pool)
        with suppress(RayError):
            blocks.materialize()
        fates = fates_of(counter)
    return [_death(fates, number, portion) for number, portion in enumerate(portions)]


def _death(fates: Fates, number: int, portion: Portion) -> Skip | None:
    if fates.cannot_load:  # whatever there is to look at
        return Skip("crashed_worker", unread=True)
    code = "timeout" if fates.stuck.intersection(portion.image_ids) else "crashed_worker"
    return Skip(code, fates.died[number]) if number in fates.died else None


def calibrate(
    work: Work, parts: list[list[Unit]], pool: Pool, progress: Callable[[Tally], object]
) -> list[dict[str, Any]]:
    """Reads and labels units, each part in one block and twice, and writes nothing.

    Returns of each part how many images it has, how many failed, and its timings.

    "workers N" among the timings is how long the N-th group of models took, all in all.

    Raises:
        ModelError: a unit fails.
    """
    limits, portions = Limits((2,) * len(parts)), [list(map(Portion.whole, units)) for units in parts]
    with _quietly(0), _errors_collected(), counted(limits, progress) as counter:
        DataContext.get_current().wait_for_min_actors_s = SECONDS_TO_START  # so that all work at once
        blocks = _labeled(Calibrator, replace(work, counter=counter, output=""), portions, pool)
        try:
            return [row | {"timings": json.loads(row["timings"])} for row in blocks.iter_rows()]
        except RayError as error:
            failures = fates_of(counter).failures
            reason = failures[0]["message"] if failures else str(error).strip().splitlines()[-1]
            raise ModelError(f"the images to calibrate with could not be labeled: {one_line(reason)}") from error


@contextmanager
def _quietly(most_errors: int) -> Iterator[None]:
    """Ray Data for units: nothing splits or shows them."""
    gc.collect()  # the actors of a wave that failed hang on a cycle of references, and on to their processors
    context = DataContext.get_current().copy()
    context.target_max_block_size = None
    context.max_errored_blocks = most_errors
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    with DataContext.current(context):
        yield


def _labeled(worker: type[Worker], work: Work, blocks: list[list[Portion]], pool: Pool) -> ray.data.Dataset:
    """The blocks after all workers; each group of the models has workers of its own."""
    found = ray.data.read_datasource(_Blocks(work, blocks), override_num_blocks=len(blocks), num_cpus=IO_CPUS)
    for group in pool.groups:
        with warnings.catch_warnings():
            # Ray 2.60 deprecates further arguments, and has no other way yet to say max_task_retries; its default would
            # retry for ever a unit that kills its worker every time.
            warnings.simplefilter("ignore")
            found = found.map_batches(
                worker,
                fn_constructor_args=(work, pool, group),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=min(pool.fewest, len(blocks)), max_size=min(pool.most, len(blocks))),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                max_task_retries=RETRIES,
                runtime_env={"env_vars": KEEPING_MEMORY},
            )
    return found


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


class _Blocks(Datasource):
    """One read task per block."""

    def __init__(self, work: Work, blocks: list[list[Portion]]) -> None:
        super().__init__()
        self.work = work
        self.blocks = blocks

    def get_name(self) -> str:
        return "Units"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(map(_size, self.blocks))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(partial(read, self.work, number, block), _metadata(block))
            for number, block in enumerate(self.blocks)
        ]


def _size(block: list[Portion]) -> int:
    return sum(portion.size for portion in block)


def _metadata(block: list[Portion]) -> BlockMetadata:
    return BlockMetadata(sum(map(len, block)), _size(block), None, None)


class _Commits(Datasink[None]):
    """Writes each unit's parts and its commit, in the write task: a callback at the end would die with the driver."""

    def __init__(self, work: Work, amended: frozenset[int]) -> None:
        self.work = work
        self.amended = amended

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        manifest = Manifest(Storage(self.work.output))
        for block in blocks:
            for row in block.to_pylist():
                unit, timings = row["unit"], json.loads(row["timings"])
                write = amend_unit if unit in self.amended else write_unit
                with failure_recorded(self.work, unit):
                    rounded = {name: round(seconds, 3) for name, seconds in timings.items()}
                    commit = write(manifest, unit, tables_in(row), self.work.metadata, rounded)
                ray.get(self.work.counter.commit.remote(row["block"]))
                metrics().committed({name: part["rows"] for name, part in commit["parts"].items()})
