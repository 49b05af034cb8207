"""Commands for reviewing a part and speaking for all: sample, audit."""

from __future__ import annotations

import click

from prelabel.pipeline.cli.terminal import tell_found, tell_unfinished
from prelabel.pipeline.options import Share, json_option


@click.command()
@click.argument("url")
@click.option(
    "--by",
    required=True,
    type=click.Choice(["uncertainty", "disagreement", "diversity", "random"]),
    help="What makes an image likely to be chosen.",
)
@click.option("--budget", required=True, type=click.IntRange(1), metavar="N", help="How many images.")
@click.option("--other", metavar="URL", help="For disagreement: another job over the same images.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), metavar="N", help="Of chance.")
@click.option(
    "--score-threshold",
    type=Share(),
    metavar="X",
    help="Objects that score lower do not count. [default: all count, and scores near 0.5 are in doubt]",
)
@click.option("--name", metavar="NAME", help="Of the sample. [default: BY-N-SEED]")
@click.option("--to", metavar="PATH", help="A file or folder to write the sample to.")
@click.option(
    "--format",
    "format_name",
    metavar="FORMAT",
    help="Of it: csv, json, parquet, or what `prelabel export` writes. [default: by --to's suffix]",
)
@click.option("--images", metavar="copy|link|none|URL", default="none", help="As for `prelabel export`.")
def sample(
    url: str,
    by: str,
    budget: int,
    other: str | None,
    seed: int,
    score_threshold: float | None,
    name: str | None,
    to: str | None,
    format_name: str | None,
    images: str,
) -> int:
    """Choose images for people to look at, so that `prelabel audit` can speak for all of them.

    \b
    uncertainty   objects with scores near the threshold; labels whose best two are near each other
    disagreement  objects that another job does not have, or has elsewhere or by another name
    diversity     each category as often as the others, small and large objects, all shards
    random        any image like any other

    Half of the budget is left to chance, where the rule is another. Of the rest, images that failed get up to a tenth,
    and those without objects another tenth. Each image is chosen with a known probability; its weight is 1 divided by
    it: as many images of the job does it stand for.

    The sample is kept in the table `samples` beside the labels: the same command finds it again. --to writes it as a
    table (image_id, key, reason, weight, probability), or, with --format, its images and labels for another tool.

    \b
    Examples:
      prelabel sample labels --by uncertainty --budget 200 --score-threshold 0.5
      prelabel sample labels --by random --budget 500 --to sample.csv
      prelabel sample labels --by disagreement --other labels-of-the-new-model --budget 200
      prelabel sample labels --by diversity --budget 200 --format label-studio --to tasks --images https://host/images
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.exports import EXPORTS, exporter_of
    from prelabel.pipeline.query import WRITERS, query
    from prelabel.pipeline.sampling import choose
    from prelabel.pipeline.sampling.labels import SampledLabels
    from prelabel.schemas.errors import UserError

    if to in EXPORTS:
        raise UserError(f"--to is a path: give --format {to} --to PATH")
    if format_name and not to:
        raise UserError(f"--format {format_name} needs --to PATH")
    if format_name not in (None, *WRITERS, *EXPORTS):
        raise UserError(f"--format {format_name}: choose from {', '.join([*WRITERS, *EXPORTS])}")
    dataset = open_dataset(url)
    tell_unfinished(url, dataset, "chosen from")
    chosen = choose(dataset, by, budget, seed, open_dataset(other) if other else None, score_threshold, name)
    for line in chosen.lines():
        click.echo(line, err=True)
    if to and format_name in EXPORTS:
        written = exporter_of(format_name).write(SampledLabels(dataset, chosen), to, images)
        click.echo(f"{written.to}: {written.annotations:,} annotations of {written.images:,} images", err=True)
        for note in written.notes:
            click.echo(note, err=True)
    elif to:
        query(dataset, chosen.sql, format_name, to)
    click.echo(f'next: prelabel review {url} --where "{chosen.where}"\n      prelabel audit {url}', err=True)
    return 0


@click.command()
@click.argument("url")
@click.option("--sample", metavar="NAME", help="Which one. [default: the only one]")
@click.option("--corrected", metavar="URL", help="Corrected labels, as `prelabel import` writes them.")
@click.option("--score-threshold", type=Share(), metavar="X", help="[default: that of the sample]")
@click.option("--iou", default=0.5, show_default=True, metavar="X", help="Lowest of two objects that are the same.")
@json_option
def audit(
    url: str, sample: str | None, corrected: str | None, score_threshold: float | None, iou: float, as_json: bool
) -> int:
    """Say how precise the labels are, by what people have said of a sample.

    Precision by category with a 95 % confidence interval, for all images of the job. By verdicts: an object is right if
    it is accepted, or has no verdict and its image is accepted; images of which all objects are accepted or rejected
    count. By corrected labels: an object is right if people left it there, with its category; and recall says how much
    of what they marked was found.

    \b
    Examples:
      prelabel audit labels
      prelabel audit labels --sample uncertainty-200-0 --score-threshold 0.7 --json
      prelabel audit labels --corrected corrected
    """
    from prelabel.pipeline.auditing import audit as find
    from prelabel.pipeline.dataset import open_dataset

    found = find(open_dataset(url), sample, open_dataset(corrected) if corrected else None, score_threshold, iou)
    tell_found(found, as_json)
    return 0
