"""What a person sees while a job runs and when it is done; all of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from prelabel.pipeline.logs import event, is_json
from prelabel.pipeline.progress import PHASES, Pace, Progress, duration
from prelabel.pipeline.summary import BESIDE, Summary

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_EVENTS = 5.0
MEANINGS = {
    "read": "read, ahead of workers",
    "decode": "decode, on their threads",
    "wait": "workers waited for images",
    "rows": "masks and rows",
    "write": "write, after workers",
}
Advance = Callable[[int], object]


class Display:
    """Context manager and reporter: a live bar on a terminal, a line now and then in a log, or events for programs.

    Args:
        console: where to
        seconds_between_lines: where it is no terminal; 0: a line for each change
        phase: that needs no line to itself when it begins
    """

    def __init__(self, console: Console, seconds_between_lines: float = SECONDS_BETWEEN_LINES, phase: str = "") -> None:
        self.console = console
        self.seconds_between_lines = SECONDS_BETWEEN_EVENTS if is_json() else seconds_between_lines
        self._bar = _Bar(console)
        self._said_at = time.monotonic()
        self._said = Progress(phase)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows how far it is."""
        if self.console.is_terminal and not is_json():
            self._bar.show(progress)
        elif self._is_due(progress):
            self._say(progress)

    def _is_due(self, progress: Progress) -> bool:
        if progress.phase != self._said.phase or progress.is_over != self._said.is_over:
            return True
        return progress != self._said and time.monotonic() - self._said_at >= self.seconds_between_lines

    def _say(self, progress: Progress) -> None:
        self._said, self._said_at = progress, time.monotonic()
        if is_json():
            event("progress", progress.line(), **progress.facts())
        else:
            self.console.print(progress.line(), markup=False, highlight=False, soft_wrap=True)


class _Bar(Bar):
    """A bar with its figures, and below it who works and with what success."""

    def __init__(self, console: Console) -> None:
        self._below = ""
        super().__init__(
            *("{task.description}", BarColumn(), "{task.fields[figures]}", TimeElapsedColumn()),
            console=console,
            transient=True,
            disable=is_json() or not console.is_terminal,
        )
        self._task = self.add_task("", total=None, figures="")

    def show(self, progress: Progress) -> None:
        """Puts it on the terminal."""
        self._below = " · ".join(progress.rest())
        total = f"/{progress.total:,}" if progress.total is not None else ""
        count = [f"{progress.done:,}{total}"] if progress.done or total else []
        self.update(
            self._task,
            description=PHASES[progress.phase],
            completed=progress.done,
            total=progress.total,
            figures=" · ".join([*count, *progress.speed()]),
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and what is below it."""
        yield self.make_tasks_table(self.tasks)
        if self._below:
            yield Text(self._below, style="dim")


@contextmanager
def progress_bar(total: int | None = None, of: str = "images", phase: str = "export") -> Iterator[Advance]:
    """Shows how far something is on stderr, in the way of `Display`; yields what is to be told of how many more.

    Args:
        total: how many there are; None where nobody knows
        of: what is counted
        phase: one of `PHASES`
    """
    pace, done = Pace(), 0
    with Display(Console(stderr=True), phase=phase) as shown:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            (rate,) = pace(done) or (None,)
            shown(Progress(phase, done, total, rate=rate, of=of))

        yield advance


def print_summary(console: Console, summary: Summary) -> None:
    """Says in a few lines what a job has come to, and what to do about what is missing."""
    lines = [f"{summary.output}: {_counts(summary)}"]
    if summary.failed:
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.failed.items())
        lines.append(f"failed images ({codes}) are rows with status 'failed' in images/")
    lines += _what_is_missing(summary)
    if summary.kept_units:
        again = f"prelabel resume {summary.output} --retry-failed"
        lines.append(f"{summary.kept_units:,} units could not be worked again, and keep their failed images: {again}")
    if summary.too_many_failed:
        lines.append(f"{summary.failed_images:,} images failed, more than --max-failed {summary.max_failed}")
    if is_json():
        facts = asdict(summary) | {"complete": summary.is_complete, "exit_code": summary.exit_code}
        event("summary", "\n".join(lines), **facts)
        return
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if summary.timings:
        console.print(timings_table(summary.timings, summary.done))


def timings_table(timings: dict[str, float], images: int) -> Table:
    """What the workers' time was spent on; what goes on beside them has no share of it."""
    table = Table("", box=None, padding=(0, 2, 0, 0))
    for header in ("seconds", "share", "images/s"):
        table.add_column(header, justify="right")
    total = sum(took for name, took in timings.items() if name not in BESIDE)
    for name, took in timings.items():
        share = "" if name in BESIDE or not total else f"{took / total:.0%}"
        speed = f"{images / took:,.1f}" if took and name != "wait" else ""
        table.add_row(Text(MEANINGS.get(name, name)), f"{took:,.1f}", share, speed)
    return table


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
        speed = "" if summary.rate is None else f": {summary.rate:,.1f} images/s"
        left = "" if summary.seconds_left is None else f", {duration(summary.seconds_left)} left"
        yield f"process {summary.runner.get('pid')} on {summary.runner.get('host')} is working on it{speed}{left}"
    elif unfinished:
        reasons = [failure["message"] for failure in summary.failures if not failure["final"]]
        if reasons:
            yield f"{len(reasons):,} units are not done ({reasons[0]}): prelabel resume {summary.output}"
        if unfinished > len(reasons):
            yield f"{unfinished - len(reasons):,} units have not been worked yet: prelabel resume {summary.output}"
