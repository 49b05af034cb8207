"""How a cluster is shared out where nobody says."""

from __future__ import annotations

import pytest

from prelabel.pipeline.pool import Pool, pool_of
from prelabel.schemas.errors import UserError
from prelabel.schemas.job import Runtime

GIB = 2**30
ROOMY = 999 * GIB


@pytest.mark.parametrize(
    ("cluster", "runtime", "words"),
    [
        ((2, 0, ROOMY), {}, "2 workers with 1 thread, batches of up to 8 or 500,000 pixels"),
        ((16, 0, 13 * GIB), {}, "4 workers with 4 threads, batches of up to 8 or 500,000 pixels"),
        ((2, 0, GIB), {}, "a worker with 2 threads, batches of up to 8 or 500,000 pixels"),
        ((16, 0, ROOMY), {"workers": "4"}, "4 workers with 4 threads, batches of up to 8 or 500,000 pixels"),
        (
            (16, 0, ROOMY),
            {"workers": "2:4", "cpus_per_worker": 1},
            "2 to 4 workers with 1 thread, batches of up to 8 or 500,000 pixels",
        ),
        ((16, 2, ROOMY), {}, "2 workers with 8 threads and 1 GPU, batches of up to 8"),
        ((2, 0, ROOMY), {"batch_size": 4}, "2 workers with 1 thread, batches of up to 4"),
        (
            (16, 0, 12 * GIB),
            {"pools": "each"},
            "2 workers for each model with 4 threads, batches of up to 8 or 500,000 pixels",
        ),
    ],
)
def test_default_is_a_worker_per_gpu_or_per_processor_that_has_memory(
    cluster: tuple[int, float, float], runtime: dict[str, object], words: str
) -> None:
    assert str(pool_of(Runtime.model_validate(runtime), 2, *cluster)) == words


def test_more_than_there_is() -> None:
    with pytest.raises(UserError, match="4 workers of 1 CPUs"):
        pool_of(Runtime(workers="4"), 1, 2, 0, ROOMY)
    assert pool_of(Runtime(workers="4", address="auto"), 1, 2, 0, ROOMY) == Pool(((0,),), 4, 4, 1, 0, 8, 500_000)
