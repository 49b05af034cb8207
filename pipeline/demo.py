"""The whole way, small: scenes are generated, labeled by the bundled model, exported, measured and drawn."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.pictures import draw_labels
from prelabel.pipeline.runner import Reporter, run
from prelabel.pipeline.scenes import write_scenes
from prelabel.pipeline.storage import reaching
from prelabel.schemas.errors import JobError
from prelabel.schemas.job import Job

MODEL = "scenes:maskrcnn"
PICTURES = 12
SHOWN_SCORE = 0.5


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and how good it is."""

    output: Path
    summary: str
    figures: dict[str, dict[str, float]]

    def lines(self) -> Iterator[str]:
        """What to print at the end."""
        labels, truth = self.output / "labels", self.output / "scenes" / "instances.json"
        yield self.summary
        for kind, metrics in self.figures.items():
            yield f"{kind} against the scenes' exact truth: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}"
        yield f"  scenes    {self.output / 'scenes'}"
        yield f"  tables    {labels}/images, {labels}/annotations (Parquet)"
        yield f"  COCO      {self.output / 'labels.json'}"
        yield f"  pictures  {self.output / 'pictures'} (labels drawn on {PICTURES} scenes at most)"
        program = "prelabel" if shutil.which("prelabel") else sys.argv[0]  # make's environment is not on the path
        yield "three commands to try next:"
        yield f"  {program} status {labels}"
        yield f"  {program} evaluate {labels} --truth {truth}"
        yield f"  {program} export coco-results {labels} --to {self.output / 'results.json'}"


def run_demo(output: str, images: int, seed: int, progress: Reporter) -> DemoResult:
    """Runs the demo in a folder of its own.

    Raises:
        JobError: the folder is not empty, or nothing can be written there.
    """
    folder = Path(output)
    with reaching(f"write to {folder}"):
        if folder.exists() and any(folder.iterdir()):
            raise JobError(f"{folder} is not empty: remove it, or choose another --output")
        truth = write_scenes(folder / "scenes", images, seed)
    labels = str(folder / "labels")
    summary = run(Job.of(str(folder / "scenes" / "images"), output=labels, model=MODEL), progress)
    dataset = open_dataset(labels)
    exporter_of("coco").write(dataset, str(folder / "labels.json"))
    _draw(dataset, folder / "pictures")
    text = f"{summary.labeled:,} scenes labeled with {summary.annotations:,} annotations in {summary.seconds:.0f} s"
    return DemoResult(folder, text, evaluate(dataset, str(truth)))


def _draw(dataset: LabelDataset, folder: Path) -> None:
    annotations = dataset.table("annotations")
    for image in dataset.table("images").head(PICTURES).to_pylist():
        found = annotations.to_table(filter=_of_image(image["image_id"])).to_pylist()
        picture = draw_labels(Path(image["uri"]).read_bytes(), found)
        with reaching(f"write to {folder}"):
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"{Path(image['key']).stem}.png")


def _of_image(image_id: int) -> Any:
    import pyarrow.compute as pc

    return (pc.field("image_id") == image_id) & (pc.field("score") >= SHOWN_SCORE)
