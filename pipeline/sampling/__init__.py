"""Which images people should look at first: chosen with known probabilities, so that `audit` can speak for all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.query.connection import connect
from prelabel.pipeline.sampling.drawing import draw
from prelabel.pipeline.sampling.objects import view_objects
from prelabel.pipeline.sampling.rules import measure
from prelabel.pipeline.storage import reaching
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.errors import UserError
from prelabel.schemas.tables import SAMPLES, file_metadata

STRATA = {"failed": "that could not be read", "empty": "in which nothing was found"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Sample:
    """Images that were chosen.

    Attributes:
        name: of the sample
        rows: of the table SAMPLES, by image_id
    """

    name: str
    rows: pa.Table

    @property
    def where(self) -> str:
        """The condition that holds for its images, for `prelabel export --where` and the review page."""
        return f"image_id IN (SELECT image_id FROM samples WHERE sample = '{self.name}')"

    @property
    def sql(self) -> str:
        """The question whose answer it is, as a table."""
        columns = "image_id, key, reason, weight, probability"
        return f"SELECT {columns} FROM samples WHERE sample = '{self.name}' ORDER BY image_id"

    def lines(self) -> Iterator[str]:
        """For people."""
        strata = Counter(self.rows["stratum"].to_pylist())
        said = ", ".join(f"{strata[name]:,} {words}" for name, words in STRATA.items() if strata[name])
        yield f"sample {self.name}: {len(self.rows):,} images{f', {said}' if said else ''}"

    @property
    def score_threshold(self) -> float | None:
        """What objects scored at least, to count."""
        threshold: float | None = self.rows["score_threshold"][0].as_py()
        return threshold


def choose(
    dataset: LabelDataset,
    by: str,
    budget: int,
    seed: int = 0,
    other: LabelDataset | None = None,
    score_threshold: float | None = None,
    name: str | None = None,
) -> Sample:
    """Chooses images and keeps them in the table `samples` of the job, in a file of their own.

    The same arguments choose the same images. Memory does not grow with the number of images, but with the budget:
    DuckDB puts on disk what is too much.

    Args:
        dataset: the job
        by: "uncertainty", "disagreement", "diversity" or "random"
        budget: how many images; all, where there are fewer
        seed: of chance, 0 or more
        other: a job over the same images, for "disagreement"
        score_threshold: objects that score lower do not count; by default all do, and scores near 0.5 are in doubt
        name: of the sample; by default it is made of rule, budget and seed

    Raises:
        UserError: something makes no sense, there are no images, or another sample has the name.
        JobError: a part is damaged, or nothing can be written there.
    """
    name = f"{by}-{budget}-{seed}" if name is None else name
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: give letters, digits, -, _ and . only, 100 at most")
    with closing(connect(dataset)) as connection:
        view_objects(connection, dataset.record, score_threshold)
        measure(connection, dataset, by, other, score_threshold or 0.0)
        found = draw(connection, budget, seed)
    if not len(found):
        raise UserError(f"{dataset.url} has no images yet: `prelabel status {dataset.url}`")
    for field, value in (("sample", name), ("score_threshold", score_threshold)):
        found = found.append_column(field, pa.array([value] * len(found), SAMPLES.field(field).type))
    sample = Sample(name, found.select(SAMPLES.names).cast(SAMPLES))
    _keep(dataset, sample)
    return sample


def _keep(dataset: LabelDataset, sample: Sample) -> None:
    file = f"samples/{sample.name}.parquet"
    if file not in dataset.parts("samples"):
        data = to_parquet(sample.rows, file_metadata(dataset.record.fingerprint, dataset.categories.to_json()))
        with reaching(f"write to {dataset.url}"):
            dataset.storage.put(file, data)
    elif open_sample(dataset, sample.name).rows != sample.rows:
        raise UserError(f"{dataset.url} has another sample {sample.name!r}: give this one a --name of its own")


def open_sample(dataset: LabelDataset, name: str | None = None) -> Sample:
    """A sample that was chosen before.

    Args:
        dataset: the job
        name: of the sample; None where there is but one

    Raises:
        UserError: there is none of that name, or there are several.
        JobError: it can't be read.
    """
    names = [part.removeprefix("samples/").removesuffix(".parquet") for part in dataset.parts("samples")]
    if not names:
        raise UserError(f"{dataset.url} has no sample: choose images to look at with `prelabel sample {dataset.url}`")
    if name not in (names if name or len(names) > 1 else [None]):
        problem = f"has no sample {name!r}" if name else "has several samples"
        raise UserError(f"{dataset.url} {problem}: give --sample {' or '.join(names)}")
    chosen = name or names[0]
    batches = dataset.read_parts("samples", [f"samples/{chosen}.parquet"])
    return Sample(chosen, pa.Table.from_batches(batches, SAMPLES))
