"""What a job has come to, told from its manifest alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prelabel.pipeline.lock import holder
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.storage import Storage
from prelabel.schemas.job import JobRecord


@dataclass(frozen=True)
class Summary:
    """What a job has come to.

    Attributes:
        output: its URL
        images: planned
        labeled: with an `ok` row in a committed unit
        failed: error code -> images with a `failed` row
        annotations, segments, proposals: rows
        units, committed: units planned, and those that count
        failures: why units without a commit could not be finished, as `_manifest/failures` has it
        seconds: this run took
        max_failed: failed images that the job tolerates
        runner: who works on it now
        worked: whether there was anything to do
    """

    output: str
    images: int
    labeled: int
    failed: dict[str, int]
    annotations: int
    units: int
    committed: int
    segments: int = 0
    proposals: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    max_failed: int | None = None
    runner: dict[str, Any] | None = None
    worked: bool = True

    @property
    def failed_images(self) -> int:
        """Images with a `failed` row."""
        return sum(self.failed.values())

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.committed == self.units

    @property
    def exit_code(self) -> int:
        """0, or 3 where units failed or more images than `max_failed`."""
        too_many = self.max_failed is not None and self.failed_images > self.max_failed
        return 0 if self.is_complete and not too_many else 3


def status(output: str) -> Summary:
    """How far a job is.

    Raises:
        JobError: there is no job at the URL.
    """
    manifest = Manifest(Storage(output))
    return summarize(manifest, manifest.read_job())


def summarize(manifest: Manifest, record: JobRecord, seconds: float = 0.0) -> Summary:
    """The same, for whoever has read the job; `seconds` is how long a run took."""
    committed = images = 0
    rows: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for commit in manifest.commits():
        counts = commit["counts"]
        committed, images = committed + 1, images + counts["images"]
        rows.update({name: counts.get(name, 0) for name in ("annotations", "segments", "proposals")})
        failed.update(counts["failed"])
    return Summary(
        output=manifest.storage.url,
        images=record.images,
        labeled=images - failed.total(),
        failed=dict(sorted(failed.items())),
        annotations=rows["annotations"],
        units=record.units,
        committed=committed,
        segments=rows["segments"],
        proposals=rows["proposals"],
        failures=manifest.failures(),
        seconds=seconds,
        max_failed=record.job.runtime.max_failed,
        runner=holder(manifest.storage),
    )
