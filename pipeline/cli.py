"""The command line: parses, calls, prints. Heavy packages are imported by what needs them, not here."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from prelabel.schemas.errors import JobError, PrelabelError, UserError

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option whose environment variable is PRELABEL_ and its long name."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    return click.option(*names, envvar="PRELABEL_" + long[2:].replace("-", "_").upper(), **settings)


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _read_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Makes a YAML file's values the defaults of the command's options."""
    if path is None:
        return
    import yaml

    class Loader(yaml.SafeLoader):
        """Text stays text, for the options to read: to YAML 1.1, 1:4 is the number 64."""

    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].endswith((":bool", ":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected lines like `model: torchvision:...`")
    try:
        context.default_map = {**(context.default_map or {}), **dict(_defaults(context.command, values))}
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None


def _defaults(command: click.Command, values: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Parameter names and values from keys that are the long names of options, with dashes or underscores."""
    parameters = {max(parameter.opts, key=len).lstrip("-"): parameter for parameter in command.params}
    del parameters["config"]
    for key, value in values.items():
        parameter = parameters.get(str(key).replace("_", "-"))
        if parameter is None:
            raise UserError(f"unknown key {key!r}; there are {', '.join(sorted(parameters))}")
        several = parameter.nargs == -1 or getattr(parameter, "multiple", False)
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise UserError(f"{key} takes one value")
        yield str(parameter.name), [value] if several and not isinstance(value, list) else value


config_option = click.option(
    "--config",
    metavar="FILE",
    envvar="PRELABEL_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="YAML file with these options as keys. The command line wins, then the environment, then the file.",
)
json_option = _option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
runtime_options = _all(
    _option("--workers", metavar="N|MIN:MAX", help="Processes with the model. [default: one per GPU, or per 4 CPUs]"),
    _option(
        "--gpus-per-worker",
        type=click.FloatRange(0),
        metavar="X",
        help="May be a fraction. [default: 1 where there are any]",
    ),
    _option(
        "--cpus-per-worker", type=click.IntRange(1), metavar="N", help="Threads of each. [default: shared out evenly]"
    ),
    _option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        help="Images a forward pass. [default: 8 on a GPU, 1 on CPUs]",
    ),
    _option(
        "--address",
        metavar="HOST:PORT",
        help="Of a running Ray cluster; `auto` finds it. [default: Ray starts on this machine]",
    ),
    _option(
        "--max-failed",
        type=click.IntRange(0),
        metavar="N",
        help="Exit with 3 if more images fail. [default: any number is fine]",
    ),
    _option(
        "--max-failed-units",
        type=click.IntRange(1),
        metavar="N",
        help="Stop after so many failed units. [default: 100]",
    ),
)


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
@_option("--output", "-o", metavar="URL", required=True, help="Folder for the labels; must be new or empty.")
@_option("--model", "-m", metavar="FAMILY:NAME", required=True, help="`prelabel models` lists what there is.")
@_option("--task", "tasks", metavar="TASK", multiple=True, help="detect, segment_instances. [default: all it can]")
@_option("--weights", metavar="NAME|FILE", help="A name that the family knows, or a .pth or .safetensors file.")
@_option("--categories", metavar="FILE", help="COCO JSON, a JSON list, or one name a line. [default: the model's own]")
@_option(
    "--score-threshold", type=click.FloatRange(0, 1), metavar="X", help="[default: 0.05, or the model's own if higher]"
)
@_option("--include", metavar="GLOB", multiple=True, help="Files to take, instead of those with an image suffix.")
@_option("--image-column", metavar="NAME", help="Of a Parquet source or list. [default: found by type and name]")
@_option("--limit", type=click.IntRange(1), metavar="N", help="Label only the first images.")
@_option("--max-image-pixels", type=click.IntRange(1), metavar="N", help="Refuse larger images. [default: 178956970]")
@_option(
    "--unit-images", type=click.IntRange(1), metavar="N", help="Most images that are committed at once. [default: 512]"
)
@_option(
    "--unit-bytes",
    type=click.IntRange(1),
    metavar="N",
    help="Most encoded bytes that are committed at once. [default: 268435456]",
)
@runtime_options
@_option("--dry-run", is_flag=True, help="Check everything, plan, and write nothing.")
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
      prelabel run --config job.yaml --dry-run

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

    FORMAT is coco (an instances document) or coco-results (what pycocotools' loadRes takes).

    \b
    Examples:
      prelabel export coco labels --to labels.json
      prelabel export coco-results labels --to results.json
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
@click.option("--truth", required=True, metavar="FILE", help="A COCO instances document.")
@json_option
def evaluate(url: str, truth: str, as_json: bool) -> int:
    """Compare the labels with a COCO ground truth: AP of boxes, and of masks where there are any.

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
@json_option
def models(as_json: bool) -> int:
    """List what can be named with --model.

    A user's own network is named python:module:factory; the factory takes no arguments and returns a prelabel Model,
    or any torch module with torchvision's detection interface.
    """
    from prelabel.operators.models import available

    found = available()
    if as_json:
        click.echo(json.dumps(found))
        return 0
    for family, names in found.items():
        for name in names:
            click.echo(f"{family}:{name}")
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
    click.echo(f"{len(names)} categories: {shown}; nothing was written", err=True)


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
