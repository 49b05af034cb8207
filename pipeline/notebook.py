"""A job and an image as a notebook shows them: HTML that stands alone, in light and dark."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from prelabel.pipeline.colors import color_of
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.originals import Originals
from prelabel.pipeline.pictures import draw_labels, draw_segments
from prelabel.pipeline.summary import summarize
from prelabel.schemas.errors import PrelabelError, UserError

Row = dict[str, Any]
Draw = Callable[..., Image.Image]

SHOWN_SCORE = 0.5
SHOWN_ROWS = 30
SHOWN_CATEGORIES = 10
SHOWN_IMAGES = 6
LOOKED_AT = 100
"""Images among which those are chosen."""
PICTURE, THUMBNAIL = 800, 160
"""Longest sides in pixels."""
PICTURE_BYTES, THUMBNAIL_BYTES = 200_000, 25_000
COUNTED_OBJECTS = 1_000_000
"""Categories are counted among the first of them: a job is to show itself at once."""


@dataclass(frozen=True)
class LabeledImage:
    """An image and what was found in it.

    Attributes:
        row: of the images table
        annotations: rows of the annotations table
        segments: rows of the segments table, panoptic and semantic
        dataset: where they are from
    """

    row: Row
    annotations: list[Row]
    segments: list[Row]
    dataset: LabelDataset = field(repr=False)

    @property
    def labels(self) -> list[Row]:
        """Of the image as a whole: category_id, category and score of each."""
        return self.row["labels"] or []

    @cached_property
    def encoded(self) -> bytes:
        """The original file's bytes.

        Raises:
            SourceError: it is gone, or not the one that was labeled.
        """
        return Originals(self.dataset).read(self.row)

    def picture(
        self, longest: int | None = None, score_threshold: float = SHOWN_SCORE, names: bool = True
    ) -> Image.Image:
        """The upright image with its objects drawn on it: masks, boxes, keypoints, names.

        Args:
            longest: side of the picture, in pixels; None: twice the image's, at most 4,096
            score_threshold: objects that score lower are left out
            names: whether categories and scores are written at the boxes

        Raises:
            SourceError: the original is gone, or not the one that was labeled.
        """
        lowest = np.float32(score_threshold)  # as scores are kept, so that an object of 0.7 passes 0.7
        found = [row for row in self.annotations if row["score"] >= lowest]
        return draw_labels(self.encoded, found, longest=longest, categories=self.dataset.categories, names=names)

    def segments_picture(self, longest: int | None = None, names: bool = True) -> Image.Image:
        """The upright image with its panoptic segments drawn on it, or where there are none its semantic ones.

        Raises:
            SourceError: the original is gone, or not the one that was labeled.
        """
        panoptic = [row for row in self.segments if row["kind"] == "panoptic"]
        return draw_segments(self.encoded, panoptic or self.segments, longest=longest, names=names)

    def _repr_html_(self) -> str:
        draws: list[Draw] = [self.picture] if self.annotations or not self.segments else []
        draws += [self.segments_picture] if self.segments else []
        pictures, problem = _shown(draws, PICTURE, PICTURE_BYTES)
        rows = self.annotations or self.segments
        high = sum(row["score"] >= SHOWN_SCORE for row in self.annotations)
        return _html(IMAGE, image=self, row=self.row, pictures=pictures, problem=problem, rows=rows, high=high)


def find_image(dataset: LabelDataset, which: int | str) -> LabeledImage:
    """The image of an image_id or a key; of several images with that key, the first.

    Raises:
        UserError: no committed unit has it.
        JobError: a part is missing or damaged.
    """
    image_id = _image_id(dataset, which) if isinstance(which, str) else int(which)
    images = [] if image_id is None else dataset.rows("images", image_id).to_pylist()
    if not images:
        raise UserError(f"{dataset.url} has no image {which!r} in its committed units")
    annotations, segments = (
        dataset.rows(name, images[0]["image_id"]).to_pylist() for name in ("annotations", "segments")
    )
    return LabeledImage(images[0], annotations, segments, dataset)


def _image_id(dataset: LabelDataset, key: str) -> int | None:
    for batch in dataset.batches("images", ["image_id", "key"]):
        place = batch["key"].index(key).as_py()
        if place >= 0:
            return int(batch["image_id"][place].as_py())
    return None


def dataset_html(dataset: LabelDataset) -> str:
    """A job: what it is, how far it is, what it found most, and a few of its images."""
    thumbnails, problem = _thumbnails(dataset)
    categories, counted = _most_frequent(dataset)
    return _html(
        JOB,
        record=dataset.record,
        summary=summarize(Manifest(dataset.storage), dataset.record),
        categories=categories,
        counted=counted,
        thumbnails=thumbnails,
        problem=problem,
    )


def _thumbnails(dataset: LabelDataset) -> tuple[list[tuple[str, str]], str]:
    """Data URI and key of some images, of those with objects first, and why one can't be shown."""
    batches = dataset.batches("images", ["image_id", "status", "num_annotations"])
    some = islice((row for batch in batches for row in batch.to_pylist()), LOOKED_AT)
    ok = [row for row in some if row["status"] == "ok"]
    thumbnails: list[tuple[str, str]] = []
    reason = ""
    for row in sorted(ok, key=lambda row: not row["num_annotations"])[:SHOWN_IMAGES]:
        image = find_image(dataset, row["image_id"])
        draw = image.picture if image.annotations or not image.segments else image.segments_picture
        pictures, problem = _shown([partial(draw, names=False)], THUMBNAIL, THUMBNAIL_BYTES)
        thumbnails += [(picture, image.row["key"]) for picture in pictures]
        reason = reason or problem
    return thumbnails, reason


def _most_frequent(dataset: LabelDataset) -> tuple[list[tuple[int, str, int]], int]:
    """The most frequent categories, each an id, a name and a number of objects; and of how many objects in all."""
    counts: Counter[int] = Counter()
    for batch in dataset.batches("annotations", ["category_id"]):
        found = batch["category_id"].value_counts()
        counts.update(dict(zip(*(column.to_pylist() for column in found.flatten()), strict=True)))
        if counts.total() >= COUNTED_OBJECTS:
            break
    names = {one.id: one.name for one in dataset.categories}
    most = [(one, names.get(one, str(one)), count) for one, count in counts.most_common(SHOWN_CATEGORIES)]
    return most, counts.total()


def _shown(draws: list[Draw], longest: int, most: int) -> tuple[list[str], str]:
    """Data URIs of pictures that can be drawn, of at most so many bytes together, and why one can't."""
    try:
        return [_data_uri(draw, longest, most // len(draws)) for draw in draws], ""
    except PrelabelError as error:
        return [], str(error)


def _data_uri(draw: Draw, longest: int, most: int) -> str:
    """A JPEG; drawn smaller where it takes that, since shrunken names can't be read."""
    while True:
        file = io.BytesIO()
        draw(longest=longest).save(file, "JPEG", quality=75, subsampling=0)  # thin lines keep their colors
        if file.tell() <= most:
            return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        longest = longest * 3 // 4


PAGES = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
PAGES.filters["color"] = lambda category_id: f"rgb{color_of(category_id)}"
COMMON = """
{%- macro name(text, most=80) %}<bdi>{{ text | string | truncate(most, true) }}</bdi>{% endmacro %}
{% macro swatch(id) %}<span style="color:{{ id | color }}">&#9632;</span> {% endmacro %}
"""
JOB = """
<div style="font-family:system-ui,sans-serif">
<p><b>{{ name(summary.output, 200) }}</b><br>{{ record.models | map(attribute="name") | join(", ") }}:
{{ record.tasks | join(", ") }}</p>
<p><progress max="{{ summary.units }}" value="{{ summary.committed }}"></progress>
{{ "{:,}".format(summary.committed) }} of {{ "{:,}".format(summary.units) }} units</p>
<table>
{% for label, number in [("images labeled", summary.labeled), ("images failed", summary.failed_images),
    ("annotations", summary.annotations), ("segments", summary.segments), ("proposals", summary.proposals)] if number %}
<tr><td style="text-align:left">{{ label }}</td><td>{{ "{:,}".format(number) }}</td></tr>
{% endfor %}
</table>
{% if categories %}
<table style="white-space:nowrap">
<caption>Most frequent of {{ "the first" if counted < summary.annotations else "all" }} {{ "{:,}".format(counted) }}
objects</caption>
{% for id, category, count in categories %}
<tr><td style="text-align:left">{{ swatch(id) }}{{ name(category) }}</td><td>{{ "{:,}".format(count) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% for picture, key in thumbnails %}
<img src="{{ picture }}" alt="{{ key }}" title="{{ key }}" style="display:inline-block;margin:2px">
{% endfor %}
{% if problem %}<p>Not shown: {{ name(problem, 500) }}</p>{% endif %}
</div>
"""
IMAGE = """
<div style="font-family:system-ui,sans-serif">
<p><b>{{ name(row.key) }}</b> image {{ row.image_id }}
{%- if row.status == "ok" %}, {{ row.width }} x {{ row.height }} pixels{% else %}, {{ row.error_code }}{% endif %}
{% for label in image.labels %}
<br>{{ name(label.category) }} {{ "%.2f" | format(label.score) }}
{% endfor %}
</p>
{% for picture in pictures %}
<img src="{{ picture }}" alt="{{ row.key }}" style="display:inline-block;margin:2px">
{% endfor %}
{% if problem %}<p>Not shown: {{ name(problem, 500) }}</p>{% endif %}
{% if rows %}
<table>
<tr><th style="text-align:left">{{ rows | length }} {{ "objects" if image.annotations else "segments" }}</th>
<th>score</th><th>x</th><th>y</th>
<th>width</th><th>height</th><th>area</th></tr>
{% for one in rows[:most] %}
<tr><td style="text-align:left">{{ swatch(one.category_id) }}{{ name(one.category) }}</td>
<td>{{ "%.2f" | format(one.score) if one.score is not none }}</td>
{% for side in ("x", "y", "width", "height") %}<td>{{ "%.1f" | format(one.bbox[side]) }}</td>{% endfor %}
<td>{{ "%.0f" | format(one.area) }}</td></tr>
{% endfor %}
</table>
{% if rows | length > most %}<p>and {{ rows | length - most }} more</p>{% endif %}
{% if pictures and image.annotations and high < rows | length %}
<p>Drawn are the {{ high }} that score {{ shown_score }} or more.</p>
{% endif %}
{% endif %}
</div>
"""


def _html(page: str, **values: Any) -> str:
    return PAGES.from_string(COMMON + page).render(**values, most=SHOWN_ROWS, shown_score=SHOWN_SCORE)
