"""What commands share."""

from __future__ import annotations

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
