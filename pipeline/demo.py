"""The whole way, small: scenes are generated, labeled by the bundled model, exported, measured, drawn and reported."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.pictures import draw_labels, draw_segments
from prelabel.pipeline.report import write_report
from prelabel.pipeline.runner import Reporter, run
from prelabel.pipeline.scenes import write_scenes
from prelabel.pipeline.storage import reaching
from prelabel.schemas.errors import JobError
from prelabel.schemas.job import Job

MODEL = "scenes:maskrcnn"
PICTURES = 12
SHOWN_SCORE = 0.5
SHOWN_FIGURES = {"boxes": ("AP", "AP50"), "masks": ("AP", "AP50"), "panoptic": ("PQ", "SQ", "RQ")}


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and how good it is."""

    output: Path
    summary: str
    figures: dict[str, dict[str, float]]

    def lines(self) -> Iterator[str]:
        """What to print at the end."""
        labels, truth = self.output / "labels", self.output / "scenes" / "panoptic.json"
        yield self.summary
        for kind, shown in SHOWN_FIGURES.items():
            figures = ", ".join(f"{name} {self.figures[kind][name]:.3f}" for name in shown)
            yield f"{kind} against the scenes' exact truth: {figures}"
        yield f"  scenes    {self.output / 'scenes'}"
        yield f"  tables    {labels}/images, {labels}/annotations, {labels}/segments (Parquet)"
        yield f"  COCO      {self.output / 'labels.json'}, {self.output / 'panoptic.json'} (and its PNGs in panoptic/)"
        yield f"  pictures  {self.output / 'pictures'} (labels drawn on {PICTURES} scenes at most)"
        yield f"  report    {self.output / 'report.html'} (all of this to look at, in a browser)"
        program = "prelabel" if shutil.which("prelabel") else sys.argv[0]  # make's environment is not on the path
        yield "three commands to try next:"
        yield f"  {program} review {labels} --truth {self.output / 'scenes' / 'instances.json'}"
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
        scenes = write_scenes(folder / "scenes", images, seed)
    labels = str(folder / "labels")
    summary = run(Job.of(str(scenes / "images"), output=labels, model=MODEL), progress)
    dataset = open_dataset(labels)
    exporter_of("coco").write(dataset, str(folder / "labels.json"))
    exporter_of("coco-panoptic").write(dataset, str(folder / "panoptic.json"))
    _draw(dataset, folder / "pictures")
    found = f"{summary.annotations:,} annotations and {summary.segments:,} segments"
    write_report(dataset, str(folder / "report.html"), truth=str(scenes / "instances.json"))
    figures = evaluate(dataset, str(scenes / "instances.json")) | evaluate(dataset, str(scenes / "panoptic.json"))
    return DemoResult(folder, f"{summary.labeled:,} scenes labeled with {found} in {summary.seconds:.0f} s", figures)


def _draw(dataset: LabelDataset, folder: Path) -> None:
    """Two pictures of each of the first scenes: its annotations, and its panoptic segments."""
    annotations, segments = dataset.table("annotations"), dataset.table("segments")
    with reaching(f"write to {folder}"):
        folder.mkdir(exist_ok=True)
    for image in dataset.table("images").head(PICTURES).to_pylist():
        encoded, own = Path(image["uri"]).read_bytes(), pc.field("image_id") == image["image_id"]
        found = annotations.to_table(filter=own & (pc.field("score") >= SHOWN_SCORE)).to_pylist()
        panoptic = segments.to_table(filter=own & (pc.field("kind") == "panoptic")).to_pylist()
        with reaching(f"write to {folder}"):
            draw_labels(encoded, found).save(folder / f"{Path(image['key']).stem}.png")
            draw_segments(encoded, panoptic).save(folder / f"{Path(image['key']).stem}_panoptic.png")
