"""A job's configuration: what is refused, and what makes it another job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prelabel.schemas.errors import UserError
from prelabel.schemas.job import Job, JobRecord, Labels, ModelChoice, Runtime, fingerprint

OTHER: dict[str, Any] = {
    "sources": ("b",),
    "models": ({"name": "torchvision:fcos_resnet50_fpn"},),
    "include": ("*.foo",),
    "image_column": "picture",
    "allow_scheme": ("file",),
    "allow_private_addresses": True,
    "limit": 7,
    "tasks": ("detect",),
    "python_path": "/code",
    "keep_proposals": 100,
    "top_labels": 3,
    "panoptic_score": 0.3,
    "panoptic_overlap": 0.3,
    "panoptic_stuff_area": 30,
    "precision": "bf16",
    "tile": 640,
    "tile_overlap": 0.1,
    "max_image_pixels": 1_000_000,
    "max_image_bytes": 1_000_000,
    "unit_images": 64,
    "unit_bytes": 2**20,
}
"""Another value for every field of Labels."""
OTHER_MODEL: dict[str, Any] = {
    "name": "torchvision:fcos_resnet50_fpn",
    "weights": "mine.pth",
    "weights_sha256": "0" * 64,
    "categories": "mine.json",
    "score_threshold": 0.3,
    "tasks": ("detect",),
}
"""The same for ModelChoice."""


def labels(**options: Any) -> Labels:
    return Labels(**{"sources": ("a",), "models": ({"name": "scenes:maskrcnn"},)} | options)


def test_options_find_their_place() -> None:
    job = Job.of("a", "b", output="out", model="scenes:maskrcnn", limit=3, batch_size=4, weights=None, workers="2:8")
    assert job.labels == labels(sources=("a", "b"), limit=3)
    assert job.runtime == Runtime(batch_size=4, workers="2:8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit: .*greater than 0"),
        ({"score_threshold": 1.5}, "--score-threshold: .*less than or equal to 1"),
        ({"workers": "many"}, "--workers: .*'many' is neither a number nor MIN:MAX"),
        ({"workers": "0"}, "--workers"),
        ({"batch_size": "two"}, "--batch-size: .*integer"),
        ({"weights": ""}, "--weights: says nothing"),
        ({"colour": "red"}, "--colour: there is no such option"),
        ({"limit": 0, "batch_size": 0}, "--limit: .*greater than 0"),
    ],
)
def test_value_that_makes_no_sense_is_one_line_with_the_options_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Job.of("a", output="out", **{"model": "scenes:maskrcnn"} | options)
    assert "\n" not in str(caught.value)


def test_what_is_said_of_one_of_several_models() -> None:
    job = Job.of(
        "a",
        output="out",
        model=["python:a:b", "scenes:maskrcnn"],
        weights=["scenes:maskrcnn=a=b.pth"],
        score_threshold=["0.3", "python:a:b=0.5"],
        task=["detect", "scenes:maskrcnn=propose"],
    )
    assert job.labels.tasks == ("detect",)
    assert job.labels.models == (
        ModelChoice(name="python:a:b", score_threshold=0.5),
        ModelChoice(name="scenes:maskrcnn", weights="a=b.pth", score_threshold=0.3, tasks=("propose",)),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"model": ["a:b", "c:d"], "weights": "mine.pth"},
        {"model": ["a:b", "c:d"], "categories": ["a:b=x.json", "a:b=y.json"]},
        {"model": "a:b", "weights": ["mine.pth", "yours.pth"]},
    ],
)
def test_whose_it_is_must_be_plain(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="say it once, or once of each model as MODEL=VALUE"):
        Job.of("a", output="out", **options)


@pytest.mark.parametrize("option", ["weights", "score_threshold", "task"])
def test_a_model_that_the_job_does_not_have(option: str) -> None:
    with pytest.raises(UserError, match=r"--.* one:c=0.5: one:c is no model of this job: one:a and two:b$"):
        Job.of("a", output="out", model=["one:a", "two:b"], **{option: "one:c=0.5"})


def test_paths_and_single_values_are_taken_as_they_come() -> None:
    job = Job.of(Path("a"), output=Path("out"), model="a:b", weights=Path("m=1.pth"), include="*.png", task="detect")
    assert job.labels.models == (ModelChoice(name="a:b", weights="m=1.pth"),)
    assert (job.labels.sources, job.labels.include, job.labels.tasks) == (("a",), ("*.png",), ("detect",))
    assert Job.of("a", output="out", model="a:b", weights="s3://b/m=1.pth").labels.models[0].weights == "s3://b/m=1.pth"


def test_job_needs_a_source_and_a_model() -> None:
    with pytest.raises(UserError, match="--sources"):
        Job.of(output="out", model="scenes:maskrcnn")
    with pytest.raises(UserError, match=r"--model: .*name one"):
        Job.of("a", output="out")


@pytest.mark.parametrize(("workers", "expected"), [(None, None), ("3", (3, 3)), ("2:8", (2, 8)), (4, (4, 4))])
def test_worker_range(workers: Any, expected: tuple[int, int] | None) -> None:
    assert Runtime(workers=workers).worker_range == expected


@pytest.mark.parametrize("workers", ["8:2", "0", "many", 0])
def test_workers_that_make_no_sense(workers: Any) -> None:
    with pytest.raises(UserError, match="--workers"):
        Job.of("a", output="out", model="scenes:maskrcnn", workers=workers)


def test_everything_that_changes_results_changes_the_fingerprint() -> None:
    assert OTHER.keys() == Labels.model_fields.keys()
    assert OTHER_MODEL.keys() == ModelChoice.model_fields.keys()
    model = {"name": "scenes:maskrcnn"}
    others = [labels(**{name: value}) for name, value in OTHER.items()]
    others += [labels(models=(model | {name: value},)) for name, value in OTHER_MODEL.items() if name != "name"]
    prints = {fingerprint(other, ["w"], "c") for other in others}
    prints |= {fingerprint(labels(), *rest) for rest in ((["w"], "c"), (["x"], "c"), (["w"], "d"), (["w", "w"], "c"))}
    assert len(prints) == len(others) + 4


def test_order_of_tasks_and_repeats_are_no_change() -> None:
    one, other = labels(tasks=("segment_instances", "detect")), labels(tasks=("detect", "detect", "segment_instances"))
    assert fingerprint(one, ["w"], "c") == fingerprint(other, ["w"], "c")


def test_record_survives_json_and_refuses_what_it_does_not_know() -> None:
    record = JobRecord(
        job=Job(output="s3://bucket/labels", labels=labels(**OTHER), runtime=Runtime(gpus_per_worker=0.5)),
        fingerprint="f",
        models=[{"name": "scenes:maskrcnn", "digest": "d"}],
        tasks=("detect",),
        tables=("annotations", "images"),
        categories=[{"id": 1, "name": "ü\n"}],
        images=2**40,
        units=7,
        versions={"torch": "2.15"},
        created="2026-01-01T00:00:00+00:00",
    )
    assert JobRecord.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValidationError):
        JobRecord.model_validate(record.model_dump() | {"colour": "red"})


def test_a_task_that_is_misspelled_is_told_at_once() -> None:
    for task in ("detekt", "scenes:maskrcnn=detekt"):
        with pytest.raises(UserError, match=r"--task: 'detekt' is no task: did you mean detect\?"):
            Job.of("in", output="out", model="scenes:maskrcnn", task=[task])


@pytest.mark.parametrize(("most", "expected"), [(3, 3), ("3", 3), ("2.5%", "2.5%"), ("100%", "100%"), (None, None)])
def test_failed_images_are_counted_or_a_share(most: object, expected: object) -> None:
    assert Job.of("in", output="out", model="scenes:maskrcnn", max_failed=most).runtime.max_failed == expected


@pytest.mark.parametrize("most", [-1, "many", "101%", "5 %", "nan%", 2.5])
def test_no_other_share_of_failed_images(most: object) -> None:
    with pytest.raises(UserError, match=r"--max-failed: .* is neither a number nor a share such as 5%"):
        Job.of("in", output="out", model="scenes:maskrcnn", max_failed=most)
