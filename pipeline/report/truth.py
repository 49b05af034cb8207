"""How good the labels are, where a truth is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, compress

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.figures import Confusion, Detections, Evaluation, MatchedImages, Names
from prelabel.pipeline.evaluate.matching import Matching
from prelabel.pipeline.evaluate.objects import annotations_of, results_of
from prelabel.pipeline.evaluate.truth import Truth
from prelabel.pipeline.report import charts
from prelabel.pipeline.report.blocks import Block, Cell, Chart, Facts, Section, Table, listed, short_names, shown
from prelabel.pipeline.report.charts import name, quantity

CONFUSED = 20
CATEGORIES = 200


def truth_section(found: Evaluation) -> Section:
    """Headline figures, figures by category, calibration, confusion."""
    blocks: list[Block] = [Facts(list(_matched(found.images))), *_headlines(found)]
    if found.detections:
        blocks += [
            _reliability(found.detections),
            _confusion(found.detections.confusion),
            _thresholds(found.detections),
        ]
    blocks += [_by_category(kind, table) for kind, table in found.categories.items() if table]
    return Section("evaluation", "Measured against the truth", blocks)


def _matched(images: MatchedImages) -> Iterator[tuple[str, Cell]]:
    yield "images measured", images.measured
    for what, names in (
        ("of them failed, counted as empty", images.failed),
        ("of the truth, not in the job", images.not_labeled),
        ("of the job, not in the truth", images.without_truth),
    ):
        if names.count:
            yield what, _named(names)


def _named(names: Names) -> str:
    told = listed([shown(one) for one in names.first[:3]], 3)
    return f"{names.count:,}: {told}" + (" …" if names.count > 3 else "")


def _figure(value: float | None) -> float | None:
    """-1 is COCO's way to say that nothing counts."""
    return None if value is None or value == -1 else value


def _headlines(found: Evaluation) -> Iterator[Table]:
    """A table for the kinds that have the same metrics."""
    for metrics in dict.fromkeys(tuple(one) for one in found.values()):
        rows = [[kind, *map(_figure, one.values())] for kind, one in found.items() if tuple(one) == metrics]
        kinds = " and ".join(str(row[0]) for row in rows)
        yield Table(f"Headline figures of {kinds}, from 0 to 1 (–: nothing counts)", ("of", *metrics), rows)


def _by_category(kind: str, table: Mapping[str, Mapping[str, float]]) -> Table:
    metrics = list(dict.fromkeys(metric for one in table.values() for metric in one))
    rows = [
        [shown(category, 60), *(_figure(of.get(metric)) for metric in metrics)]
        for category, of in list(table.items())[:CATEGORIES]
    ]
    caption = f"{kind.capitalize()} by category" + (f", the first {CATEGORIES}" if len(table) > CATEGORIES else "")
    return Table(caption, ("category", *metrics), rows, folded=len(rows) > 12)


def _reliability(found: Detections) -> Chart:
    rows = [vars(one) | {"range": f"{one.low:.1f}–{one.high:.1f}"} for one in found.overall.bins if one.count]
    unit = {"domain": [0, 1]}
    spec = charts.against_diagonal(
        rows,
        quantity("score", "mean score of a bin", scale=unit, format=".3f"),
        quantity("precision", "precision", scale=unit, format=".3f"),
        [name("range", "scores"), quantity("count", "objects")],
    )
    says = (
        f"How many objects with a score are right: a partner with an IoU of 0.5 or more of their {found.matched_by}. "
        f"On the dashed line, scores can be taken at their word. Expected calibration error: {found.overall.ece:.3f}."
    )
    return Chart("Can scores be trusted?", says, spec)


def _confusion(confusion: Confusion) -> Chart:
    background = len(confusion.categories) - 1
    sums = [0] * len(confusion.categories)
    for row, column, count in confusion.counts:
        sums[row] += count
        sums[column] += count
    largest = sorted(range(background), key=lambda one: (-sums[one], one))[:CONFUSED]
    names = short_names({one: confusion.categories[one] for one in [*largest, background]})
    rows = [
        {"truth": names[row], "found": names[column], "objects": count}
        for row, column, count in confusion.counts
        if row in names and column in names
    ]
    order = list(names.values())
    spec = charts.heat_map(
        rows,
        name("found", "found", order),
        name("truth", "truth", order),
        quantity("objects", "objects"),
        charts.CELL * len(order),
    )
    says = (
        f"What objects of the truth were taken for, with scores of {confusion.score:.2f} or more. Background's row is "
        f"what was found where nothing is, its column what was missed. The {CONFUSED} largest categories."
    )
    return Chart("What was taken for what", says, spec)


def _thresholds(found: Detections) -> Table:
    qualities = {"all together": found.overall} | dict(list(found.categories.items())[:CATEGORIES])
    rows: list[list[Cell]] = []
    for category, of in qualities.items():
        best = (of.best.score, of.best.f1, of.best.precision, of.best.recall) if of.best else (None,) * 4
        rows.append([shown(category, 60), *best, _figure(of.ece), of.truth, of.found])
    head = ("category", "score", "F1", "precision", "recall", "calibration error", "in the truth", "found")
    return Table("The score threshold of the highest F1", head, rows)


def f1_by_image(dataset: LabelDataset, truth: Truth, threshold: float) -> dict[int, float]:
    """How well each image's boxes agree with a truth of objects, as `evaluate` matches them; what it leaves out
    counts nowhere, nor do images in which nothing is left.

    Args:
        dataset: the labels
        truth: COCO's instances or keypoints
        threshold: objects that score lower are left out
    """
    expected = annotations_of(truth)
    found = [one for one in results_of(dataset, truth) if one["score"] >= threshold]
    matching = Matching(expected, found, "bbox")
    right = Counter(one["image_id"] for one in compress(found, matching.right))
    counted = chain(compress(found, matching.counts), compress(expected, ~matching.ignored))
    objects = Counter(one["image_id"] for one in counted)
    return {image: 2 * right[of] / objects[of] for image, of in truth.images.items() if objects[of]}
