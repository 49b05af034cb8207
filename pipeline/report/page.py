"""Sections become one HTML file that needs nothing else: no network, no inline styles, no eval."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files

import orjson
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from prelabel.pipeline.report.blocks import Cell, Chart, Section, number

POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        title: its headline
        status: how far the job is, in a sentence
        lead: the numbers that come first, by what they count
        sections: all the rest
    """

    title: str
    status: str
    lead: Sequence[tuple[str, Cell]]
    sections: Sequence[Section]


def render(page: Page) -> bytes:
    """The page as UTF-8 HTML; the same bytes for the same page and versions."""
    files_of_page = files(__package__)
    style = files_of_page.joinpath("style.css").read_text(encoding="utf-8")
    script = _script(files_of_page.joinpath("charts.js").read_text(encoding="utf-8"))
    charts = [block for section in page.sections for block in section.blocks if isinstance(block, Chart)]
    ids = {id(chart): f"chart-{place}" for place, chart in enumerate(charts)}
    environment = Environment(
        autoescape=True, trim_blocks=True, undefined=StrictUndefined, loader=PackageLoader(__package__, "")
    )
    environment.filters["shown"] = number
    html = environment.get_template("report.html.jinja").render(
        vars(page),
        policy=POLICY.format(script=_source(script), style=_source(style)),
        style=style,
        script=script,
        specs=_json({ids[id(chart)]: chart.spec | {"description": f"{chart.title}. {chart.says}"} for chart in charts}),
        chart_id=lambda chart: ids[id(chart)],
        version=version("prelabel"),
    )
    return html.encode()


@cache
def _script(own: str) -> str:
    """Vega, Vega-Lite, Vega-Embed and our own lines, with nothing in them that ends a script element."""
    bundle: str = vl_convert.javascript_bundle(own)
    return bundle.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _json(value: object) -> str:
    """JSON for a script element: no name in it can end the element. What is no number is null."""
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
    return text.replace("<", r"\u003c")


def _source(text: str) -> str:
    """How a content security policy names the one inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
