"""Commands to begin with: models, demo."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from prelabel.pipeline.cli.terminal import display
from prelabel.pipeline.options import json_option
from prelabel.schemas.errors import UserError


@click.command()
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


@click.command()
@click.option("--output", "-o", default="prelabel-demo", show_default=True, metavar="DIR", help="Must be new or empty.")
@click.option(
    "--images", default=48, show_default=True, type=click.IntRange(1), metavar="N", help="Scenes to generate."
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), metavar="N", help="Of the scenes.")
def demo(output: str, images: int, seed: int) -> int:
    """The whole way on generated images with the bundled model; needs no network."""
    from prelabel.pipeline.demo import run_demo

    with display() as shown:
        result = run_demo(output, images, seed, shown)
    for line in result.lines():
        click.echo(line)
    return 0
