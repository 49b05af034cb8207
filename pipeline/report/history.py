"""Where a job's labels come from, and how fast they came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.report import charts
from prelabel.pipeline.report.blocks import Block, Cell, Chart, Facts, Section, Table, listed, shown
from prelabel.pipeline.report.charts import name, quantity
from prelabel.schemas.job import JobRecord, Labels, Runtime

BARS = 60
APART = ("sources", "models", "tasks")
"""Options that are told at length."""


def job_section(dataset: LabelDataset) -> Section:
    """The models, the options, the versions."""
    record = dataset.record
    labels = record.job.labels
    facts: list[tuple[str, Cell]] = [
        ("output", shown(dataset.url)),
        ("sources", listed([shown(source) for source in labels.sources], 20)),
        ("tasks", ", ".join(record.tasks)),
        ("tables", ", ".join(record.tables)),
        ("options", listed([shown(option) for option in _options(record)], 40) or "all as by default"),
        (
            "categories",
            f"{len(record.categories):,}: {listed([shown(one, 32) for one in dataset.categories.names], 12)}",
        ),
        ("created", record.created),
        ("versions", ", ".join(f"{package} {one}" for package, one in record.versions.items()) or "not told"),
        ("fingerprint", record.fingerprint),
    ]
    return Section("job", "The job", [Facts(facts), _models(record)])


def _options(record: JobRecord) -> Iterator[str]:
    """What was asked for that is not the default."""
    for given, kind in ((record.job.labels, Labels), (record.job.runtime, Runtime)):
        for option, field in kind.model_fields.items():
            value = getattr(given, option)
            if option not in APART and value != field.default:
                yield f"{option.replace('_', '-')} {', '.join(value) if isinstance(value, tuple) else value}"


def _models(record: JobRecord) -> Table:
    choices = {choice.name: choice for choice in record.job.labels.models}
    rows: list[list[Cell]] = []
    for model in record.models:
        choice = choices.get(model["name"])
        given = (choice.weights, choice.categories, choice.score_threshold) if choice else (None, None, None)
        weights, categories, threshold = (shown(str(one)) if one is not None else "by default" for one in given)
        tasks = ", ".join(choice.tasks if choice else ()) or "the job's"
        rows.append([shown(model["name"]), weights, shown(model["digest"]), categories, threshold, tasks])
    head = ("model", "weights", "digest of the weights", "category names", "score threshold", "tasks")
    return Table("Models", head, rows)


class Commit(NamedTuple):
    """When a unit was committed (seconds since 1970), its images, and the seconds that a worker spent on it."""

    time: float
    images: int
    seconds: float


def speed_section(dataset: LabelDataset) -> Section | None:
    """Images per second over time, and the workers' seconds, as far as the commits tell."""
    commits: list[Commit] = []
    spent: Counter[str] = Counter()
    images = 0
    for commit in Manifest(dataset.storage).commits():
        images += commit["counts"]["images"]
        spent.update(commit["timings"])
        if "committed" in commit:
            commits.append(_commit(commit))
    blocks: list[Block] = [_over_time(sorted(commits))] if len(commits) > 1 else []
    if spent:
        rows: list[list[Cell]] = [
            [shown(what), float(took), 1000 * took / max(1, images)] for what, took in spent.most_common()
        ]
        caption = "Time that workers spent, all together; they decode ahead, on threads, while models predict"
        blocks.append(Table(caption, ("on", "seconds", "milliseconds an image"), rows))
    return Section("speed", "Speed", blocks) if blocks else None


def _commit(commit: dict[str, Any]) -> Commit:
    seconds = sum(took for what, took in commit["timings"].items() if what != "decode")
    return Commit(datetime.fromisoformat(commit["committed"]).timestamp(), commit["counts"]["images"], seconds)


def _over_time(commits: Sequence[Commit]) -> Chart:
    """Bars of as many units each, from the commit before them to their last."""
    step = -(-len(commits) // BARS)
    since, rows = commits[0].time - commits[0].seconds, []
    for start in range(0, len(commits), step):
        some = commits[start : start + step]
        until = max(some[-1].time, since + 0.001)
        images = sum(one.images for one in some)
        row = {"since": 1000 * since, "to": 1000 * until, "rate": images / (until - since), "images": images}
        rows.append(row | {"from": _told(since), "until": _told(until)})
        since = until
    time = {"field": "since", "type": "temporal", "title": "time (UTC)", "scale": {"type": "utc"}, "to": "to"}
    rate = quantity("rate", "images per second", format=",.3~g")
    spec = charts.histogram(rows, time, rate)
    tips = charts.tips(name("from", "from"), name("until", "until"), rate, quantity("images", "images"))
    spec["encoding"]["tooltip"] = tips
    says = "Images committed per second of wall clock; a long low bar is a time when nobody worked on the job."
    return Chart("Throughput over time", says, spec, wide=True)


def _told(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
