"""A job's configuration: `Labels` changes the results and is fingerprinted, `Runtime` does not and is not."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from prelabel.schemas.errors import UserError, redacted


def _without_secret(url: str) -> str:
    if "://" in url and redacted(url) != url:
        raise ValueError(
            f"{redacted(url)} holds a secret, which the job would write down: keep credentials where fsspec looks for "
            "them (environment variables, configuration files); signed URLs of images may stand in a list"
        )
    return url


Url = Annotated[str, AfterValidator(_without_secret)]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_without_secret)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OF_A_MODEL = ("weights", "weights_sha256", "categories", "score_threshold", "task")
"""Options that may be said of one model: `MODEL=VALUE`."""
TASKS = (
    "propose",
    "detect",
    "segment_instances",
    "segment_semantic",
    "fuse_panoptic",
    "classify",
    "detect_keypoints",
)
"""What can be asked of a model, as `prelabel.operators.base.Task` has it."""
LEAST_JUDGED = 100
"""Images before a share of failed ones means anything."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    for task in tasks:
        if task not in TASKS:
            near = difflib.get_close_matches(task, TASKS, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{task!r} is no task: {guess}they are {', '.join(TASKS)}")
    return tuple(sorted(set(tasks)))


class ModelChoice(_Section):
    """A model of a job.

    Attributes:
        name: family:name
        weights: a name that the family knows, or a file; None: the family's default
        weights_sha256: what the SHA-256 of the weights' file must be
        categories: a file that names the categories; None: the model's own
        score_threshold: None is 0.05, or the model's own threshold where that is higher
        tasks: what to ask of this model; none: the job's tasks
    """

    name: Name
    weights: Name | None = None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    categories: Name | None = None
    score_threshold: Fraction | None = None
    tasks: tuple[str, ...] = ()

    @field_validator("tasks")
    @classmethod
    def _in_one_order(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return _tasks(tasks)


class Labels(_Section):
    """What is labeled, and how: everything here can change a result.

    Attributes:
        sources: URLs or local paths
        include: globs on a folder's keys or a tar's members, instead of the image suffixes
        image_column: the Parquet column with images, or the list's column with URIs; None: found by type and name
        allow_scheme: schemes, such as file, that a list of URIs may name besides those that it may anyway
        allow_private_addresses: whether lists may lead to web servers on this machine or in its network
        limit: label only the first images of the plan
        models: at least one; those that take regions come after one that proposes them
        tasks: what to ask of all models that can do it; none: all they can
        python_path: the folder that `python:module:factory` is imported from, and in which a model's folder is; None:
            the current one
        keep_proposals: rows of the proposals table per image; None: none, or 1,000 where the tasks say `propose`
        top_labels: image-level labels per image and model
        panoptic_score, panoptic_overlap, panoptic_stuff_area: see `prelabel.operators.options`
        precision: of most of a network's arithmetic; float32 gives the reference's results up to rounding
        tile, tile_overlap: side in pixels, and shared fraction, of windows on large images; None: no windows
        max_image_pixels: an image with more is refused before it is decoded
        max_image_bytes: an image file with more is not read
        unit_images, unit_bytes: where the planner cuts a shard into units
    """

    sources: Annotated[tuple[Url, ...], Field(min_length=1)]
    models: tuple[ModelChoice, ...]
    include: tuple[str, ...] = ()
    image_column: str | None = None
    allow_scheme: tuple[Name, ...] = ()
    allow_private_addresses: bool = False
    limit: Positive | None = None
    tasks: tuple[Name, ...] = ()
    python_path: str | None = None
    keep_proposals: Annotated[int, Field(gt=0, le=65_536)] | None = None
    top_labels: Positive = 5
    panoptic_score: Fraction | None = None
    panoptic_overlap: Fraction | None = None
    panoptic_stuff_area: Annotated[int, Field(ge=0)] = 4096
    precision: Literal["float32", "bf16"] = "float32"
    tile: Annotated[int, Field(ge=32)] | None = None
    tile_overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.25
    max_image_pixels: Positive = 178_956_970
    max_image_bytes: Positive = 2**30
    unit_images: Positive = 512
    unit_bytes: Positive = 256 * 2**20

    @field_validator("tasks")
    @classmethod
    def _in_one_order(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return _tasks(tasks)

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelChoice, ...]) -> tuple[ModelChoice, ...]:
        names = [model.name for model in models]
        if not names:
            raise ValueError("name one; `prelabel models` lists them")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is there twice")
        return models


class Runtime(_Section):
    """How the work is run: nothing here changes a result beyond the rounding of floats.

    Attributes:
        pools: "shared", each worker holds all models; "each", every model has workers of its own
        workers: actors of a pool, as N or MIN:MAX; None: one per GPU, or one on CPUs
        gpus_per_worker: may be a fraction; None: 1 where the cluster has GPUs, else 0
        cpus_per_worker: processors, and as many threads; None: shared out evenly
        batch_size: images a forward pass; None: up to 8, on CPUs fewer of networks whose inputs are large
        address: of a running Ray cluster ("auto" finds it); None: Ray starts here
        image_timeout: seconds that decoding an image may take, and a model for 16 megapixels of it
        max_failed: the run stops, and the exit code is 3, when more images fail than N, or than F% of those worked so
            far; None: any number is fine
        max_failed_units: the run stops after this many units have failed
    """

    pools: Literal["shared", "each"] = "shared"
    workers: str | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    cpus_per_worker: Positive | None = None
    batch_size: Positive | None = None
    address: Url | None = None
    image_timeout: Annotated[float, Field(gt=0, le=1e6)] = 600
    max_failed: int | str | None = None
    max_failed_units: Positive = 100

    @field_validator("workers", mode="before")
    @classmethod
    def _is_range(cls, workers: Any) -> str | None:
        if workers is None:
            return None
        fewest, _, most = str(workers).partition(":")
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", str(workers)) or int(most or fewest) < int(fewest):
            raise ValueError(f"{workers!r} is neither a number nor MIN:MAX")
        return str(workers)

    @field_validator("max_failed", mode="before")
    @classmethod
    def _is_number_or_share(cls, most: Any) -> int | str | None:
        text = str(most)
        if most is not None and not re.fullmatch(r"\d{1,15}|(\d{1,2}(\.\d{1,9})?|100)%", text):
            raise ValueError(f"{most!r} is neither a number nor a share such as 5%")
        return most if most is None else text if text.endswith("%") else int(text)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Fewest and most workers."""
        if self.workers is None:
            return None
        fewest, _, most = self.workers.partition(":")
        return int(fewest), int(most or fewest)


def exceeds(max_failed: int | str | None, failed: int, images: int) -> bool:
    """Whether so many failed images, of so many, are more than `Runtime.max_failed` tolerates."""
    if isinstance(max_failed, str):
        return 100 * failed > float(max_failed.removesuffix("%")) * images
    return max_failed is not None and failed > max_failed


class Job(_Section):
    """One run's configuration and the URL of its output directory."""

    output: Url
    labels: Labels
    runtime: Runtime = Runtime()

    @classmethod
    def of(cls, *sources: str | os.PathLike[str], output: str | os.PathLike[str], **options: Any) -> Job:
        """A job from the command line's option names: `Job.of("images", output="labels", model="…", batch_size=4)`.

        `model`, `task` and `include`, and with several models those of OF_A_MODEL, may be a list; `"A=V"` in one of
        those that can say whose they are says V of model A alone. Paths may be `pathlib`'s.

        Raises:
            UserError: an option is unknown or its value makes no sense.
        """
        given = {name: value for name, value in options.items() if value is not None}
        given |= {name: tuple(_listed(given.pop(name, ()))) for name in ("include", "allow_scheme")}
        runtime = {name: given.pop(name) for name in Runtime.model_fields if name in given}
        models = _models(_listed(given.pop("model", ())), {name: _listed(given.pop(name, ())) for name in OF_A_MODEL})
        try:
            labels = Labels(sources=tuple(_listed(sources)), **models, **given)
            return cls(output=os.fspath(output), labels=labels, runtime=Runtime(**runtime))
        except ValidationError as error:
            raise UserError(in_one_line(error)) from error


def _listed(value: Any) -> list[Any]:
    values = value if isinstance(value, list | tuple | set) else [value]
    return [os.fspath(one) if isinstance(one, os.PathLike) else one for one in values]


def _models(names: list[str], given: dict[str, list[Any]]) -> dict[str, Any]:
    """Labels' `models` and `tasks`. Raises UserError for a value of which it can't be told whose it is."""
    common = {
        option: [value for value in values if not any(_is_of(name, value) for name in names)]
        for option, values in given.items()
    }
    for option, values in common.items():
        for value in values:
            _check_common(option, value, names)
    return {"models": [_choice(name, len(names), common, given) for name in names], "tasks": common["task"]}


def _is_of(name: str, value: Any) -> bool:
    return isinstance(value, str) and value.startswith(f"{name}=")


def _check_common(option: str, value: Any, names: list[str]) -> None:
    """Raises UserError for a value that is said of a model that the job does not have."""
    owner, equals, _ = str(value).partition("=")
    # A file's name may have "=" in it, and a URL ":".
    if equals and (option in ("task", "score_threshold") or re.match(r"\w{2,}:(?!//)", owner)):
        raise UserError(f"--{_dashed(option)} {value}: {owner} is no model of this job: {' and '.join(names)}")


def _choice(name: str, models: int, common: dict[str, list[Any]], given: dict[str, list[Any]]) -> dict[str, Any]:
    own = {
        option: [value.removeprefix(f"{name}=") for value in values if _is_of(name, value)]
        for option, values in given.items()
    }
    choice = {"name": name, "tasks": own.pop("task")}
    for option, values in own.items():
        said = values or common[option]
        if len(said) > 1 or (models > 1 and option != "score_threshold" and common[option]):
            raise UserError(f"--{_dashed(option)}: say it once, or once of each model as MODEL=VALUE")
        if said:
            choice[option] = said[0]
    return choice


_MESSAGES = {
    "extra_forbidden": "there is no such option",
    "too_short": "name at least one",
    "string_too_short": "says nothing",
    "string_pattern_mismatch": "expected 64 hexadecimal digits",
}
"""In place of pydantic's, by its type of error."""


def in_one_line(error: ValidationError) -> str:
    """What pydantic found, by the option's name on the command line."""
    told: dict[str, str] = {}
    for detail in error.errors():
        message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
        told.setdefault(_option(detail["loc"]), message)
    return "; ".join(f"--{_dashed(name)}: {message}" for name, message in told.items())


def _option(place: tuple[int | str, ...]) -> str:
    names = [str(part) for part in place if isinstance(part, str)] or [""]
    return {"models": "model", "name": "model", "tasks": "task"}.get(names[-1], names[-1])


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def fingerprint(labels: Labels, model_digests: Sequence[str], categories_digest: str) -> str:
    """The SHA-256 of what changes results: the configuration, the weights' bytes, the resolved categories."""
    parts = {"labels": labels.model_dump(mode="json"), "models": model_digests, "categories": categories_digest}
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


class JobRecord(_Section):
    """What `job.json` says: written once, after the plan; with it a job can be resumed.

    Attributes:
        job: the configuration, with absolute paths
        fingerprint: of what changes the results
        models: name and digest of the weights of each
        tasks: whose rows are written
        tables: folders that the job writes
        categories: COCO category dicts
        images, units: how much is planned
        versions: of the packages that the results depend on
        created: ISO 8601, for people
    """

    job: Job
    fingerprint: str
    models: list[dict[str, str]]
    tasks: tuple[str, ...]
    tables: tuple[str, ...]
    categories: list[dict[str, Any]]
    images: int
    units: int
    versions: dict[str, str]
    created: str
