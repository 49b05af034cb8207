"""How a processor is best shared out: workers times threads, and images of a batch.

    PYTHONPATH=benchmarks python benchmarks/sweep.py [--quick] [NETWORK...]

Each way runs in as many processes as it has workers, all at once, on images of 480 x 640 that are decoded before. The
default of a job without GPUs comes of this table: a worker of one thread for each processor, and batches of networks
whose inputs are small (PROCESSOR_PIXELS in operators/batches.py).

Weights are made up, see workload.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import workload
from measure import REPEATS, in_turn, print_table, ratios, spread

from prelabel.operators.base import Task
from prelabel.operators.models import ModelSpec, load_model

NETWORKS = {
    "mask_rcnn": "python:workload:mask_rcnn",
    "light_mask_rcnn": "python:workload:light_mask_rcnn",
    "ssdlite": "python:workload:ssdlite",
    "lraspp": "torchvision:lraspp_mobilenet_v3_large",
    "classifier": "torchvision:resnet50",
}
CPUS = os.cpu_count() or 1
SIZE = 480, 640
SECONDS = 8


@dataclass(frozen=True)
class Way:
    """Workers, threads of each, and images of a batch."""

    workers: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}, by {self.batch}"


WAYS = [Way(1, CPUS, 1), Way(CPUS, 1, 1), Way(CPUS, 1, 2), Way(CPUS, 1, 4), Way(CPUS, 1, 8)]


def _work(spec: ModelSpec, pictures: Path, way: Way, least: float, barrier: Any, rates: Any) -> None:
    """Puts images a second into the queue, of at least so many seconds and two batches."""
    torch.set_num_threads(way.threads)
    model = load_model(spec)
    images = [workload.pixels(path) for path in sorted(pictures.glob("*"))[: way.batch]]
    look = partial(model.predict, images, model.tasks - {Task.PROPOSE})
    look()
    barrier.wait()
    began, batches = time.perf_counter(), 0
    while batches < 2 or time.perf_counter() - began < least:
        look()
        batches += 1
    rates.put(batches * way.batch / (time.perf_counter() - began))


def rate(spec: ModelSpec, pictures: Path, way: Way, least: float) -> float:
    """Images a second of all workers."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(way.workers), context.Queue()
    work = spec, pictures, way, least, barrier, rates
    processes = [context.Process(target=_work, args=work) for _ in range(way.workers)]
    for process in processes:
        process.start()
    found = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return found


def swept(name: str, folder: Path, quick: bool) -> list[str]:
    """A row of the table."""
    spec = workload.spec_of(name, NETWORKS[name], folder)
    pictures = workload.write_pictures(folder / "pictures", max(way.batch for way in WAYS), SIZE)
    ways = {str(way): partial(rate, spec, pictures, way, SECONDS / 8 if quick else SECONDS) for way in WAYS}
    found = in_turn(ways, 1 if quick else REPEATS)
    first, default, *batches = found.values()
    return [
        name,
        spread(first),
        spread(default),
        spread(ratios(default, first), ".2f"),
        *(spread(ratios(one, default), ".2f") for one in batches),
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=", ".join(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="a try of a minute: the light networks, one repeat")
    given = parser.parse_args()
    networks = given.networks or [one for one in NETWORKS if not (given.quick and one == "mask_rcnn")]
    with tempfile.TemporaryDirectory() as folder:
        rows = [swept(name, Path(folder, name), given.quick) for name in networks]
    one, default, *batches = map(str, WAYS)
    columns = ["network", f"{one}, images/s", default, "ratio", *(f"{way}, to that" for way in batches)]
    print_table("Workers x threads, and images of a batch", columns, rows)


if __name__ == "__main__":
    main()
