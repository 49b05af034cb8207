"""Runs jobs as `prelabel run` and `prelabel resume` do, with made-up labels in place of models and Ray."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from jobs import CATEGORIES, job_of, tables_of

from prelabel.pipeline import graph, runner
from prelabel.pipeline.graph.worker import Work, failure_recorded
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.portions import Portion
from prelabel.pipeline.sources import source_of_kind
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.summary import Summary
from prelabel.pipeline.writer import write_unit
from prelabel.schemas.errors import JobError, PrelabelError

IMAGES = 7
DESCRIPTION = graph.Description(
    asked=(("detect", "segment_instances"),),
    category_ids=({category.id: category.id for category in CATEGORIES},),
    digests=("weights",),
    tasks=("detect", "segment_instances"),
    tables=("annotations", "images"),
    categories_json=CATEGORIES.to_json(),
    versions={},
    has_bf16=True,
)


def label(work: Work, unit: Unit, seconds: float) -> None:
    """What tasks and actors do for a unit."""
    work = Work(**{**vars(work), "counter": SimpleNamespace(fail=SimpleNamespace(remote=lambda failure: None))})
    with failure_recorded(work, unit.number):
        read(work, unit)
        time.sleep(seconds)
        write_unit(Manifest(Storage(work.output)), unit.number, tables_of(unit), work.metadata, {"rows": 0.5})


def read(work: Work, unit: Unit) -> None:
    source_of_kind(unit.shard.kind, unit.shard.uri, work.options).read(unit)


@contextmanager
def without_ray(seconds: float = 0) -> Iterator[None]:
    """`runner` finds workers that need no Ray, and take so long for a unit."""

    def label_wave(work: Work, portions: list[Portion], *_: Any) -> tuple[graph.Fates, list[str]]:
        failures = []
        for portion in portions:
            try:
                label(work, portion.unit, seconds)
            except Exception as error:  # noqa: BLE001  as Ray does
                failures.append({"unit": portion.unit.number, "error": type(error).__name__, "message": str(error)})
        return graph.Fates(failures=tuple(failures)), []

    changes: dict[str, Callable[..., Any]] = {
        "cluster": lambda address: nullcontext(),
        "resources": lambda: (1, 0.0, 2.0**40),
        "describe": lambda question: DESCRIPTION,
        "label_wave": label_wave,
    }
    with patch.multiple(graph, **changes):
        yield


def go_on(source: str, output: str, **options: Any) -> Summary:
    """Resumes the job, or runs it where its planning never ended."""
    try:
        Manifest(Storage(output)).read_job()
    except JobError:
        return runner.run(job_of(source, output, **options))
    return runner.resume(output)


def main(source: str, output: str, seconds: str = "0") -> None:
    """As a process of its own: the exit codes are the command's."""
    with without_ray(float(seconds)):
        try:
            code = go_on(source, output, unit_images=2).exit_code
        except PrelabelError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
