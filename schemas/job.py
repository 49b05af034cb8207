"""A job's configuration: `Labels` changes the results and is fingerprinted, `Runtime` does not and is not."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prelabel.schemas.errors import UserError

Positive = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Labels(_Section):
    """What is labeled, and how: everything here can change a result.

    Attributes:
        sources: URLs or local paths
        include: globs on a folder's keys or a tar's members, instead of the image suffixes
        image_column: the Parquet column with images, or the list's column with URIs; None: found by type and name
        limit: label only the first images of the plan
        model: as family:name
        tasks: what to ask of the model; none: all it can do
        weights: a name that the family knows, or a file; None: the family's default
        categories: a file that names the categories; None: the model's own
        python_path: the folder that `python:module:factory` is imported from; None: the current one
        score_threshold: None is 0.05, or the model's own threshold where that is higher
        max_image_pixels: an image with more is refused before it is decoded
        unit_images, unit_bytes: where the planner cuts a shard into units
    """

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    model: str
    include: tuple[str, ...] = ()
    image_column: str | None = None
    limit: Positive | None = None
    tasks: tuple[str, ...] = ()
    weights: str | None = None
    categories: str | None = None
    python_path: str | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    max_image_pixels: Positive = 178_956_970
    unit_images: Positive = 512
    unit_bytes: Positive = 256 * 2**20

    @field_validator("tasks")
    @classmethod
    def _in_one_order(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(tasks)))


class Runtime(_Section):
    """How the work is run: nothing here changes a result.

    Attributes:
        workers: actors that hold the model, as N or MIN:MAX; None: one per GPU, or one on CPUs
        gpus_per_worker: may be a fraction; None: 1 where the cluster has GPUs, else 0
        cpus_per_worker: processors, and as many threads; None: shared out evenly
        batch_size: images a forward pass; None: 8 on a GPU, 1 on CPUs
        address: of a running Ray cluster ("auto" finds it); None: Ray starts here
        max_failed: more failed images than this end in exit code 3; None: any number is fine
        max_failed_units: the run stops after this many units have failed
    """

    workers: str | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    cpus_per_worker: Positive | None = None
    batch_size: Positive | None = None
    address: str | None = None
    max_failed: Annotated[int, Field(ge=0)] | None = None
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

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Fewest and most workers."""
        if self.workers is None:
            return None
        fewest, _, most = self.workers.partition(":")
        return int(fewest), int(most or fewest)


class Job(_Section):
    """One run's configuration and the URL of its output directory."""

    output: str
    labels: Labels
    runtime: Runtime = Runtime()

    @classmethod
    def of(cls, *sources: str, output: str, **options: Any) -> Job:
        """A job from the command line's option names: `Job.of("images", output="labels", model="…", batch_size=4)`.

        Raises:
            UserError: an option is unknown or its value makes no sense.
        """
        given = {name: value for name, value in options.items() if value is not None}
        runtime = {name: given.pop(name) for name in Runtime.model_fields if name in given}
        try:
            return cls(output=output, labels=Labels(sources=sources, **given), runtime=Runtime(**runtime))
        except ValidationError as error:
            raise UserError(in_one_line(error)) from error


def in_one_line(error: ValidationError) -> str:
    """What pydantic found, by the option's name on the command line."""
    options = {str(detail["loc"][-1] if detail["loc"] else ""): detail["msg"] for detail in error.errors()}
    return "; ".join(f"--{name.replace('_', '-')}: {message}" for name, message in options.items())


def fingerprint(labels: Labels, model_digest: str, categories_digest: str) -> str:
    """The SHA-256 of what changes results: the configuration, the weights' bytes, the resolved categories."""
    parts = {"labels": labels.model_dump(mode="json"), "model": model_digest, "categories": categories_digest}
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


class JobRecord(_Section):
    """What `job.json` says: written once, after the plan; with it a job can be resumed.

    Attributes:
        job: the configuration, with absolute paths
        fingerprint: of what changes the results
        model: name, digest of the weights
        tasks: what the model is asked for, resolved
        tables: folders that the job writes
        categories: COCO category dicts
        images, units: how much is planned
        versions: of the packages that the results depend on
        created: ISO 8601, for people
    """

    job: Job
    fingerprint: str
    model: dict[str, str]
    tasks: tuple[str, ...]
    tables: tuple[str, ...]
    categories: list[dict[str, Any]]
    images: int
    units: int
    versions: dict[str, str]
    created: str
