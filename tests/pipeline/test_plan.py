"""The plan: the same on every machine, cut where it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import MODEL
from shards import tiny_images, write_files, write_tar

from prelabel.pipeline.plan import from_table, plan_units, to_table
from prelabel.pipeline.sources.base import Unit
from prelabel.schemas.errors import SourceError
from prelabel.schemas.job import Labels


def plan(*sources: object, **options: Any) -> list[Unit]:
    return list(plan_units(Labels(sources=tuple(map(str, sources)), models=({"name": MODEL},), **options)))


def keys(units: list[Unit]) -> list[list[str]]:
    return [unit.keys for unit in units]


def test_ids_are_positions_in_the_plan(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(7)]
    write_files(str(tmp_path), dict.fromkeys(reversed(names), b"x"))
    units = plan(tmp_path, unit_images=3)
    assert keys(units) == [names[:3], names[3:6], names[6:]]
    assert [unit.number for unit in units] == [0, 1, 2]
    assert [image_id for unit in units for image_id in unit.image_ids] == list(range(7))
    assert to_table(plan(tmp_path, unit_images=3)).equals(to_table(units))


def test_bytes_cut_too_and_one_large_image_is_a_unit(tmp_path: Path) -> None:
    write_files(str(tmp_path), {"1.png": b"12345", "2.png": b"12345", "3.png": b"1", "4.png": b"1" * 99, "5.png": b""})
    assert keys(plan(tmp_path, unit_bytes=10)) == [["1.png", "2.png"], ["3.png"], ["4.png"], ["5.png"]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 20))
def test_cuts_lose_nothing_and_hold_their_limits(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], unit_images: int, unit_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("images")
    files = {f"{number:02}.png": b"x" * size for number, size in enumerate(sizes)}
    write_files(str(folder), files)
    units = plan(folder, unit_images=unit_images, unit_bytes=unit_bytes)
    assert [key for unit in units for key in unit.keys] == list(files)
    assert [size for unit in units for size in unit.sizes.tolist()] == sizes
    assert all(len(unit) <= unit_images for unit in units)
    assert all(len(unit) == 1 or unit.sizes.sum() <= unit_bytes for unit in units)


def test_sources_are_sorted_by_uri_and_units_never_cross_shards(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_tar(f"{tmp_path}/{name}.tar", {f"{name}{number}.png": b"x" for number in range(2)})
    write_files(f"{tmp_path}/c", {"c.png": b"x"})
    units = plan(tmp_path / "c", tmp_path / "b.tar", tmp_path / "a.tar")
    assert keys(units) == [["a0.png", "a1.png"], ["b0.png", "b1.png"], ["c.png"]]
    assert to_table(plan(tmp_path / "a.tar", tmp_path / "c", tmp_path / "b.tar")).equals(to_table(units))


def test_shard_named_twice_is_planned_once(tmp_path: Path) -> None:
    write_tar(f"{tmp_path}/a.tar", {"a.png": b"x"})
    assert keys(plan(tmp_path / "a.tar", f"{tmp_path}/*.tar")) == [["a.png"]]


@pytest.mark.parametrize(("limit", "expected"), [(1, [1]), (3, [3]), (4, [3, 1]), (5, [3, 2]), (99, [3, 2])])
def test_limit_takes_the_first_images(tmp_path: Path, limit: int, expected: list[int]) -> None:
    write_tar(f"{tmp_path}/a.tar", {f"{number}.png": b"x" for number in range(3)})
    write_tar(f"{tmp_path}/b.tar", {f"{number}.png": b"x" for number in range(2)})
    assert [len(unit) for unit in plan(tmp_path, limit=limit)] == expected


def test_empty_shard_is_fine_beside_others(tmp_path: Path) -> None:
    write_tar(f"{tmp_path}/a.tar", {})
    write_tar(f"{tmp_path}/b.tar", {"b.png": b"x"})
    assert keys(plan(tmp_path)) == [["b.png"]]


def test_source_without_images_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(SourceError, match=r"no images in .*--include"):
        plan(tmp_path)


def test_absent_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing is at .*absent"):
        plan(tmp_path / "absent")


def test_progress_counts_images(tmp_path: Path) -> None:
    write_files(str(tmp_path), tiny_images(5))
    told: list[int] = []
    list(plan_units(Labels(sources=(str(tmp_path),), models=({"name": MODEL},), unit_images=2), told.append))
    assert told[-1] == 5


def test_units_come_back_from_their_table(tmp_path: Path) -> None:
    write_tar(f"{tmp_path}/a.tar", {"ü\n.png": b"x", "b.png": b"yy"})
    (unit,) = plan(tmp_path)
    (back,) = from_table(to_table([unit]))
    assert (back.number, back.shard, back.keys) == (unit.number, unit.shard, unit.keys)
    assert back.offsets.tolist() == unit.offsets.tolist()
    assert back.sizes.tolist() == unit.sizes.tolist()
