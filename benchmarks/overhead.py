"""What the pipeline costs: a job of the `prelabel` command against a bare loop over decoded images in memory.

    PYTHONPATH=benchmarks python benchmarks/overhead.py [--quick] [MODEL...]

The job is the real one: JPEGs of 480 x 640 in a folder, the default options of this machine, parts and commits written.
Its images a second are those between the first commit of the last worker and the time when one has nothing more to do,
by the commits' own clocks; what the command takes besides (Ray and the models start, everything ends) is told apart.
The bare loop is the same model in as many processes, with as many threads each and the same batches, over the same
images, decoded before; it writes nothing. For a model that does nothing, the loop decodes the JPEGs.

Beside it, so that a slow model can't win: stock torchvision in the same processes, one image at a time in float32.

Weights are made up, see workload.py. Not shown: reading from a bucket, and a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import workload
from measure import REPEATS, in_turn, print_table, ratios, spread
from workload import POOL

from prelabel.operators.base import Task
from prelabel.operators.images import decode
from prelabel.operators.models import ModelSpec, load_model
from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.graph.waves import KEEPING_MEMORY

SIZE = 480, 640
COMPARED = 2
"""Images whose rows are compared with the loop's predictions."""


@dataclass(frozen=True)
class Case:
    """A model, units of its job and images of each, and the least ratio of job and loop that is good enough."""

    name: str
    model: str
    table: str
    units: int
    unit: int
    goal: float


CASES = (
    Case("mask_rcnn", "python:workload:mask_rcnn", "annotations", 16, 1, 0.97),
    Case("ssdlite", "python:workload:ssdlite", "annotations", 24, 64, 0.90),
    Case("lraspp", "torchvision:lraspp_mobilenet_v3_large", "segments", 16, 12, 0.90),
    Case("nothing", "python:workload:nothing", "annotations", 12, 512, 0.75),
)


class Loop:
    """What one process of the bare loop holds; all of them begin at once."""

    def __init__(self, case: Case, spec: ModelSpec, pictures: Sequence[Path], barrier: Any) -> None:
        torch.set_num_threads(POOL.cpus)
        self.barrier = barrier
        self.encoded = [path.read_bytes() for path in pictures]
        self.images = list(map(workload.pixels, pictures))
        self.model = load_model(spec)
        self.stock = workload.stock(case.name, spec) if spec.weights else None

    def predict(self, images: Sequence[torch.Tensor]) -> list[Any]:
        return self.model.predict(images, self.model.tasks - {Task.PROPOSE})

    def found(self) -> list[list[float]]:
        """Of each of the first images the scores of its objects, or the areas of its segments."""
        predictions = [self.predict([image])[0] for image in self.images[:COMPARED]]
        return [
            [mask.area for mask in one.semantic.masks] if one.semantic else one.instances.scores.tolist()
            for one in predictions
        ]

    def bare(self) -> float:
        """Images a second of the model, batch by batch; of decoding where the model does nothing."""
        if self.stock is None:
            return self._rate(lambda some: list(map(decode, some)), self.encoded)
        return self._rate(self.predict, self.images)

    def by_stock(self) -> float:
        """Images a second of stock torchvision."""
        stock = self.stock
        return self._rate(lambda some: list(map(stock, some)), self.images[: len(self.images) // 2]) if stock else 0.0

    def _rate(self, work: Callable[[Sequence[Any]], object], items: Sequence[Any]) -> float:
        for one in items:  # warm: while the job ran, the system may have taken the memory away
            work([one])
        self.barrier.wait()
        began = time.perf_counter()
        for some in workload.batches_of(self.model, items, SIZE):
            work(some)
        return len(items) / (time.perf_counter() - began)


_loop: list[Loop] = []


def _start(*arguments: Any) -> None:
    _loop.append(Loop(*arguments))


def _call(name: str) -> Any:
    return getattr(_loop[0], name)()


@contextmanager
def _loops(*arguments: Any) -> Iterator[Callable[[str], list[Any]]]:
    """Asks all processes of the bare loop the same."""
    context = multiprocessing.get_context("spawn")
    arguments = *arguments, context.Barrier(POOL.most)
    os.environ.update(KEEPING_MEMORY)  # as workers do
    with ProcessPoolExecutor(POOL.most, context, _start, arguments) as processes:
        yield lambda name: [asked.result() for asked in [processes.submit(_call, name) for _ in range(POOL.most)]]


def _rows(output: Path, table: str) -> list[list[float]]:
    """What `Loop.found` says, as the job has written it."""
    found: list[list[float]] = [[] for _ in range(COMPARED)]
    for row in open_dataset(str(output)).table(table).to_table().to_pylist():
        if row["image_id"] < COMPARED:
            found[row["image_id"]].append(row["area" if table == "segments" else "score"])
    return found


def _check(case: Case, found: Sequence[list[float]], rows: Sequence[list[float]]) -> None:
    for mine, written in zip(found, rows, strict=True):
        np.testing.assert_allclose(mine, written, rtol=1e-3, err_msg=f"{case.name}: the job's rows are not the loop's")


def measured(case: Case, folder: Path, unit: int, repeats: int) -> list[str]:
    """A row of the table."""
    pictures = sorted(workload.write_pictures(folder / "pictures", case.units * unit, SIZE).glob("*"))
    spec = workload.spec_of(case.name, case.model, folder)
    jobs: list[workload.Ran] = []

    def job() -> float:
        output = folder / f"labels-{len(jobs)}"
        jobs.append(workload.run_job(folder / "pictures", output, spec, POOL.most, "--unit-images", str(unit)))
        return jobs[-1].rate

    with _loops(case, spec, pictures[: max(unit, 2 * COMPARED)]) as loops:
        job()  # the first compiles
        _check(case, loops("found")[0], _rows(folder / "labels-0", case.table))
        ways = {"job": job, "bare": lambda: sum(loops("bare")), "stock": lambda: sum(loops("by_stock"))}
        found = in_turn(ways, repeats)
    share = ratios(found["job"], found["bare"])
    return [
        case.name,
        spread(found["job"]),
        spread(found["bare"]),
        spread(share, ".3f"),
        f"{case.goal:.2f}" + ("" if median(share) >= case.goal else " missed"),
        spread(ratios(found["bare"], found["stock"]), ".2f") if spec.weights else "",
        f"{median(one.rest for one in jobs[1:]):.1f} s",
        _told(jobs[1:], case.units * unit),
    ]


def _told(jobs: Sequence[workload.Ran], images: int) -> str:
    """Milliseconds an image, by what took them."""
    return ", ".join(
        f"{name.split()[0]} {1000 * median(one.timings[name] for one in jobs) / images:.3g}" for name in jobs[0].timings
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=", ".join(case.name for case in CASES))
    parser.add_argument("--quick", action="store_true", help="a try of a minute: the light models, one repeat")
    given = parser.parse_args()
    wanted = given.models or [case.name for case in CASES if not (given.quick and case.name == "mask_rcnn")]
    rows = []
    for case in CASES:
        if case.name in wanted:
            with tempfile.TemporaryDirectory() as folder:
                unit = max(1, case.unit // 8) if given.quick else case.unit
                rows.append(measured(case, Path(folder), unit, 1 if given.quick else REPEATS))
    columns = [
        "model",
        "job, images/s",
        "bare loop",
        "job / loop",
        "goal",
        "loop / stock",
        "start and end",
        "ms an image",
    ]
    print_table(f"A job of {POOL.most} workers x {POOL.cpus} threads, batches as it makes them", columns, rows)


if __name__ == "__main__":
    main()
