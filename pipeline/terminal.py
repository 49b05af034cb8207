"""What a person sees while a job runs and when it is done; all of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prelabel.pipeline.runner import Progress as JobProgress
from prelabel.pipeline.summary import Summary

SECONDS_BETWEEN_LINES = 15.0
PHASES = {"start": "looking at the model", "plan": "planning", "label": "labeling"}


class Display:
    """Context manager and reporter: a live bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None, rate="")
        self._phase = ""
        self._began = self._said = 0.0
        self._first = 0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, progress: JobProgress) -> None:
        """Shows how far the job is."""
        now = time.monotonic()
        changed = progress.phase != self._phase
        if changed:
            self._phase, self._began, self._first = progress.phase, now, progress.done
        elapsed = now - self._began
        rate = f"{(progress.done - self._first) / elapsed:,.1f}/s" if elapsed > 1 else ""
        description = PHASES[progress.phase]
        self._bar.update(self._task, description=description, completed=progress.done, total=progress.total, rate=rate)
        if not self.console.is_terminal and (changed or now - self._said > SECONDS_BETWEEN_LINES):
            self._said = now
            self.console.print(_line(description, progress, rate), highlight=False)


def _line(description: str, progress: JobProgress, rate: str) -> str:
    if progress.total is None and not rate:  # it has just begun
        return description
    total = f" of {progress.total:,}" if progress.total is not None else ""
    return f"{description}: {progress.done:,}{total} images {rate}".rstrip()


def print_summary(console: Console, summary: Summary) -> None:
    """Says in a few lines what a job has come to, and what to do about what is missing."""
    lines = [f"{summary.output}: {_counts(summary)}"]
    if summary.failed:
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.failed.items())
        lines.append(f"failed images ({codes}) are rows with status 'failed' in images/")
    lines += _what_is_missing(summary)
    if summary.max_failed is not None and summary.failed_images > summary.max_failed:
        lines.append(f"{summary.failed_images:,} images failed, more than --max-failed {summary.max_failed:,}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def model_lines(offers: list[dict[str, Any]]) -> Iterator[str]:
    """A line per model in columns: name, tasks, categories, extra."""
    rows = [("MODEL", "TASKS", "CATEGORIES", "EXTRA")]
    rows += [(one["name"], " ".join(one["tasks"]) or "any", one["categories"], one["extra"]) for one in offers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _counts(summary: Summary) -> str:
    done = "all" if summary.is_complete else f"{summary.committed:,} of {summary.units:,}"
    images = f"{summary.labeled:,} images labeled, {summary.failed_images:,} failed"
    took = f", in {summary.seconds:,.0f} s" if summary.seconds else ""
    rows = {"annotations": summary.annotations, "segments": summary.segments, "proposals": summary.proposals}
    found = ", ".join(f"{count:,} {name}" for name, count in rows.items() if count or name == "annotations")
    return f"{images}, {found}; {done} units committed{took}"


def _what_is_missing(summary: Summary) -> Iterator[str]:
    given_up = [failure for failure in summary.failures if failure["final"]]
    if given_up:
        yield (
            f"{len(given_up):,} units failed, the first with {given_up[0]['error']}: {given_up[0]['message']} (all in "
            f"_manifest/failures/); once mended: prelabel resume {summary.output} --retry-failed"
        )
    unfinished = summary.units - summary.committed - len(given_up)
    if unfinished and summary.runner:
        yield f"process {summary.runner.get('pid')} on {summary.runner.get('host')} is working on it"
    elif unfinished:
        reasons = [failure["message"] for failure in summary.failures if not failure["final"]]
        why = f" ({reasons[0]})" if reasons else ""
        yield f"{unfinished:,} units are not done{why}: prelabel resume {summary.output}"
