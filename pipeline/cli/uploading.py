"""Commands that send labels to a server: upload."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click

from prelabel.pipeline.options import json_option


@click.command()
@click.argument("format_name", metavar="FORMAT", type=click.Choice(["label-studio"]))
@click.argument("folder")
@click.argument("url", metavar="PROJECT")
@json_option
def upload(format_name: str, folder: str, url: str, as_json: bool) -> int:
    """Send what was exported to a server's project.

    FOLDER is what `prelabel export label-studio` wrote, PROJECT the address of a project in a browser. Tasks go in
    files of 500 at most; those that are there already are not sent again, so an upload that was cut short, or refused
    half-way, is simply repeated. A project without a labeling configuration gets that of the export.

    The environment variable LABEL_STUDIO_API_KEY holds an access token (Account & Settings, in Label Studio).

    \b
    Examples:
      prelabel export label-studio labels --to tasks --images https://host/photos
      prelabel upload label-studio tasks http://localhost:8080/projects/3
    """
    from prelabel.pipeline.label_studio_server import TOKEN, Project
    from prelabel.pipeline.label_studio_server import upload as send
    from prelabel.pipeline.terminal import progress_bar
    from prelabel.schemas.errors import UserError

    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(f"{TOKEN} is not set: put an access token into it (Account & Settings, in Label Studio)")
    project = Project(url, token)
    with progress_bar(of="tasks") as advance:
        sent = send(folder, project, advance)
    if as_json:
        click.echo(json.dumps(asdict(sent)))
        return 0
    configured = ", with a labeling configuration" if sent.configured else ""
    click.echo(f"{sent.url}: {sent.sent:,} tasks sent{configured}; {sent.there:,} were there before", err=True)
    return 0
