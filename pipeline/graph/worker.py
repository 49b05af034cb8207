"""What one task or actor does for a unit: the work itself, and how it travels from one to the next."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from prelabel.operators.models import ModelSpec
from prelabel.pipeline.graph.count import READ, metrics
from prelabel.pipeline.graph.describe import Description, here
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.pool import Pool
from prelabel.pipeline.portions import Portion
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import SourceOptions
from prelabel.pipeline.storage import Storage
from prelabel.schemas.errors import ModelError
from prelabel.schemas.tables import TABLES

DECODE_THREADS = 8
"""More would hold more decoded images at once than they are worth: 70 MB for one of 24 megapixels."""


SECONDS_TO_TELL = 10
SECONDS_BETWEEN = 0.5
"""Of what a worker tells of its progress, unless an image failed."""
CANNOT_LOAD = "workers die again and again while they load their models: are they short of memory? try fewer --workers"


@dataclass(frozen=True)
class Work:
    """All that a task or actor needs to know about the job; travels with each.

    Attributes:
        output: the job's URL; empty: nothing is written
        options: how the sources are read
        specs: the models
        description: what they are asked for, and what they were when the job was planned
        max_pixels: of one image
        metadata: what each Parquet file carries
        image_timeout: seconds for an image
        counter: the `Count` of the wave
    """

    output: str
    options: SourceOptions
    specs: tuple[ModelSpec, ...]
    description: Description
    max_pixels: int
    metadata: dict[str, str]
    image_timeout: float
    counter: Any = None

    def begin(self, block: int, place: int) -> None:
        """Raises NotBegunError unless the block is to be worked at this place."""
        if not ray.get(self.counter.begin.remote(block, place)):
            raise NotBegunError(f"block {block} is left alone")


class NotBegunError(Exception):
    """Workers died of a block, or the run ends early."""


@contextmanager
def failure_recorded(work: Work, unit: int) -> Iterator[None]:
    """Whatever goes wrong with the unit is told in the manifest, and to who counts."""
    try:
        yield
    except Exception as error:
        # What a disk or a network answers may change, and how much memory there is; what a shard or a model says of an
        # image does not.
        final = not isinstance(error, (OSError, MemoryError))
        failure = {"unit": unit, "error": type(error).__name__, "message": str(error), "final": final}
        work.counter.fail.remote(failure)
        if work.output:
            with suppress(OSError):
                Manifest(Storage(work.output)).record_failure(unit, type(error).__name__, str(error), final)
        raise


def read(work: Work, number: int, portions: list[Portion]) -> Iterator[pa.Table]:
    """A block, of one unit but on trial, with its position in the wave: a row for each image, with its bytes."""
    work.begin(number, READ)
    began = perf_counter()
    with failure_recorded(work, portions[0].unit.number):
        rows = pa.concat_tables([_rows(work, portion) for portion in portions])
    work.counter.end.remote(number, READ)
    block = rows.append_column("block", pa.array([number] * len(rows), pa.int32()))
    yield _with_seconds(block, {"read": perf_counter() - began})


def _rows(work: Work, portion: Portion) -> pa.Table:
    unit = portion.unit
    rows = portion.read(source_of_kind(unit.shard.kind, unit.shard.uri, work.options))
    rows = rows.append_column("shard", pa.array([unit.shard.uri] * len(rows), pa.string()))
    return rows.append_column("unit", pa.array([unit.number] * len(rows), pa.int32()))


def _with_seconds(block: pa.Table, seconds: dict[str, float]) -> pa.Table:
    return block.append_column("timings", pa.array([json.dumps(seconds)] * len(block), pa.string()))


class Untold(NamedTuple):
    """What a worker has done since it last told the counter: images, those that failed, and seconds of the models."""

    images: int = 0
    failed: int = 0
    busy: float = 0.0


class Worker:
    """An actor that holds some of the models: adds their findings to a unit's block.

    The actor of the last models makes it one row that holds the unit's tables.
    """

    def __init__(self, work: Work, pool: Pool, group: tuple[int, ...]) -> None:
        import torch

        from prelabel.operators.base import Task
        from prelabel.operators.label import Asked, Labeler
        from prelabel.operators.registry import operators_for
        from prelabel.operators.watchdog import Watchdog
        from prelabel.schemas.categories import CategorySet

        self.identity = ray.get_runtime_context().get_actor_id()
        if not ray.get(work.counter.load.remote(self.identity)):
            raise ModelError(CANNOT_LOAD)
        torch.set_num_threads(pool.cpus)
        self.work = work
        self.group = pool.groups.index(group)
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
            batch_pixels=pool.batch_pixels,
            max_pixels=work.max_pixels,
            threads=min(pool.cpus, DECODE_THREADS),
            progress=self._tell,
            watchdog=Watchdog(work.image_timeout, self._tell_stuck),
        )
        self.block, self.untold, self.told_at = 0, Untold(), 0.0
        work.counter.hello.remote(self.identity)

    def _tell(self, advance: Any) -> None:
        images, failed = (advance.images, advance.failed) if self.is_last else (0, 0)
        metrics().looked(images, failed, advance.seconds)
        before, busy = self.untold, sum(advance.seconds.values())
        self.untold = Untold(before.images + images, before.failed + failed, before.busy + busy)
        if failed or perf_counter() - self.told_at > SECONDS_BETWEEN:
            self._tell_all()

    def _tell_all(self) -> None:
        """A message for each image would keep a processor busy where models are quick."""
        self.work.counter.add.remote(self.block, *self.untold)
        self.untold, self.told_at = Untold(), perf_counter()

    def _tell_stuck(self, image_ids: list[int]) -> None:
        ray.get(self.work.counter.stuck.remote(self.block, self.group, image_ids), timeout=SECONDS_TO_TELL)

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with these models' findings; after the last model one row, with the unit's tables."""
        self.block = block["block"][0].as_py()
        self.work.begin(self.block, self.group)
        try:
            with failure_recorded(self.work, block["unit"][0].as_py()):
                after = self._look(block)
        finally:
            self._tell_all()
        self.work.counter.end.remote(self.block, self.group)
        return after

    def _look(self, block: pa.Table) -> pa.Table:
        from prelabel.operators.label import make_tables, timed

        findings = _findings_in(block)
        self.labeler.look(block, findings)
        if not self.is_last:
            return _with_findings(block, findings)
        tables = timed(findings.seconds, "rows", make_tables, block, findings, self.operators)
        packed = {name: [_to_ipc(table)] for name, table in tables.items()}
        facts = {name: [block[name][0].as_py()] for name in ("unit", "block")}
        return pa.table({**facts, "timings": [json.dumps(findings.seconds)], **packed})


class Prober(Worker):
    """Looks at a block; whoever lives to tell of it need not say more."""

    def _look(self, block: pa.Table) -> pa.Table:
        after = super()._look(block)
        return after.select(["block"]) if self.is_last else after


class Calibrator(Worker):
    """Looks twice at each unit, since only the second time is what a long job is like; of the tables it keeps none."""

    def _look(self, block: pa.Table) -> pa.Table:
        """The block for the next models; after the last, the unit's timings and counts."""
        super()._look(block)
        began = perf_counter()
        after = super()._look(block)
        seconds = json.loads(after["timings"][0].as_py()) | {f"workers {self.group}": perf_counter() - began}
        if not self.is_last:
            return _with_seconds(after.drop_columns("timings"), seconds)
        codes = tables_in(after.to_pylist()[0])["images"]["error_code"]
        failed = len(codes) - codes.null_count
        return pa.table({"timings": [json.dumps(seconds)], "images": [len(codes)], "failed": [failed]})


def _load(work: Work, place: int, pool: Pool) -> Any:
    from prelabel.operators.models import load_model

    model = load_model(replace(here(work.specs[place]), device="cuda" if pool.gpus else "cpu"))
    if model.digest != work.description.digests[place]:
        raise ModelError(
            f"{model.name} has other weights than when the job was planned: the file has changed, or the factory "
            "makes new ones each time (load or seed them)"
        )
    return model


def _with_findings(block: pa.Table, findings: Any) -> pa.Table:
    """The unit's rows with what some models found, for the next ones."""
    found = [pickle.dumps(pair) for pair in zip(findings.facts, findings.answers, strict=True)]
    known = block.select([name for name in block.column_names if name not in ("findings", "timings")])
    return _with_seconds(known.append_column("findings", pa.array(found, pa.large_binary())), findings.seconds)


def _findings_in(block: pa.Table) -> Any:
    from prelabel.operators.label import Findings

    seconds = defaultdict(float, json.loads(block["timings"][0].as_py()))
    if "findings" not in block.column_names:
        return replace(Findings.nothing(len(block)), seconds=seconds)
    # Our own workers' bytes, by way of Ray, which pickles all that it carries.
    pairs = [pickle.loads(pair) for pair in block["findings"].to_pylist()]
    return Findings([facts for facts, _ in pairs], [answers for _, answers in pairs], seconds)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries().combine_chunks())
    return sink.getvalue().to_pybytes()


def tables_in(row: dict[str, Any]) -> dict[str, pa.Table]:
    """The tables that the last worker has packed into a row."""
    return {name: pa.ipc.open_stream(data).read_all() for name, data in row.items() if name in TABLES}
