"""The command line: parses, calls, prints. Heavy packages are imported by what needs them, not here."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from prelabel.pipeline.options import config_option, json_option, label_options, option, runtime_options
from prelabel.schemas.errors import JobError, PrelabelError, UserError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="prelabel")
@click.option("-v", "--verbose", is_flag=True, help="Show what is logged for debugging.")
def cli(verbose: bool) -> None:
    """Labels millions of images in one command and never loses its place.

    \b
    prelabel run IMAGES --output LABELS --model torchvision:maskrcnn_resnet50_fpn_v2
    prelabel status LABELS
    prelabel export coco LABELS --to labels.json
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    if not verbose:
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("prelabel").setLevel(logging.WARNING)


@cli.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, envvar="PRELABEL_SOURCES")
@option("--output", "-o", metavar="URL", required=True, help="Folder for the labels; must be new or empty.")
@label_options
@option("--include", metavar="GLOB", multiple=True, help="Files to take, instead of those with an image suffix.")
@option("--image-column", metavar="NAME", help="Of a Parquet source or list. [default: found by type and name]")
@option("--limit", type=click.IntRange(1), metavar="N", help="Label only the first images.")
@option("--max-image-pixels", type=click.IntRange(1), metavar="N", help="Refuse larger images. [default: 178956970]")
@option(
    "--unit-images", type=click.IntRange(1), metavar="N", help="Most images that are committed at once. [default: 512]"
)
@option(
    "--unit-bytes",
    type=click.IntRange(1),
    metavar="N",
    help="Most encoded bytes that are committed at once. [default: 268435456]",
)
@runtime_options
@option("--dry-run", is_flag=True, help="Check everything, plan, and write nothing.")
@json_option
@config_option
def run(sources: tuple[str, ...], output: str, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Label all images of the sources.

    A SOURCE is a folder of images, WebDataset tars, Parquet files with an image column, or a list of URIs (.txt, .csv,
    .parquet): a path, a glob such as 'shards/{000..099}.tar', or any URL that fsspec opens (s3://, gs://, https://).

    \b
    Examples:
      prelabel run photos --output labels --model torchvision:maskrcnn_resnet50_fpn_v2
      prelabel run 's3://bucket/shards/*.tar' -o s3://bucket/labels -m torchvision:fcos_resnet50_fpn --workers 8
      prelabel run photos -o labels -m torchvision:fasterrcnn_resnet50_fpn_v2 --weights mine.pth --categories c.json
      prelabel run photos -o labels -m python:my_models:build --task detect --score-threshold 0.3
      prelabel run photos -o labels -m torchvision:maskrcnn_resnet50_fpn_v2 -m transformers:DIR --task fuse_panoptic
      prelabel run photos -o labels -m regions:selective_search -m rcnn:resnet50 --keep-proposals 300
      prelabel run --config job.yaml --dry-run

    With several models, --task, --weights, --categories and --score-threshold can say whose they are:
    --weights torchvision:fcn_resnet50=mine.pth.

    Each option is also an environment variable: PRELABEL_BATCH_SIZE for --batch-size, and so on.
    """
    from prelabel.pipeline import runner
    from prelabel.schemas.job import Job

    job = Job.of(*sources, output=output, **{name: value for name, value in options.items() if value != ()})
    with _resumable(output), _display() as display:
        result = runner.dry_run(job, display) if dry_run else runner.run(job, display)
    if isinstance(result, runner.DryRun):
        _print_dry_run(result, as_json)
        return 0
    return _print_summary(result, as_json)


@cli.command()
@click.argument("url")
@runtime_options
@click.option("--take-over", is_flag=True, help="Take the job from a runner that seems to be alive.")
@click.option("--retry-failed", is_flag=True, help="Work units again that were given up.")
@json_option
def resume(url: str, take_over: bool, retry_failed: bool, as_json: bool, **runtime: Any) -> int:
    """Finish a job that was interrupted; does nothing where nothing is left.

    \b
    Examples:
      prelabel resume labels
      prelabel resume s3://bucket/labels --address auto --workers 16
    """
    from prelabel.pipeline import runner

    with _resumable(url), _display() as display:
        summary = runner.resume(url, take_over=take_over, retry_failed=retry_failed, progress=display, **runtime)
    if not summary.worked:
        click.echo("nothing to do: no unit is left", err=True)
    return _print_summary(summary, as_json)


@cli.command()
@click.argument("url")
@json_option
def status(url: str, as_json: bool) -> int:
    """Say how far a job is; reads its manifest alone, also while it runs.

    \b
    Example:
      prelabel status labels --json
    """
    from prelabel.pipeline.summary import status as status_of

    _print_summary(status_of(url), as_json)
    return 0


@cli.command()
@click.argument("format_name", metavar="FORMAT")
@click.argument("url")
@click.option("--to", required=True, metavar="PATH", help="The file to write.")
def export(format_name: str, url: str, to: str) -> int:
    """Write the labels in another tool's format.

    FORMAT is coco (an instances document), coco-results (what pycocotools' loadRes takes), coco-keypoints, or
    coco-panoptic (a document, and a folder of PNGs beside it).

    \b
    Examples:
      prelabel export coco labels --to labels.json
      prelabel export coco-results labels --to results.json
      prelabel export coco-panoptic labels --to panoptic.json
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.exports import exporter_of

    exporter, dataset = exporter_of(format_name), open_dataset(url)
    if not dataset.is_complete:
        click.echo(
            f"{url} is not finished: {len(dataset.units)} of {dataset.record.units} units are exported", err=True
        )
    written = exporter.write(dataset, to)
    click.echo(f"{written.to}: {written.annotations:,} annotations of {written.images:,} images", err=True)
    return 0


@cli.command()
@click.argument("url")
@click.option("--truth", required=True, metavar="FILE", help="A COCO instances, keypoints or panoptic document.")
@json_option
def evaluate(url: str, truth: str, as_json: bool) -> int:
    """Compare the labels with a COCO ground truth.

    AP and AR of boxes, and of masks, keypoints and proposals where there are any; PQ of panoptic segments where the
    truth is a panoptic document.

    Images are matched by file name: an image's key is the truth's file_name, or ends with it.

    \b
    Example:
      prelabel evaluate labels --truth instances.json
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.evaluate import evaluate as measure

    figures = measure(open_dataset(url), truth)
    if as_json:
        click.echo(json.dumps(figures))
        return 0
    for kind, metrics in figures.items():
        click.echo(f"{kind}: " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()), err=True)
    return 0


@cli.command()
@click.argument("url")
@click.argument("sql")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "csv", "json", "parquet", "arrow"]),
    help="[default: by --to's suffix; a table on a terminal, csv elsewhere]",
)
@click.option("--to", metavar="PATH", help="The file to write. [default: standard output]")
@click.option("--rows", default=40, show_default=True, type=click.IntRange(1), metavar="N", help="Most to show.")
def query(url: str, sql: str, format_name: str | None, to: str | None, rows: int) -> int:
    """Answer a question in SQL, by DuckDB over the committed rows.

    There are the tables images, annotations, segments and proposals. The question reads them and nothing else.

    \b
    Examples:
      prelabel query labels "SELECT category, count(*) FROM annotations GROUP BY category ORDER BY 2 DESC"
      prelabel query s3://bucket/labels "SELECT key FROM images WHERE num_annotations = 0" --to empty.csv
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.query import query as answer

    answer(open_dataset(url), sql, format_name, to, rows)
    return 0


@cli.command()
@click.argument("before")
@click.argument("after")
@click.option("--iou", default=0.5, show_default=True, metavar="X", help="Lowest of two objects that are the same.")
@click.option("--score-threshold", default=0.0, metavar="X", help="Leave out what scores lower, in both jobs.")
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
        if not job.is_complete:
            click.echo(f"{url} is not finished: {len(job.units)} of {job.record.units} units are compared", err=True)
    found = find_changes(*jobs, iou, score_threshold, images)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return 0
    for line in found.lines():
        click.echo(line, err=True)
    return 0


@cli.command()
@click.option("--task", metavar="TASK", help="Only models that can do it.")
@json_option
def models(task: str | None, as_json: bool) -> int:
    """List what can be named with --model: what it can do, what it finds, and the extra that it needs.

    A user's own network is named python:module:factory; the factory takes no arguments and returns a prelabel Model,
    or any torch module with torchvision's detection interface.

    \b
    Examples:
      prelabel models
      prelabel models --task segment_semantic
    """
    from prelabel.operators.models import available

    found = {
        f"{family}:{offer.name}": asdict(offer) | {"name": f"{family}:{offer.name}"}
        for family, offers in available().items()
        for offer in offers
        if task is None or task in offer.tasks
    }
    if as_json:
        click.echo(json.dumps(list(found.values())))
        return 0
    if not found:
        raise UserError(f"no model can {task}: `prelabel models` lists what each can do")
    from prelabel.pipeline.terminal import model_lines

    click.echo("\n".join(model_lines(list(found.values()))))
    return 0


@cli.command()
@click.option("--output", "-o", default="prelabel-demo", show_default=True, metavar="DIR", help="Must be new or empty.")
@click.option(
    "--images", default=48, show_default=True, type=click.IntRange(1), metavar="N", help="Scenes to generate."
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), metavar="N", help="Of the scenes.")
def demo(output: str, images: int, seed: int) -> int:
    """The whole way on generated images with the bundled model; needs no network."""
    from prelabel.pipeline.demo import run_demo

    with _display() as display:
        result = run_demo(output, images, seed, display)
    for line in result.lines():
        click.echo(line)
    return 0


@contextmanager
def _resumable(output: str) -> Iterator[None]:
    """Tells who interrupts a job how to go on with it."""
    from prelabel.pipeline.summary import status

    try:
        yield
    except KeyboardInterrupt:
        try:
            status(output)
            how = f"prelabel resume {shlex.quote(output)}"
        except JobError:
            how = "the same command again: nothing was labeled yet"
        click.echo(f"\ninterrupted; go on with {how}", err=True)
        sys.exit(INTERRUPTED)


def _display() -> Any:
    from rich.console import Console

    from prelabel.pipeline.terminal import Display

    return Display(Console(stderr=True))


def _print_summary(summary: Any, as_json: bool) -> int:
    from rich.console import Console

    from prelabel.pipeline.terminal import print_summary

    if as_json:
        click.echo(json.dumps(asdict(summary) | {"complete": summary.is_complete}))
    else:
        print_summary(Console(stderr=True), summary)
    return int(summary.exit_code)


def _print_dry_run(found: Any, as_json: bool) -> None:
    names = [category.name for category in found.categories]
    if as_json:
        facts = {"images": found.images, "units": found.units, "shards": found.shards, "bytes": found.num_bytes}
        click.echo(json.dumps(facts | {"tasks": list(found.tasks), "categories": names}))
        return
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    click.echo(f"would label {found.images:,} images ({found.num_bytes / 1e6:,.1f} MB as far as listed)", err=True)
    click.echo(f"in {found.units:,} units from {found.shards:,} shards: {', '.join(found.tasks)}", err=True)
    click.echo(f"{len(names)} categories{': ' * bool(names)}{shown}; nothing was written", err=True)


def main() -> None:
    """Runs the command line; a user's mistake is one line, a bug is a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(prog_name="prelabel", standalone_mode=False)
    except PrelabelError as error:
        click.echo(f"prelabel: {error}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "prelabel"
        click.echo(f"prelabel: {error.format_message()}; see `{where} --help`", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted", err=True)
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
