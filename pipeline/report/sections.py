"""What the tables hold, drawn and listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.report import charts
from prelabel.pipeline.report.blocks import Block, Chart, Note, Section, Table, listed, shown
from prelabel.pipeline.report.charts import LOGARITHM, name, quantity
from prelabel.pipeline.report.figures import (
    COMMON_SIZES,
    FAILURES,
    GRID,
    LABELS,
    OCTAVE,
    PER_IMAGE,
    REVIEWS,
    SCORE_BINS,
    SEGMENTS,
    TOGETHER,
    TOP,
    Figures,
    Row,
)

Names = Mapping[int, str]
FAILED_UNITS = 50
SCORE = quantity("bin", "score", scale={"domain": [0, 1]}, format=".2f", to="bin to")


def failure_section(dataset: LabelDataset, figures: Figures) -> Section:
    """Images that failed, by code, and units."""
    codes = figures.rows(FAILURES)
    units = Manifest(dataset.storage).failures()
    blocks: list[Block] = []
    if codes:
        spec = charts.bars(codes, quantity("images", "images"), name("code", "code"))
        blocks.append(Chart("Failed images by code", "How many images could not be labeled, and why.", spec))
        rows = [
            [one["code"], one["images"], listed(map(shown, one["keys"]), 3), shown(one["error"] or "")] for one in codes
        ]
        blocks.append(
            Table("Failed images", ("code", "images", "the first of them", "what was said of the first"), rows)
        )
    if units:
        told = [[one["unit"], one["attempts"], shown(str(one["error"])), shown(str(one["message"]))] for one in units]
        caption = "Units that could not be finished" + (
            f", the first {FAILED_UNITS}" if len(units) > FAILED_UNITS else ""
        )
        blocks.append(Table(caption, ("unit", "attempts", "error", "message"), told[:FAILED_UNITS]))
    return Section("failures", "Failures", blocks or [Note("No image and no unit has failed.")])


def category_section(figures: Figures, names: Names) -> Section:
    """Counts and scores by category, and which meet."""
    found = figures.scores()
    categories = _by_category(found)
    if not categories:
        return Section("categories", "Categories and scores", [Note("No objects were found.")])
    top = categories[:TOP]
    rest = sum(one["objects"] for one in categories[TOP:])
    together = figures.together([one["id"] for one in categories[:TOGETHER]])
    rows = [{"category": names.get(one["id"], str(one["id"])), **one} for one in top]
    blocks: list[Block] = [
        _counts(rows, rest, len(categories) - len(top)),
        _scores(found),
        _scores_by_category(found, rows),
        *([_together(together, [row["category"] for row in rows[:TOGETHER]])] if len(rows) > 1 else []),
        _category_table(rows, rest, together),
    ]
    return Section("categories", "Categories and scores", blocks)


def _by_category(found: Sequence[Row]) -> list[Row]:
    """id, objects and score (the mean), the commonest first."""
    sums: dict[int, Row] = {}
    for row in found:
        one = sums.setdefault(row["category_id"], {"id": row["category_id"], "objects": 0, "score": 0.0})
        one["objects"] += row["objects"]
        one["score"] += row["total"]
    for one in sums.values():
        one["score"] /= one["objects"]
    return sorted(sums.values(), key=lambda one: (-one["objects"], one["id"]))


def _counts(rows: Sequence[Row], rest: int, more: int) -> Chart:
    others = [{"category": f"({more:,} others)", "objects": rest, "score": None}] if more else []
    objects, score = quantity("objects", "objects"), quantity("score", "mean score", format=".3f")
    spec = charts.bars([*rows, *others], objects, name("category", "category"), [score])
    return Chart(
        "Objects by category", f"How many objects were found; the {TOP} commonest categories, the rest summed.", spec
    )


def _scores(found: Sequence[Row]) -> Chart:
    totals = [sum(row["objects"] for row in found if row["bin"] == one) for one in range(SCORE_BINS)]
    rows = [{"bin": one, "objects": total} for one, total in enumerate(totals)]
    spec = charts.histogram(_parts(rows, SCORE_BINS, "bin"), SCORE, quantity("objects", "objects"))
    says = "How many objects have which score; a good threshold is often where the bars are lowest."
    return Chart("Scores", says, spec)


def _scores_by_category(found: Sequence[Row], top: Sequence[Row]) -> Chart:
    known = {row["id"]: row for row in top}
    own = [(row, known[row["category_id"]]) for row in found if row["category_id"] in known]
    rows = [
        {
            "category": of["category"],
            "bin": row["bin"],
            "objects": row["objects"],
            "share": row["objects"] / of["objects"],
        }
        for row, of in own
    ]
    y = name("category", "category", [row["category"] for row in top])
    share, objects = quantity("share", "share of the category's objects", format=".0%"), quantity("objects", "objects")
    cells = _parts(rows, SCORE_BINS, "bin")
    spec = charts.heat_map(cells, SCORE, y, share, charts.CELL * len(top), [y, SCORE, objects])
    says = "Which share of a category's objects has which score: the stronger the colour, the more."
    return Chart("Scores by category", says, spec)


def _together(images: Any, names: Sequence[str]) -> Chart:
    rows = [
        {"one": one, "other": other, "images": int(images[i, j])}
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if images[i, j]
    ]
    x, y = name("other", "with", names), name("one", "category", names)
    spec = charts.heat_map(rows, x, y, quantity("images", "images"), charts.CELL * len(names), [y, x])
    says = f"Images that hold objects of both categories; on the diagonal, of one. The {TOGETHER} commonest categories."
    return Chart("Categories that meet", says, spec)


def _category_table(rows: Sequence[Row], rest: int, together: Any) -> Table:
    images = [int(together[place, place]) if place < len(together) else None for place in range(len(rows))]
    cells = [[row["category"], row["objects"], n, row["score"]] for row, n in zip(rows, images, strict=True)]
    others = [["all others", rest, None, None]] if rest else []
    return Table(
        "Objects by category, in numbers", ("category", "objects", "images", "mean score"), cells + others, True
    )


def box_section(figures: Figures, table: str) -> Section | None:
    """How large the boxes of a table are, how wide, and where."""
    found = figures.boxes(table)
    if not found["place"]:
        return None
    side = quantity("side", "√(width · height), pixels", scale=LOGARITHM, format=",.3~g", to="side to")
    aspect = quantity("aspect", "width : height", scale=LOGARITHM, format=".3~g", to="aspect to")
    across, down = (
        quantity(field, title, scale=scale, format=".0%", axis={"format": "%"}, to=f"{field} to")
        for field, title, scale in (
            ("column", "across the image", {"domain": [0, 1]}),
            ("row", "down the image", {"domain": [0, 1], "reverse": True}),
        )
    )
    boxes = quantity("objects", "boxes")
    drawn = [
        (
            "Box sizes",
            f"Boxes in {table} by the side of a square of their area; the scale doubles.",
            charts.histogram(_octaves(found["side"], "side"), side, boxes),
        ),
        (
            "Aspect ratios",
            "Boxes right of 1 are wider than high; the scale doubles.",
            charts.histogram(_octaves(found["aspect"], "aspect"), aspect, boxes),
        ),
        (
            "Where they are",
            "Centres of the boxes, relative to their images: the stronger the colour, the more.",
            charts.heat_map(_parts(found["place"], GRID, "column", "row"), across, down, boxes, 300),
        ),
    ]
    return Section("boxes", "Boxes", [Chart(*one) for one in drawn])


def _parts(rows: Sequence[Row], parts: int, *fields: str) -> list[Row]:
    """Rows with numbers of equal parts of 0 to 1 as their edges, from `field` to `field to`."""
    return [
        row
        | {field: row[field] / parts for field in fields}
        | {f"{field} to": (row[field] + 1) / parts for field in fields}
        for row in rows
    ]


def _octaves(rows: Sequence[Row], *fields: str) -> list[Row]:
    """Rows with rounded logarithms as the edges of what is rounded so, from `field` to `field to`."""
    return [
        row
        | {
            name: 2 ** ((row[one] + half) / OCTAVE)
            for one in fields
            for name, half in ((one, -0.5), (f"{one} to", 0.5))
        }
        for row in rows
    ]


def image_section(figures: Figures, has_objects: bool) -> Section:
    """How large the images are, and how much is in them."""
    blocks: list[Block] = []
    if has_objects and (counts := figures.rows(PER_IMAGE)):
        rows = [row | {"end": row["objects"] + row["step"]} for row in counts]
        objects = quantity("objects", "objects in an image", axis={"tickMinStep": 1}, to="end")
        spec = charts.histogram(rows, objects, quantity("images", "images"))
        blocks.append(Chart("Objects per image", "How many images hold how many objects; at 0, those without.", spec))
    if sizes := figures.sizes():
        x = quantity("width", "width, pixels", scale=LOGARITHM, to="width to", format=",.3~g")
        y = quantity("height", "height, pixels", scale=LOGARITHM, to="height to", format=",.3~g")
        spec = charts.heat_map(_octaves(sizes, "width", "height"), x, y, quantity("images", "images"))
        blocks.append(Chart("Image sizes", "Images by width and height, upright; the scales double.", spec))
    common = [[f"{row['width']:,} × {row['height']:,}", row["images"]] for row in figures.rows(COMMON_SIZES)]
    blocks.append(Table("The commonest sizes", ("width × height, pixels", "images"), common, True))
    return Section("images", "Images", blocks)


def segment_section(figures: Figures, names: Names, pixels: int) -> Section | None:
    """How much of the images the segments of a category cover."""
    found = figures.rows(SEGMENTS)
    blocks: list[Block] = []
    tables: list[Block] = []
    for kind in sorted({row["kind"] for row in found}):
        own = [row for row in found if row["kind"] == kind]
        rows = [
            {"category": names.get(row["category_id"], str(row["category_id"])), "share": row["area"] / pixels} | row
            for row in own[:TOP]
        ]
        rest = sum(row["area"] for row in own[TOP:])
        others = [{"category": f"({len(own) - TOP:,} others)", "share": rest / pixels}] if rest else []
        share = quantity("share", "share of all images' pixels", format=".1%", axis={"format": "%"})
        spec = charts.bars([*rows, *others], share, name("category", "category"), [quantity("segments", "segments")])
        says = f"How much of all pixels {kind} segments cover; the {TOP} largest categories, the rest summed."
        blocks.append(Chart(f"Area of {kind} segments", says, spec))
        cells = [[row["category"], row["segments"], 100 * row["share"]] for row in rows]
        head = ("category", "segments", "% of all pixels")
        tables.append(Table(f"{kind.capitalize()} segments, in numbers", head, cells, True))
    return Section("segments", "Segments", blocks + tables) if blocks else None


def label_section(figures: Figures, names: Names) -> Section | None:
    """What images as a whole are."""
    found = figures.rows(LABELS)
    rows = [{"category": names.get(row["category_id"], str(row["category_id"])), **row} for row in found]
    if not rows:
        return None
    score = quantity("score", "mean score", format=".3f")
    spec = charts.bars(rows, quantity("images", "images"), name("category", "label"), [score])
    says = f"Images by the label that scores highest; the {TOP} commonest."
    cells = [[row["category"], row["images"], row["score"]] for row in rows]
    table = Table("Labels in numbers", ("label", "images", "mean score"), cells, True)
    return Section("labels", "Labels of images", [Chart("First labels", says, spec), table])


def review_section(figures: Figures) -> Section | None:
    """What people have said so far."""
    rows = figures.rows(REVIEWS)
    cells = [[shown(row.pop("reviewer")), *row.values()] for row in rows]
    head = ("reviewer", "accepted", "rejected", "flagged", "notes", "images")
    told = Table("Each reviewer's last word on images and objects", head, cells)
    return Section("reviews", "Reviews so far", [told]) if rows else None
