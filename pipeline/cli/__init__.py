"""The command line: parses, calls, prints. Heavy packages are imported by what needs them, not here."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack

import click

from prelabel.pipeline.cli.checking import validate
from prelabel.pipeline.cli.discover import demo, models
from prelabel.pipeline.cli.importing import import_labels
from prelabel.pipeline.cli.jobs import resume, run, status
from prelabel.pipeline.cli.looking import review
from prelabel.pipeline.cli.quality import compare, evaluate
from prelabel.pipeline.cli.reporting import report
from prelabel.pipeline.cli.sampling import audit, sample
from prelabel.pipeline.cli.tables import export, query
from prelabel.pipeline.cli.terminal import INTERRUPTED
from prelabel.pipeline.cli.uploading import upload
from prelabel.pipeline.logs import TextFormatter, event, is_json, json_lines, tell
from prelabel.pipeline.options import option
from prelabel.schemas.errors import PrelabelError, printable

BUG = 1


def _to_json(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not is_json():
        context.obj.enter_context(json_lines())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="prelabel")
@click.option("-v", "--verbose", is_flag=True, help="Show what is logged for debugging.")
@option(
    "--log-json",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_to_json,
    help="Make each line on stderr a JSON object: progress, warnings, failures, the summary, errors.",
)
def cli(verbose: bool) -> None:
    """Labels millions of images in one command and never loses its place.

    \b
    prelabel run IMAGES --output LABELS --model torchvision:maskrcnn_resnet50_fpn_v2
    prelabel status LABELS
    prelabel export coco LABELS --to labels.json
    """
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])  # does nothing where --log-json has been here
    logging.getLogger().setLevel(logging.DEBUG if verbose else logging.ERROR)
    logging.getLogger("prelabel").setLevel(logging.DEBUG if verbose else logging.WARNING)


for command in (
    run,
    resume,
    status,
    validate,
    export,
    import_labels,
    upload,
    query,
    evaluate,
    compare,
    sample,
    audit,
    report,
    review,
    models,
    demo,
):
    cli.add_command(command)


def main() -> None:
    """Runs the command line; a user's mistake is one line, a bug is a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as at_end:
        try:
            code = cli.main(prog_name="prelabel", standalone_mode=False, obj=at_end)
        except PrelabelError as error:
            code = _failed(printable(str(error)), error.exit_code)
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "prelabel"
            code = _failed(f"{error.format_message().rstrip('.')}; see `{where} --help`", error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            tell("interrupted", "\ninterrupted", logging.WARNING, exit_code=INTERRUPTED)
            code = INTERRUPTED
        except Exception as error:
            if not is_json():
                raise
            code = BUG
            event("error", f"{type(error).__name__}: {error}", logging.CRITICAL, exc_info=True, exit_code=code)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(message: str, code: int) -> int:
    tell("error", message if is_json() else f"prelabel: {message}", logging.ERROR, exit_code=code)
    return code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
