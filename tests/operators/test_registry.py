"""Who is asked for what: tasks, models, and what models need of one another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from prelabel.operators.base import Model, Prediction, Proposals, Task
from prelabel.operators.options import DEFAULTS
from prelabel.operators.registry import OPERATORS, assign, operators_for
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import ModelError
from prelabel.schemas.job import TASKS
from prelabel.schemas.tables import TABLES

PROPOSE, DETECT, INSTANCES, SEMANTIC, FUSE, CLASSIFY, KEYPOINTS = (
    Task.PROPOSE,
    Task.DETECT,
    Task.SEGMENT_INSTANCES,
    Task.SEGMENT_SEMANTIC,
    Task.FUSE_PANOPTIC,
    Task.CLASSIFY,
    Task.DETECT_KEYPOINTS,
)


class Able(Model):
    """Can do some tasks, by its word."""

    categories = CategorySet([])

    def __init__(self, name: str, *tasks: Task, takes_regions: bool = False) -> None:
        self.name, self.tasks, self.takes_regions = f"test:{name}", frozenset(tasks), takes_regions

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        raise AssertionError

    def predict(
        self, images: Sequence[torch.Tensor], tasks: frozenset[Task], regions: Sequence[Proposals] | None = None
    ) -> list[Prediction]:
        raise AssertionError


MASKS = Able("masks", PROPOSE, DETECT, INSTANCES)
GROUNDS = Able("grounds", SEMANTIC)
OTHER_GROUNDS = Able("other-grounds", SEMANTIC, CLASSIFY)
WHOLE = Able("whole", SEMANTIC, INSTANCES, FUSE)
REGIONS = Able("regions", PROPOSE)
CROPS = Able("crops", DETECT, takes_regions=True)


def asked(
    *models: Model, common: Sequence[str] = (), own: Sequence[Sequence[str]] = (), keep: bool = False
) -> list[set]:
    """What is asked of each model, then what is written."""
    found = assign(models, common, own, keep)
    return [*map(set, found.asked), set(found.written)]


def test_without_a_word_each_does_what_it_can_but_propose() -> None:
    assert asked(MASKS) == [{DETECT, INSTANCES}, {DETECT, INSTANCES}]
    assert asked(MASKS, keep=True)[0] == asked(MASKS, keep=True)[1] == {PROPOSE, DETECT, INSTANCES}
    assert asked(REGIONS) == [{PROPOSE}, {PROPOSE}]
    assert asked(WHOLE)[1] == {SEMANTIC, INSTANCES, FUSE}


def test_a_task_goes_to_every_model_that_can_do_it() -> None:
    assert asked(GROUNDS, OTHER_GROUNDS, common=["segment_semantic"]) == [{SEMANTIC}] * 3
    assert asked(MASKS, WHOLE, common=["segment_instances"]) == [{INSTANCES}] * 3


def test_a_task_of_one_model_alone() -> None:
    found = asked(MASKS, OTHER_GROUNDS, common=["detect"], own=[[], ["classify"]])
    assert found == [{DETECT}, {CLASSIFY}, {DETECT, CLASSIFY}]


def test_panoptic_segments_are_fused_from_two_models_and_come_with_annotations() -> None:
    assert asked(MASKS, GROUNDS, common=["fuse_panoptic"]) == [{INSTANCES}, {SEMANTIC}, {FUSE, INSTANCES}]
    assert asked(MASKS, GROUNDS)[2] == {DETECT, INSTANCES, SEMANTIC, FUSE}


def test_panoptic_segments_of_one_model_need_no_fusing() -> None:
    assert asked(WHOLE, common=["fuse_panoptic"]) == [{FUSE}, {FUSE}]


def test_one_model_is_chosen_for_stuff() -> None:
    models = MASKS, GROUNDS, OTHER_GROUNDS
    with pytest.raises(ModelError, match=r"test:grounds and test:other-grounds would each .*MODEL=TASK"):
        assign(models, ["fuse_panoptic"])
    found = asked(*models, common=["fuse_panoptic"], own=[[], ["segment_semantic"], ["classify"]])
    assert found == [{INSTANCES}, {SEMANTIC}, {CLASSIFY}, {FUSE, INSTANCES, SEMANTIC, CLASSIFY}]


def test_fusing_may_be_asked_of_one_model_by_name() -> None:
    found = asked(Able("both", INSTANCES, SEMANTIC), WHOLE, own=[["fuse_panoptic"], ["segment_instances"]])
    assert found == [{INSTANCES, SEMANTIC}, {INSTANCES}, {FUSE, INSTANCES}]


def test_no_task_is_dropped() -> None:
    with pytest.raises(ModelError, match="segment_semantic would be asked of no model"):
        assign([OTHER_GROUNDS], ["segment_semantic"], [["classify"]])


def test_regions_come_from_the_nearest_model_before() -> None:
    assert asked(MASKS, REGIONS, CROPS, common=["detect"]) == [{DETECT}, {PROPOSE}, {DETECT}, {DETECT}]
    assert asked(REGIONS, CROPS) == [{PROPOSE}, {DETECT}, {DETECT}]
    assert asked(REGIONS, CROPS, keep=True)[2] == {PROPOSE, DETECT}
    with pytest.raises(ModelError, match="test:crops looks at regions only: put a model that proposes before it"):
        assign([CROPS, REGIONS])


@pytest.mark.parametrize(
    ("models", "common", "message"),
    [
        ([MASKS], ["classify"], r"test:masks can't classify: test:masks can detect, propose, .*--model torchvision:"),
        ([MASKS], ["detekt"], "can't detekt: .*the tasks are classify, detect, detect_keypoints"),
        ([MASKS], ["fuse_panoptic"], "it takes one model that does it, or two that segment_instances and segment_sem"),
        ([MASKS, GROUNDS], ["detect"], "nothing is asked of test:grounds, which can segment_semantic: leave it out"),
    ],
)
def test_what_nobody_can_do(models: list[Model], common: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        assign(models, common)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", OPERATORS)
def test_every_operator_writes_to_a_table(task: Task) -> None:
    (operator,) = operators_for([task], CategorySet([]), DEFAULTS)
    assert operator.task == task
    assert operator.table in TABLES


def test_each_object_is_written_once() -> None:
    operators = operators_for([DETECT, INSTANCES, KEYPOINTS, SEMANTIC], CategorySet([]), DEFAULTS)
    assert [operator.task for operator in operators] == [KEYPOINTS, SEMANTIC]


def test_a_job_knows_the_tasks_by_name() -> None:
    assert set(TASKS) == set(Task)
