"""How a cluster is shared out between the workers that hold the model."""

from __future__ import annotations

import os
from dataclasses import dataclass

from prelabel.schemas.errors import UserError
from prelabel.schemas.job import Runtime

CPUS_PER_WORKER = 4


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what each may use."""

    fewest: int
    most: int
    cpus: int
    gpus: float
    batch_size: int


def pool_of(runtime: Runtime, cpus: int, gpus: float) -> Pool:
    """The pool that the runtime asks for, with what the cluster has shared out where it leaves a choice.

    Raises:
        UserError: this machine is too small for it; a shared cluster may grow.
    """
    gpus_each = min(1.0, gpus) if runtime.gpus_per_worker is None else runtime.gpus_per_worker
    default = max(1, int(gpus // gpus_each) if gpus_each else cpus // CPUS_PER_WORKER)
    fewest, most = runtime.worker_range or (default, default)
    cpus_each = runtime.cpus_per_worker or max(1, cpus // most)
    is_shared = runtime.address or os.environ.get("RAY_ADDRESS")
    if not is_shared and (fewest * cpus_each > cpus or fewest * gpus_each > gpus):
        raise UserError(
            f"--workers {fewest} of {cpus_each} CPUs and {gpus_each:g} GPUs each do not fit on this machine with "
            f"{cpus} CPUs and {gpus:g} GPUs: ask for fewer workers, --cpus-per-worker or --gpus-per-worker"
        )
    return Pool(fewest, most, cpus_each, gpus_each, runtime.batch_size or (8 if gpus_each else 1))
