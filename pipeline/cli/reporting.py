"""Commands that show: report."""

from __future__ import annotations

import click

from prelabel.pipeline.options import Share


@click.command()
@click.argument("url")
@click.option("--to", required=True, metavar="FILE", help="The HTML file to write.")
@click.option("--truth", metavar="FILE", help="A COCO instances, keypoints or panoptic document to measure against.")
@click.option(
    "--gallery", default=12, show_default=True, type=click.IntRange(0, 100), metavar="N", help="Images of a group."
)
@click.option(
    "--score-threshold",
    default=0.3,
    show_default=True,
    type=Share(),
    metavar="X",
    help="Labels that score lower are left out of the pictures.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Chooses the random images.")
def report(url: str, to: str, truth: str | None, gallery: int, score_threshold: float, seed: int) -> int:
    """Draw the job up as one HTML file, which needs no network and nothing beside it.

    Where the labels come from, how fast, what failed; counts, scores, sizes and places by category; pictures of the
    worst, the best, random images and the rarest categories; and with --truth how good they are.

    \b
    Examples:
      prelabel report labels --to report.html
      prelabel report s3://bucket/labels --to report.html --truth instances.json --gallery 24
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.report import write_report

    size = write_report(open_dataset(url), to, truth, gallery, score_threshold, seed)
    click.echo(f"{to}: {size / 1e6:.1f} MB; open it in a browser", err=True)
    return 0
