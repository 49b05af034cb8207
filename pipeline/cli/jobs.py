"""Commands that work on a job: run, resume, status."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from prelabel.pipeline.cli.stopping import resumable
from prelabel.pipeline.cli.terminal import display
from prelabel.pipeline.logs import tell
from prelabel.pipeline.options import config_option, json_option, label_options, option, runtime_options
from prelabel.pipeline.progress import Progress, duration, numbered
from prelabel.schemas.errors import UserError


class Finite(click.FloatRange):
    """A number, which "nan" is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's, which lets it through."""
        if math.isnan(number := super().convert(value, param, ctx)):
            self.fail(f"{value} is no number", param, ctx)
        return number


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, envvar="PRELABEL_SOURCES")
@option("--output", "-o", metavar="URL", required=True, help="Folder for the labels; must be new or empty.")
@label_options
@option("--include", metavar="GLOB", multiple=True, help="Files to take, instead of those with an image suffix.")
@option("--image-column", metavar="NAME", help="Of a Parquet source or list. [default: found by type and name]")
@option("--allow-scheme", metavar="SCHEME", multiple=True, help="Let lists name URIs of this scheme too, as file.")
@option("--allow-private-addresses", is_flag=True, help="Let lists name web servers that are not public.")
@option("--limit", type=click.IntRange(1), metavar="N", help="Label only the first images.")
@option("--max-image-pixels", type=click.IntRange(1), metavar="N", help="Refuse larger images. [default: 178956970]")
@option("--max-image-bytes", type=click.IntRange(1), metavar="N", help="Refuse larger files. [default: 1073741824]")
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
@option(
    "--calibrate",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="With --dry-run: label N images on trial, spread over the plan, and say how long the job will take.",
)
@option(
    "--price-per-hour",
    type=Finite(0, 1e9),
    metavar="X",
    help="With --calibrate: of all machines together; says what the job will cost.",
)
@json_option
@config_option
def run(
    sources: tuple[str, ...],
    output: str,
    dry_run: bool,
    calibrate: int | None,
    price_per_hour: float | None,
    as_json: bool,
    **options: Any,
) -> int:
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
      prelabel run --config job.yaml --dry-run --calibrate 64 --price-per-hour 2.50
      prelabel --log-json run --config job.yaml 2> log.jsonl

    With several models, --task, --weights, --categories and --score-threshold can say whose they are:
    --weights torchvision:fcn_resnet50=mine.pth.

    Each option is also an environment variable: PRELABEL_BATCH_SIZE for --batch-size, and so on.
    """
    from prelabel.pipeline import runner
    from prelabel.schemas.job import Job

    if (calibrate and not dry_run) or (price_per_hour is not None and not calibrate):
        raise UserError("--calibrate goes with --dry-run, and --price-per-hour with --calibrate")
    job = Job.of(*sources, output=output, **{name: value for name, value in options.items() if value != ()})
    with resumable(output), display() as shown:
        result = runner.dry_run(job, shown, calibrate or 0) if dry_run else runner.run(job, shown)
    if isinstance(result, runner.DryRun):
        _print_dry_run(result, price_per_hour, as_json)
        return 0
    return _print_summary(result, as_json)


@click.command()
@click.argument("url")
@runtime_options
@click.option("--take-over", is_flag=True, help="Take the job from a runner that seems to be alive.")
@click.option("--retry-failed", is_flag=True, help="Work the images again that failed, and units that were given up.")
@json_option
def resume(url: str, take_over: bool, retry_failed: bool, as_json: bool, **runtime: Any) -> int:
    """Finish a job that was interrupted; does nothing where nothing is left.

    \b
    Examples:
      prelabel resume labels
      prelabel resume s3://bucket/labels --address auto --workers 16
    """
    from prelabel.pipeline import runner

    with resumable(url), display() as shown:
        summary = runner.resume(url, take_over=take_over, retry_failed=retry_failed, progress=shown, **runtime)
    if not summary.worked:
        tell("nothing_to_do", "nothing to do: no unit is left")
    return _print_summary(summary, as_json)


@click.command()
@click.argument("url")
@click.option("--watch", is_flag=True, help="Look again and again, until the job is done or nobody works on it.")
@click.option(
    "--every", default=2.0, show_default=True, type=Finite(0.1, 86_400), metavar="SECONDS", help="Between two looks."
)
@json_option
def status(url: str, watch: bool, every: float, as_json: bool) -> int:
    """Say how far a job is; reads its manifest alone, also while it runs, from any machine.

    \b
    Examples:
      prelabel status labels --json
      prelabel status s3://bucket/labels --watch

    With --watch, Ctrl-C stops looking; the job goes on. The exit code is 0 when it is done, 3 when it can't be yet or
    too much has failed.
    """
    from prelabel.pipeline.summary import status as status_of

    if watch:
        return _watch(url, every, as_json)
    _print_summary(status_of(url), as_json)
    return 0


def _watch(url: str, every: float, as_json: bool) -> int:
    from prelabel.pipeline.summary import Summary, watch

    summary: Summary | None = None
    try:
        with display(seconds_between_lines=0) as shown:
            for summary in watch(url, every):
                failed_units = sum(failure["final"] for failure in summary.failures)
                shown(
                    Progress(
                        "label",
                        summary.done,
                        summary.images,
                        failed=summary.failed_images,
                        committed=summary.committed,
                        units=summary.units,
                        failed_units=failed_units,
                        rate=summary.rate if summary.runner else None,
                    )
                )
    except KeyboardInterrupt:  # the way to stop looking
        return 0
    assert summary is not None
    return _print_summary(summary, as_json)


def _print_summary(summary: Any, as_json: bool) -> int:
    from rich.console import Console

    from prelabel.pipeline.terminal import print_summary

    if as_json:
        click.echo(json.dumps(asdict(summary) | {"complete": summary.is_complete}))
    else:
        print_summary(Console(stderr=True), summary)
    return int(summary.exit_code)


def _print_dry_run(found: Any, price_per_hour: float | None, as_json: bool) -> None:
    names = [category.name for category in found.categories]
    facts = {"images": found.images, "units": found.units, "shards": found.shards, "bytes": found.num_bytes}
    facts |= {"tasks": list(found.tasks), "categories": names, "pool": asdict(found.pool)}
    trial = found.calibration
    if trial:
        facts["calibration"] = asdict(trial) | {"images_per_second_per_worker": trial.images_per_second_per_worker}
        if price_per_hour is not None:
            facts["calibration"] |= {"price_per_hour": price_per_hour, "cost": trial.hours * price_per_hour}
    if as_json:
        click.echo(json.dumps(facts))
        return
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    lines = [
        f"would label {found.images:,} images ({found.num_bytes / 1e6:,.1f} MB as far as listed)",
        f"in {numbered(found.units, 'unit')} from {numbered(found.shards, 'shard')}: {', '.join(found.tasks)}",
        f"by {found.pool}",
        *(_calibration_lines(trial, price_per_hour) if trial else ()),
        f"{len(names)} categories{': ' * bool(names)}{shown}; nothing was written",
    ]
    tell("dry_run", "\n".join(lines), **facts)


def _calibration_lines(trial: Any, price_per_hour: float | None) -> Iterator[str]:
    failed = f", of which {trial.failed:,} failed" if trial.failed else ""
    yield (
        f"{numbered(trial.images, 'image')} on trial{failed}: {trial.images_per_second:,.2f} images/s by "
        f"{numbered(trial.workers, 'worker')}, {trial.images_per_second_per_worker:,.2f} each"
    )
    cost = "" if price_per_hour is None else f", {trial.hours * price_per_hour:,.2f} at {price_per_hour:g} an hour"
    yield f"the whole job: about {duration(trial.hours * 3600)}{cost}"
