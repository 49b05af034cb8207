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


def histogram(rows: Sequence[Row], x: Spec, y: Spec) -> Spec:
    """Bars from the field of `x` to that of its `to`."""
    ends = x | {"field": x["to"], "title": f"{x['title']}, to"}
    encoding = _ranged("x", x) | {"y": y, "y2": {"datum": 0}, "tooltip": tips(x, ends, y)}
    return _spec(rows, {"type": "rect", "stroke": "#808080", "strokeWidth": 0.4}, encoding)


def bars(rows: Sequence[Row], x: Spec, y: Spec, more: Sequence[Spec] = ()) -> Spec:
    """A bar for each name of `y`, in the order of the rows."""
    order = [row[y["field"]] for row in rows]
    encoding = {"x": x, "y": y | {"sort": order}, "tooltip": tips(y, x, *more)}
    return _spec(rows, {"type": "bar"}, encoding, CELL * len(rows))


def heat_map(
    rows: Sequence[Row], x: Spec, y: Spec, value: Spec, height: int = HEIGHT, tell: Sequence[Spec] = ()
) -> Spec:
    """Cells at `x` and `y`, up to the fields of their `to`, more opaque for more; `tell` is told at the pointer."""
    scale = {"type": "sqrt", "range": [0.06, 1], "domainMin": 0}
    opacity = value | {"scale": scale, "legend": {"tickCount": 4, "symbolType": "square"}}
    tooltip = tips(*(tell or (x, y)), value)
    encoding = _ranged("x", x) | _ranged("y", y) | {"opacity": opacity, "tooltip": tooltip}
    return _spec(rows, {"type": "rect"}, encoding, height)


def against_diagonal(rows: Sequence[Row], x: Spec, y: Spec, more: Sequence[Spec] = ()) -> Spec:
    """Points from 0 to 1, joined by a line, and the dashed line on which they ought to be."""
    ideal = _spec([{"x": 0, "y": 0}, {"x": 1, "y": 1}], {"type": "line", "strokeDash": [4, 4]}, {})
    ideal["encoding"] = {"x": quantity("x", ""), "y": quantity("y", ""), "color": {"value": "currentColor"}}
    real = _spec(rows, {"type": "line", "point": True}, {"x": x, "y": y, "tooltip": tips(x, y, *more)})
    layers = [{key: one[key] for key in ("data", "mark", "encoding")} for one in (real, ideal)]
    return {"layer": layers, "width": "container", "height": HEIGHT}


def _ranged(side: str, encoding: Spec) -> Spec:
    """An encoding's channel, and the one for its other end."""
    own = {key: one for key, one in encoding.items() if key != "to"}
    return {side: own} | ({f"{side}2": {"field": encoding["to"]}} if "to" in encoding else {})


def _spec(rows: Sequence[Row], mark: Spec, encoding: Spec, height: int = HEIGHT) -> Spec:
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding, "width": "container", "height": height}
