"""Commands that measure: evaluate, compare."""

from __future__ import annotations

import json

import click

from prelabel.pipeline.cli.terminal import tell_found, tell_unfinished
from prelabel.pipeline.options import Share, json_option


@click.command()
@click.argument("url")
@click.option("--truth", required=True, metavar="FILE", help="A COCO instances, keypoints or panoptic document.")
@click.option("--per-category", is_flag=True, help="Show each category, however many there are.")
@click.option(
    "--thresholds",
    metavar="FILE",
    help="Write the score threshold of the best F1 of each category, for `prelabel export --score-threshold FILE`.",
)
@click.option(
    "--confusion-score",
    type=Share(),
    metavar="X",
    help="Leave what scores lower out of the confusion matrix. [default: the threshold of the best F1]",
)
@json_option
def evaluate(
    url: str, truth: str, per_category: bool, thresholds: str | None, confusion_score: float | None, as_json: bool
) -> int:
    """Compare the labels with a COCO ground truth.

    AP and AR of boxes, and of masks, keypoints and proposals where there are any; how far scores can be trusted:
    calibration, the best threshold of each category, and which category is taken for which. PQ and mIoU of segments
    where the truth is a panoptic document.

    Images are matched by file name: an image's key is the truth's file_name, or ends with it.

    \b
    Examples:
      prelabel evaluate labels --truth instances.json
      prelabel evaluate labels --truth panoptic.json --per-category
      prelabel evaluate labels --truth instances.json --thresholds thresholds.json
    """
    from rich.console import Console

    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.evaluate import evaluate as measure
    from prelabel.pipeline.evaluate.show import headline, show
    from prelabel.pipeline.evaluate.thresholds import write_thresholds

    dataset = open_dataset(url)
    tell_unfinished(url, dataset, "measured")
    found = measure(dataset, truth, confusion_score)
    if thresholds:
        write_thresholds(found, thresholds)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return 0
    for line in headline(found):
        click.echo(line, err=True)
    show(Console(stderr=True), found, per_category)
    return 0


@click.command()
@click.argument("before")
@click.argument("after")
@click.option("--iou", default=0.5, show_default=True, metavar="X", help="Lowest of two objects that are the same.")
@click.option(
    "--score-threshold", default=0.0, type=Share(), metavar="X", help="Leave out what scores lower, in both jobs."
)
@click.option("--images", default=10, show_default=True, type=click.IntRange(1), metavar="N", help="Most to name.")
@json_option
def compare(before: str, after: str, iou: float, score_threshold: float, images: int, as_json: bool) -> int:
    """Say what differs between two jobs over the same images.

    Objects are the same that overlap most, those of the same category first: matched (IoU of 0.95 or more), moved,
    or reclassified; the others have appeared or vanished. Segments are compared likewise. Images are matched by key.

    \b
    Examples:
      prelabel compare labels labels-of-the-new-model
      prelabel compare labels corrected --score-threshold 0.5 --json
    """
    from prelabel.pipeline.compare import compare as find_changes
    from prelabel.pipeline.dataset import open_dataset

    jobs = open_dataset(before), open_dataset(after)
    for url, job in zip((before, after), jobs, strict=True):
        tell_unfinished(url, job, "compared")
    found = find_changes(*jobs, iou, score_threshold, images)
    tell_found(found, as_json)
    return 0
