"""Which operator answers to which task, and what a job's tasks ask of each of its models."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

from prelabel.operators.base import Model, Operator, Task
from prelabel.operators.models import who_can
from prelabel.operators.options import Options
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import ModelError

OPERATORS: dict[Task, str] = {
    Task.PROPOSE: "prelabel.operators.propose:Propose",
    Task.DETECT: "prelabel.operators.detect:Detect",
    Task.SEGMENT_INSTANCES: "prelabel.operators.segment:SegmentInstances",
    Task.SEGMENT_SEMANTIC: "prelabel.operators.semantic:SegmentSemantic",
    Task.FUSE_PANOPTIC: "prelabel.operators.panoptic:FusePanoptic",
    Task.CLASSIFY: "prelabel.operators.classify:Classify",
    Task.DETECT_KEYPOINTS: "prelabel.operators.keypoints:DetectKeypoints",
}
"""Task -> "module:Class", imported on use."""

_PARTS = (Task.SEGMENT_INSTANCES, Task.SEGMENT_SEMANTIC)
"""What panoptic segments are fused from."""


@dataclass(frozen=True)
class Assignment:
    """Who does what in a job.

    Attributes:
        asked: for each model, what it must predict
        written: the tasks whose rows the job writes, in order
    """

    asked: tuple[frozenset[Task], ...]
    written: tuple[Task, ...]


def assign(
    models: Sequence[Model],
    common: Collection[str] = (),
    own: Sequence[Collection[str]] = (),
    keep_proposals: bool = False,
) -> Assignment:
    """What to ask of each model.

    Args:
        models: of the job, in its order
        common: tasks asked of every model that can do them; none: of all that each can do, `own` ones aside
        own: for each model, the tasks asked of it by name; empty or none: the common ones
        keep_proposals: whether proposals are written, also where no task says so

    Raises:
        ModelError: no model, or not the one named, can do a task; or a model lacks what it needs from another.
    """
    own = own or [()] * len(models)
    _check_able(models, common)
    for model, names in zip(models, own, strict=True):
        _check_able([model], names)
    asked = [_wanted(model, names or common) for model, names in zip(models, own, strict=True)]
    if keep_proposals:
        _check_able(models, [Task.PROPOSE])
        for model, tasks in zip(models, asked, strict=True):
            tasks |= model.tasks & {Task.PROPOSE}
    written: set[Task] = set().union(*asked)
    explicit = {*common}.union(*own)
    if Task.FUSE_PANOPTIC in (explicit or written) or (not explicit and _is_fusible(models)):
        for model, tasks, names in zip(models, asked, own, strict=True):
            if Task.FUSE_PANOPTIC in names and Task.FUSE_PANOPTIC not in model.tasks:
                tasks |= model.tasks & set(_PARTS)
        written |= {Task.FUSE_PANOPTIC} | _fuse(models, asked)
    _hand_regions_on(models, asked)
    if any(model.takes_regions for model in models) and Task.PROPOSE not in explicit and not keep_proposals:
        written -= {Task.PROPOSE}  # they are for the other model
    if left := set(common) - written:
        raise ModelError(
            f"{_listed(left)} would be asked of no model: each that can has a --task MODEL=TASK of its own"
        )
    for model, tasks in zip(models, asked, strict=True):
        if not tasks:
            raise ModelError(f"nothing is asked of {model.name}, which can {_listed(model.tasks)}: leave it out")
    return Assignment(tuple(map(frozenset, asked)), tuple(sorted(written)))


def _wanted(model: Model, names: Collection[str]) -> set[Task]:
    """The tasks named that the model can do; all but to propose, if it can do more, where none are named."""
    return set(model.tasks).intersection(names) if names else set(model.tasks - {Task.PROPOSE} or model.tasks)


def _is_fusible(models: Iterable[Model]) -> bool:
    tasks: set[Task] = set().union(*(model.tasks for model in models))
    return Task.FUSE_PANOPTIC in tasks or tasks.issuperset(_PARTS)


def _fuse(models: Sequence[Model], asked: list[set[Task]]) -> set[Task]:
    """Asks the models for what panoptic segments are made of; returns the tasks whose rows come with that.

    The annotations are written as well, because panoptic segments refer to them.
    """
    if any(Task.FUSE_PANOPTIC in tasks for tasks in asked):
        _check_one([model for model, tasks in zip(models, asked, strict=True) if Task.FUSE_PANOPTIC in tasks])
        return set()
    for part in _PARTS:
        able = [place for place, model in enumerate(models) if part in model.tasks]
        chosen = [place for place in able if part in asked[place]] or able
        for place in chosen:
            asked[place].add(part)
    _check_one([models[place] for place in chosen])  # of the semantic ones; instances may come from several
    return {Task.SEGMENT_INSTANCES}


def _check_one(models: Sequence[Model]) -> None:
    if len(models) > 1:
        raise ModelError(
            f"{_names(models)} would each give all panoptic segments: leave one out, or "
            "say with --task MODEL=TASK what each is for"
        )


def _check_able(models: Sequence[Model], names: Collection[str]) -> None:
    """Raises ModelError for a task that none of the models can do, naming some that can."""
    for name in names:
        can = any(name in model.tasks for model in models) or (name == Task.FUSE_PANOPTIC and _is_fusible(models))
        if not can:
            abilities = "; ".join(f"{model.name} can {_listed(model.tasks)}" for model in models)
            raise ModelError(
                f"{' and '.join(model.name for model in models)} can't {name}: {abilities}; {_who_can(name)}"
            )


def _who_can(name: str) -> str:
    if name not in set(Task):
        return f"the tasks are {_listed(Task)}"
    if name == Task.FUSE_PANOPTIC:
        return f"it takes one model that does it, or two that {' and '.join(_PARTS)}"
    names = who_can(name)
    shown = " or ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")
    return f"take --model {shown}; `prelabel models --task {name}` lists all"


def _names(models: Iterable[Model]) -> str:
    return " and ".join(model.name for model in models)


def _listed(tasks: Iterable[str]) -> str:
    return ", ".join(sorted(tasks))


def _hand_regions_on(models: Sequence[Model], asked: list[set[Task]]) -> None:
    """Asks the model before one that takes regions, or the nearest before that, to propose them."""
    for place, model in enumerate(models):
        if not model.takes_regions:
            continue
        proposers = [k for k in range(place) if Task.PROPOSE in models[k].tasks]
        if not proposers:
            raise ModelError(
                f"{model.name} looks at regions only: put a model that proposes before it; {_who_can('propose')}"
            )
        asked[proposers[-1]].add(Task.PROPOSE)


def operators_for(tasks: Iterable[Task], categories: CategorySet, options: Options) -> list[Operator]:
    """One operator per task, less those whose rows another one writes as well."""
    classes = [_load(OPERATORS[task]) for task in sorted(tasks)]
    included = {task for operator in classes for task in operator.includes}
    return [operator(categories, options) for operator in classes if operator.task not in included]


def _load(target: str) -> type[Operator]:
    module, _, name = target.partition(":")
    operator: type[Operator] = getattr(import_module(module), name)
    return operator
