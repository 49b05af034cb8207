"""Which operator answers to which task."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from prelabel.operators.base import Model, Operator, Task
from prelabel.schemas.errors import ModelError

OPERATORS: dict[Task, str] = {
    Task.DETECT: "prelabel.operators.detect:Detect",
    Task.SEGMENT_INSTANCES: "prelabel.operators.segment:SegmentInstances",
}
"""Task -> "module:Class", imported on use."""


def chosen_tasks(model: Model, asked: Iterable[str]) -> tuple[Task, ...]:
    """The tasks asked for, or all that the model can do, in one order.

    Raises:
        ModelError: there is no such task, or the model can't do it.
    """
    able = ", ".join(sorted(model.tasks))
    for name in asked:
        if name not in model.tasks:
            raise ModelError(f"{model.name} can't {name}: it can {able}; choose with --task, or another --model")
    return tuple(sorted(Task(name) for name in (list(asked) or model.tasks)))


def operators_for(tasks: Iterable[Task]) -> list[Operator]:
    """One operator per task, less those whose rows another one writes as well."""
    operators = [_load(OPERATORS[task]) for task in sorted(tasks)]
    included = {task for operator in operators for task in operator.includes}
    return [operator for operator in operators if operator.task not in included]


def _load(target: str) -> Operator:
    module, _, name = target.partition(":")
    operator: Operator = getattr(import_module(module), name)()
    return operator
