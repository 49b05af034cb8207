"""How a job runs; the public doors are here: `from prelabel.pipeline import Job, run, resume, open_dataset`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prelabel.pipeline.dataset import LabelDataset, open_dataset
    from prelabel.pipeline.notebook import LabeledImage
    from prelabel.pipeline.runner import resume, run
    from prelabel.pipeline.selection import Selection
    from prelabel.pipeline.summary import Summary, status
    from prelabel.schemas.job import Job

_HOMES = {
    "Job": "prelabel.schemas.job",
    "LabelDataset": "prelabel.pipeline.dataset",
    "LabeledImage": "prelabel.pipeline.notebook",
    "Selection": "prelabel.pipeline.selection",
    "Summary": "prelabel.pipeline.summary",
    "open_dataset": "prelabel.pipeline.dataset",
    "resume": "prelabel.pipeline.runner",
    "run": "prelabel.pipeline.runner",
    "status": "prelabel.pipeline.summary",
}
__all__ = ["Job", "LabelDataset", "LabeledImage", "Selection", "Summary", "open_dataset", "resume", "run", "status"]


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use, so that a worker or the command line loads no more than it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
