"""An evaluation for people, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prelabel.pipeline.evaluate.figures import Confusion, Detections, Evaluation, MatchedImages, Metrics, ScoreQuality
from prelabel.schemas.errors import printable

MOST_CATEGORIES = 20
"""More are shown only where asked for."""
MOST_CONFUSED = 12
"""So many pairs are shown where the confusion matrix is too wide."""
_SHOWN = {
    "keypoints": ("AP", "AP50", "AP75", "AR", "AP_medium", "AP_large"),
    "panoptic": ("PQ", "SQ", "RQ", "TP", "FP", "FN"),
    "semantic": ("IoU", "accuracy"),
}
_SHOWN_OF_OBJECTS = ("AP", "AP50", "AP75", "AR100", "AP_small", "AP_medium", "AP_large")


def headline(found: Evaluation) -> Iterator[str]:
    """A line for each kind of figures, then what images there are beside those measured."""
    for kind, metrics in found.items():
        yield f"{kind}: " + "  ".join(f"{name} {_number(value)}" for name, value in metrics.items())
    yield from _images(found.images)


def show(console: Console, found: Evaluation, every_category: bool = False) -> None:
    """Prints tables of what the headline figures are made of.

    Args:
        console: where to
        found: the figures
        every_category: also where there are more than `MOST_CATEGORIES`
    """
    fit = every_category or all(len(each) <= MOST_CATEGORIES for each in found.categories.values())
    for kind, categories in found.categories.items() if fit else ():
        _print(console, kind, _table(categories, _SHOWN.get(kind, _SHOWN_OF_OBJECTS)))
    if found.detections:
        _show_detections(console, found.detections, fit)
    if not fit:
        console.print("--per-category shows the figures of each category, --json has all", highlight=False)


def _print(console: Console, title: str, table: Table) -> None:
    console.print(Text(f"\n{title}", style="bold"), table, sep="\n")


def _images(images: MatchedImages) -> Iterator[str]:
    yield f"images: {images.measured:,} measured"
    groups = {
        "of these could not be read and count as empty": images.failed,
        "of the truth were not labeled and do not count": images.not_labeled,
        "that were labeled have no truth and do not count": images.without_truth,
    }
    for what, names in groups.items():
        if names.count:
            more = ", …" if names.count > len(names.first) else ""
            yield f"images: {names.count:,} {what}: {', '.join(map(printable, names.first))}{more}"


def _table(categories: dict[str, Metrics], shown: Iterable[str]) -> Table:
    table = _empty(["category", *shown])
    for name, metrics in categories.items():
        table.add_row(Text(printable(name)), *(_number(metrics[metric]) for metric in shown))
    return table


def _show_detections(console: Console, detections: Detections, each: bool) -> None:
    table = _empty(["category", "truth", "found", "ECE", "threshold", "precision", "recall", "F1"])
    for name, quality in detections.categories.items() if each else ():
        table.add_row(Text(printable(name)), *_cells(quality))
    table.add_section()
    table.add_row("all", *_cells(detections.overall))
    _print(console, f"scores, by IoU of {detections.matched_by}", table)
    curve = _empty(["score", "objects", "mean score", "precision"])
    for one in detections.overall.bins:
        curve.add_row(f"{one.low:.1f}-{one.high:.1f}", f"{one.count:,}", _number(one.score), _number(one.precision))
    _print(console, "reliability", curve)
    confusion = detections.confusion
    title = f"truth by what was found, score {confusion.score:.3f} or more"
    _print(console, title, _confusion(confusion, console.width))


def _cells(quality: ScoreQuality) -> Iterator[str]:
    yield from (f"{quality.truth:,}", f"{quality.found:,}", _number(quality.ece))
    best = quality.best
    yield from map(_number, (best.score, best.precision, best.recall, best.f1) if best else [-1.0] * 4)


def _confusion(confusion: Confusion, width: int) -> Table:
    """The matrix, or where it is wider than the terminal, the pairs that are most often taken for one another."""
    names = [printable(name) for name in confusion.categories]
    if sum(max(5, len(name)) + 3 for name in ["", *names]) + max(map(len, names)) <= width:
        table = _empty(["truth", *names])
        counts = {(row, column): count for row, column, count in confusion.counts}
        for row, name in enumerate(names):
            cells = (counts.get((row, column), 0) for column in range(len(names)))
            table.add_row(Text(name), *(f"{count:,}" if count else "·" for count in cells))
        return table
    table = _empty(["truth", "found", "objects"], names=2)
    wrong = [one for one in confusion.counts if one[0] != one[1]]
    for row, column, count in sorted(wrong, key=lambda one: -one[2])[:MOST_CONFUSED]:
        table.add_row(Text(names[row]), Text(names[column]), f"{count:,}")
    return table


def _empty(columns: Iterable[str], names: int = 1) -> Table:
    """Without rows; the first so many columns are names, the others numbers."""
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if place < names else "right")
    return table


def _number(value: float) -> str:
    return "–" if value == -1 else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
