"""How a cluster is shared out between the workers that hold the model."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from prelabel.operators.batches import BATCH_SIZE, PROCESSOR_PIXELS
from prelabel.schemas.errors import UserError
from prelabel.schemas.job import Runtime

MEMORY_PER_WORKER = 3 * 2**30
"""Bytes that a worker without a GPU should find for its models and images, unless the user says how many workers."""


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what each may use.

    Attributes:
        groups: the places of the models that workers hold together; a pool of workers for each
        fewest, most: workers of a pool
        cpus, gpus: of a worker; it computes on so many threads
        batch_size: images a forward pass, at most
        batch_pixels: of a network's inputs in a forward pass, at most
    """

    groups: tuple[tuple[int, ...], ...]
    fewest: int
    most: int
    cpus: int
    gpus: float
    batch_size: int
    batch_pixels: float = math.inf

    def __str__(self) -> str:
        """In words."""
        many = "a worker" if self.most == 1 else f"{self.most} workers"
        many = many if self.fewest == self.most else f"{self.fewest} to {self.most} workers"
        threads = "1 thread" if self.cpus == 1 else f"{self.cpus} threads"
        gpus = f" and {self.gpus:g} GPU{'s' * (self.gpus != 1)}" if self.gpus else ""
        each = " for each model" if len(self.groups) > 1 else ""
        pixels = f" or {self.batch_pixels:,} pixels" if self.batch_pixels < math.inf else ""
        return f"{many}{each} with {threads}{gpus}, batches of up to {self.batch_size}{pixels}"


def pool_of(runtime: Runtime, models: int, cpus: int, gpus: float, memory: float) -> Pool:
    """The pools that the runtime asks for, with what the cluster has shared out where it leaves a choice.

    Without GPUs that is a worker per processor, with one thread: two such label 1.02 to 1.8 times as many images as one
    with two threads (docs/performance.md), and threads that round alike give any machine of a kind the same digits.
    Batches pay there for networks of small inputs alone.

    Args:
        runtime: the job's
        models: how many there are
        cpus, gpus, memory: of the cluster; bytes

    Raises:
        UserError: this machine is too small for it; a shared cluster may grow.
    """
    places = tuple(range(models))
    groups = (places,) if runtime.pools == "shared" else tuple((place,) for place in places)
    cpus_here, gpus_here = max(1, cpus // len(groups)), gpus / len(groups)
    gpus_each = min(1.0, gpus_here) if runtime.gpus_per_worker is None else runtime.gpus_per_worker
    roomy = min(cpus_here, int(memory // MEMORY_PER_WORKER) // len(groups))
    default = max(1, int(gpus_here // gpus_each) if gpus_each else roomy)
    fewest, most = runtime.worker_range or (default, default)
    cpus_each = runtime.cpus_per_worker or max(1, cpus_here // most)
    is_shared = runtime.address or os.environ.get("RAY_ADDRESS")
    workers = fewest * len(groups)
    if not is_shared and (workers * cpus_each > cpus or workers * gpus_each > gpus):
        raise UserError(
            f"{workers} workers of {cpus_each} CPUs and {gpus_each:g} GPUs each do not fit on this machine with "
            f"{cpus} CPUs and {gpus:g} GPUs: ask for fewer --workers, --pools shared, --cpus-per-worker or "
            "--gpus-per-worker"
        )
    batch_pixels = math.inf if gpus_each or runtime.batch_size else PROCESSOR_PIXELS
    return Pool(groups, fewest, most, cpus_each, gpus_each, runtime.batch_size or BATCH_SIZE, batch_pixels)
