"""Hostile input ends as a row with the right code, or as one clear line: the table of docs/input.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hostile_images import HostileImage, encoded, hostile_images
from hostile_sources import SOURCES
from outcomes import LABELED, everything_below, outcome_of, outcomes, rows_of
from shards import write_files, write_tar

PAGE = Path(__file__).parents[2] / "docs" / "input.md"


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_hostile_images_cost_their_neighbours_nothing(kind: str, tmp_path: Path) -> None:
    """All in one source, a good one after each; neighbours end as if they were alone."""
    good = encoded()
    files = {}
    for number, (name, image) in enumerate(hostile_images().items()):
        files[f"{number:03d} {name}.png"] = image.data
        files[f"{number:03d} {name} neighbor.png"] = good
    if kind == "folder":
        write_files(str(tmp_path / "images"), files)
    else:
        write_tar(str(tmp_path / "images.tar"), files)
    source = str(tmp_path / ("images" if kind == "folder" else "images.tar"))
    rows = rows_of(source, tmp_path / "labels", unit_images=100)
    assert not isinstance(rows, str)
    assert len(rows) == len(files)
    found = {row["key"]: row for row in rows}
    assert {found[key]["digest"] for key in files if "neighbor" in key} == {found["000 empty neighbor.png"]["digest"]}
    assert all(outcome_of(row) == LABELED for key, row in found.items() if "neighbor" in key)
    for number, (name, image) in enumerate(hostile_images().items()):
        row = found[f"{number:03d} {name}.png"]
        assert outcome_of(row) in image.outcome, name
        assert (row["error"] is None) == (image.outcome == LABELED)
        assert "\n" not in (row["error"] or "")


@pytest.mark.parametrize("name", SOURCES)
def test_hostile_sources(name: str, tmp_path: Path) -> None:
    case = SOURCES[name]
    (tmp_path / "in").mkdir()
    source = case.make(tmp_path / "in")
    before = everything_below(tmp_path)
    found = outcomes(source, tmp_path / "out", **case.options)
    if isinstance(case.outcome, str):
        assert isinstance(found, str), found
        assert case.outcome in found
    else:
        assert not isinstance(found, str), found
        assert dict(found) == case.outcome
        assert len(found) == len(case.outcome)
    after = [path for path in everything_below(tmp_path) if not path.startswith("out")]
    assert after == before
