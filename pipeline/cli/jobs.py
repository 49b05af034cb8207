"""Commands that work on a job: run, resume, status."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from prelabel.pipeline.cli.terminal import INTERRUPTED, display
from prelabel.pipeline.options import config_option, json_option, label_options, option, runtime_options
from prelabel.schemas.errors import JobError


@click.command()
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
    with _resumable(output), display() as shown:
        result = runner.dry_run(job, shown) if dry_run else runner.run(job, shown)
    if isinstance(result, runner.DryRun):
        _print_dry_run(result, as_json)
        return 0
    return _print_summary(result, as_json)


@click.command()
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

    with _resumable(url), display() as shown:
        summary = runner.resume(url, take_over=take_over, retry_failed=retry_failed, progress=shown, **runtime)
    if not summary.worked:
        click.echo("nothing to do: no unit is left", err=True)
    return _print_summary(summary, as_json)


@click.command()
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
