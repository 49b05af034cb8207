"""Commands that check a job: validate."""

from __future__ import annotations

import json
import logging

import click

from prelabel.pipeline.cli.terminal import display
from prelabel.pipeline.logs import tell
from prelabel.pipeline.options import json_option


class Units(click.ParamType):
    """A:B, units from A on, before B."""

    name = "A:B"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """Of numbers from 0; without A from the first unit on."""
        first, colon, end = value.partition(":")
        if not (colon and end.isdecimal() and (first or "0").isdecimal() and int(first or 0) < int(end)):
            self.fail(f"{value!r} is not A:B, units from A on, before B, as 0:100 for the first hundred")
        return range(int(first or 0), int(end))


@click.command()
@click.argument("url")
@click.option("--units", type=Units(), metavar="A:B", help="Look only at units from A on, before B.")
@click.option("--quick", is_flag=True, help="Look at the commits, and at the sizes of parts; read none of them.")
@click.option("--fix", is_flag=True, help="Take damaged units' commits back, so that resume works them again.")
@click.option(
    "--show", default=20, show_default=True, type=click.IntRange(0), metavar="N", help="Most lines of a kind."
)
@click.option(
    "--limit", default=1_000, show_default=True, type=click.IntRange(0), metavar="N", help="Most of a kind in --json."
)
@json_option
def validate(url: str, units: range | None, quick: bool, fix: bool, show: int, limit: int, as_json: bool) -> int:
    """Read all of a job, and prove its promises.

    Every planned image in one row; checksums; ids, scores and categories; masks whose runs fill their image and cover
    the recorded area. What is broken is named by file and row (from 0). Exit code 0: all is proven; 3: it is not.

    Units that are not committed are told, and are no violation; nor is what a crash left beside the job's files.

    \b
    Examples:
      prelabel validate labels
      prelabel validate labels --fix; prelabel resume labels
      prelabel validate s3://bucket/labels --units 0:1000 --json
    """
    from prelabel.pipeline.progress import Progress
    from prelabel.pipeline.validate import validate as prove

    with display() as shown:
        found = prove(
            url,
            units=units,
            quick=quick,
            fix=fix,
            limit=max(show, limit),
            progress=lambda done, total: shown(Progress("validate", done, total, of="units")),
        )
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        for line in found.lines(show):
            tell("validate", line, logging.INFO if found.is_proven else logging.WARNING)
    return found.exit_code
