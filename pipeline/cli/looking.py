"""Commands to look at labels in a browser: review."""

from __future__ import annotations

import getpass
import os
import sys
import webbrowser
from urllib.parse import urlencode

import click

from prelabel.pipeline.cli.terminal import tell_unfinished
from prelabel.schemas.errors import UserError


@click.command()
@click.argument("url")
@click.option("--truth", metavar="FILE", help="A COCO instances document, to see beside the labels.")
@click.option("--other", metavar="URL", help="Another job over the same images, to see beside these labels.")
@click.option("--where", metavar="SQL", help="Which images to see at first, as for `prelabel export`.")
@click.option("--reviewer", metavar="NAME", help="Whose verdicts these are. [default: your login name]")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="Where others may reach it.")
@click.option("--port", type=click.IntRange(0, 65_535), metavar="N", help="[default: the first from 8000 on]")
@click.option("--open/--no-open", "opens", default=None, help="Open a browser. [default: where there is a display]")
def review(
    url: str,
    truth: str | None,
    other: str | None,
    where: str | None,
    reviewer: str | None,
    host: str,
    port: int | None,
    opens: bool | None,
) -> int:
    """Look through the labels in a browser, and accept, reject or flag them.

    Serves a page to this machine alone until Ctrl-C. With another --host, only who has the printed URL is answered.
    Verdicts are rows of the reviews table; several people may review one job at the same time.

    \b
    Examples:
      prelabel review labels
      prelabel review labels --truth instances.json --reviewer anna
      prelabel review labels --where "category = 'person' AND score < 0.3"
      prelabel review s3://bucket/labels --other labels-of-the-new-model --port 9000
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.review import Place, open_review, serve

    dataset = open_dataset(url)
    tell_unfinished(url, dataset, "shown")

    def ready(address: str) -> None:
        address += f"{'&' if '?' in address else '?'}{urlencode({'sql': where})}" if where else ""
        click.echo(f"reviewing {url} at {address} (Ctrl-C stops)", err=True)
        if _has_display() if opens is None else opens:
            webbrowser.open(address)

    serve(open_review(dataset, reviewer or _login_name(), truth, other), Place(host, port), ready)
    click.echo("\nstopped", err=True)
    return 0


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # as in a container that runs as a number
        raise UserError("this user has no name: give one with --reviewer NAME") from error
