"""Vega-Lite specifications as plain dicts, drawn in the page's own colours, so that one drawing suits light and dark.

Heat maps say more by more opacity, which reads on any ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Spec = dict[str, Any]

HEIGHT = 220
CELL = 20
"""Height of a row of names, in pixels."""
LOGARITHM = {"type": "log", "base": 2}


def quantity(field: str, title: str, **more: Any) -> Spec:
    """An encoding by a number."""
    return {"field": field, "type": "quantitative", "title": title} | more


def name(field: str, title: str, order: Sequence[str] | None = None, **more: Any) -> Spec:
    """An encoding by a name, in the order given."""
    return {"field": field, "type": "nominal", "title": title, "sort": list(order) if order else None} | more


def tips(*encodings: Spec) -> list[Spec]:
    """The same numbers and names, to be told where the pointer is."""
    return [{key: one[key] for key in ("field", "type", "title", "format") if key in one} for one in encodings]


def histogram(rows: Sequence[Row], x: Spec, y: Spec, to: str = "to") -> Spec:
    """Bars from `x` to the field `to`."""
    ends = quantity(to, f"{x['title']}, to", **({"format": x["format"]} if "format" in x else {}))
    encoding = {"x": x, "x2": {"field": to}, "y": y, "y2": {"datum": 0}, "tooltip": tips(x, ends, y)}
    return _spec(rows, {"type": "rect", "stroke": "#808080", "strokeWidth": 0.4}, encoding)


def bars(rows: Sequence[Row], x: Spec, y: Spec, more: Sequence[Spec] = ()) -> Spec:
    """A bar for each name of `y`, in the order of the rows."""
    order = [row[y["field"]] for row in rows]
    encoding = {"x": x, "y": y | {"sort": order}, "tooltip": tips(y, x, *more)}
    return _spec(rows, {"type": "bar"}, encoding, CELL * len(rows))


def heat_map(
    rows: Sequence[Row], x: Spec, y: Spec, value: Spec, height: int = HEIGHT, tell: Sequence[Spec] = ()
) -> Spec:
    """Cells at `x` and `y`, from one edge to the other where they have an `to`, more opaque for more."""
    encoding: Spec = {"x": x, "y": y, "tooltip": tips(*(tell or (x, y)), value)}
    for side in ("x", "y"):
        if "to" in encoding[side]:
            encoding[f"{side}2"] = {"field": encoding[side]["to"]}
            encoding[side] = {key: one for key, one in encoding[side].items() if key != "to"}
    encoding["opacity"] = value | {
        "scale": {"type": "sqrt", "range": [0.06, 1], "domainMin": 0},
        "legend": {"tickCount": 4, "symbolType": "square"},
    }
    return _spec(rows, {"type": "rect"}, encoding, height)


def lines(rows: Sequence[Row], x: Spec, y: Spec, more: Sequence[Spec] = (), diagonal: bool = False) -> Spec:
    """Points joined by a line; with the diagonal, on which they ought to be."""
    drawn = _spec(rows, {"type": "line", "point": True}, {"x": x, "y": y, "tooltip": tips(x, y, *more)})
    if not diagonal:
        return drawn
    ideal = {"data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]}, "mark": {"type": "line", "strokeDash": [4, 4]}}
    ideal["encoding"] = {"x": quantity("x", ""), "y": quantity("y", ""), "color": {"value": "currentColor"}}
    layers = [ideal, {key: drawn[key] for key in ("mark", "encoding")}]
    return {"data": drawn["data"], "layer": layers, "width": "container", "height": HEIGHT}


def _spec(rows: Sequence[Row], mark: Spec, encoding: Spec, height: int = HEIGHT) -> Spec:
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding, "width": "container", "height": height}
