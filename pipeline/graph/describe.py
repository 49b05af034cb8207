"""What the driver must know of a job's models without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from prelabel.operators.models import ModelSpec
from prelabel.pipeline.storage import local_copy
from prelabel.schemas.errors import ModelError, PrelabelError, one_line

PACKAGES = (
    *("prelabel", "torch", "torchvision", "ray", "pyarrow", "numpy", "pillow", "numba"),
    *("transformers", "timm", "opencv-contrib-python-headless"),
)
"""Results depend on their versions."""


@dataclass(frozen=True)
class Question:
    """The models of a job, and what is asked of them.

    Attributes:
        specs: of the models
        own: for each, the tasks asked of it by name
        common: tasks asked of all that can do them
        keep_proposals: whether proposals are written whatever the tasks say
    """

    specs: tuple[ModelSpec, ...]
    own: tuple[tuple[str, ...], ...]
    common: tuple[str, ...]
    keep_proposals: bool


@dataclass(frozen=True)
class Description:
    """What the models of a job come to.

    Attributes:
        asked: for each model, its tasks
        category_ids: for each model, its category ids -> the job's
        digests: for each model, of its weights
        tasks: whose rows are written
        tables: folders that the job writes
        categories_json: of all models
        versions: of the packages that results depend on
        has_bf16: whether the processor that looked has arithmetic of that kind
    """

    asked: tuple[tuple[str, ...], ...]
    category_ids: tuple[dict[int, int], ...]
    digests: tuple[str, ...]
    tasks: tuple[str, ...]
    tables: tuple[str, ...]
    categories_json: str
    versions: dict[str, str]
    has_bf16: bool


def describe(question: Question) -> Description:
    """Builds the models once, in a worker process, and says what they are.

    Raises:
        ModelError: one can't be built, or they can't do the tasks.
    """
    # max_calls: the process ends with the task, and gives torch's memory back.
    try:
        found = ray.get(ray.remote(max_calls=1, num_cpus=1)(_describe).remote(question))
    except (WorkerCrashedError, OutOfMemoryError) as error:
        names = " and ".join(spec.name for spec in question.specs)
        raise ModelError(f"the process that loads {names} dies of it: {one_line(error):.200}") from error
    if isinstance(found, PrelabelError):
        raise found
    assert isinstance(found, Description)
    return found


def _describe(question: Question) -> Description | PrelabelError:
    from prelabel.operators.models import load_model
    from prelabel.operators.precision import has_bf16
    from prelabel.operators.registry import assign, operators_for
    from prelabel.schemas.categories import unite

    try:
        models = [load_model(here(spec)) for spec in question.specs]
        assignment = assign(models, question.common, question.own, question.keep_proposals)
    except PrelabelError as error:
        return error
    categories, category_ids = unite([model.categories for model in models])
    operators = operators_for(assignment.written, categories, question.specs[0].options)
    return Description(
        tuple(tuple(sorted(map(str, tasks))) for tasks in assignment.asked),
        tuple(category_ids),
        tuple(model.digest for model in models),
        tuple(map(str, assignment.written)),
        tuple(sorted({"images", *(operator.table for operator in operators)})),
        categories.to_json(),
        dict(_versions()),
        has_bf16(),
    )


def here(spec: ModelSpec) -> ModelSpec:
    """The same with weights on this machine's disk."""
    return replace(spec, weights=local_copy(spec.weights)) if spec.weights and "://" in spec.weights else spec


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # an extra
            yield package, version(package)
