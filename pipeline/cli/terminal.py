"""What commands share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prelabel.pipeline.dataset import LabelDataset

INTERRUPTED = 130


def display(**how: Any) -> Any:
    """A context manager and reporter: a bar on a terminal, a line now and then elsewhere; all of it on stderr."""
    from rich.console import Console

    from prelabel.pipeline.terminal import Display

    return Display(Console(stderr=True), **how)


def tell_unfinished(url: str, dataset: LabelDataset, done: str) -> None:
    """Says of a job that is not finished that only a part of it is exported, shown, or whatever is `done` with it."""
    if not dataset.is_complete:
        click.echo(f"{url} is not finished: {len(dataset.units)} of {dataset.record.units} units are {done}", err=True)


def tell_found(found: Any, as_json: bool) -> None:
    """Says what a comparison has come to: its `to_dict` on standard output, or its `lines` for people."""
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    for line in found.lines():
        click.echo(line, err=True)
