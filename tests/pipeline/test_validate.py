"""validate names what is damaged, and sends it back to work."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click import UsageError
from click.testing import CliRunner
from jobs import files_of, pending, write_images
from whole import OUTPUT, Made, clear, damage, edit, restore

from prelabel.pipeline.cli.checking import validate as command
from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.manifest import COMMITS, FAILURES, JOB, UNITS, Manifest, checksum, plan_bytes, to_json, unit_name
from prelabel.pipeline.plan import PLAN_SCHEMA
from prelabel.pipeline.reviews import Review, write_reviews
from prelabel.pipeline.storage import TEMPORARY, Storage
from prelabel.pipeline.validate import PROMISES, Validation, validate
from prelabel.pipeline.writer import to_parquet
from prelabel.schemas.errors import JobError
from prelabel.schemas.tables import part_name

PLAN = f"{UNITS}/part-00000.parquet"
COMMIT = f"{COMMITS}/{unit_name(0)}"
FLIPS = int(os.environ.get("PRELABEL_FLIPS", 60))  # a thousand take minutes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(write_images(str(tmp_path_factory.mktemp("images"))))


@pytest.fixture(autouse=True)
def storage(made: Made) -> Iterator[Storage]:
    restore(made.files)
    yield Storage(OUTPUT)
    clear()


def kinds(found: Validation) -> set[str]:
    return set(found.violations.counts)


def test_a_job_without_fault_is_proven() -> None:
    seen: list[tuple[int, int]] = []
    found = validate(OUTPUT, progress=lambda *counts: seen.append(counts))
    assert found.is_proven, list(found.lines(9))
    assert not found.leftovers.counts
    assert found.rows == {"images": 7, "annotations": 5, "segments": 8, "proposals": 5, "reviews": 2}
    assert found.masks == 13
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (found.units, found.images, found.committed, found.checked, found.exit_code) == (3, 7, 3, 3, 0)


def test_units_that_are_not_committed_are_no_violation(storage: Storage) -> None:
    storage.delete(f"{COMMITS}/{unit_name(1)}")
    found = validate(OUTPUT)
    assert found.is_proven
    assert found.leftovers.counts == {"part": 4}
    assert found.committed == 2
    assert "1 of 3 units are not committed" in "".join(found.lines(9))


# The manifest


@pytest.mark.parametrize(
    "change",
    [
        lambda commit: commit.pop("counts"),
        lambda commit: commit.update(more=1),
        lambda commit: commit.update(unit=1),
        lambda commit: commit["parts"].pop("segments"),
        lambda commit: commit["parts"]["images"].update(path="images/part-00000001.parquet"),
        lambda commit: commit["parts"]["images"].update(rows="3"),
        lambda commit: commit["counts"].update(annotations=4),
        lambda commit: commit["counts"]["failed"].update(truncated=1),
        lambda commit: commit.update(timings=[1]),
        lambda commit: commit["timings"].update(rows=-1),
        lambda commit: commit.update(committed="yesterday"),
    ],
)
def test_a_commit_says_what_is_there(storage: Storage, change: Callable[[Any], object]) -> None:
    edit(storage, COMMIT, change)
    found = validate(OUTPUT)
    assert kinds(found) == {"commit"}
    assert {(one.unit, one.file) for one in found.violations.kept} == {(0, COMMIT)}


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff"])
def test_a_commit_that_is_none_is_named(storage: Storage, data: bytes) -> None:
    storage.put(COMMIT, data)
    assert kinds(validate(OUTPUT)) == {"commit"}


def test_a_commit_of_no_planned_unit_is_named_and_taken_back(storage: Storage) -> None:
    storage.put(f"{COMMITS}/{unit_name(3)}", storage.read(COMMIT))
    found = validate(OUTPUT, fix=True)
    assert kinds(found) == {"commit"}
    assert found.fixed == [3]
    assert validate(OUTPUT).is_proven


@pytest.mark.parametrize(("key", "value"), [("rows", 1), ("bytes", 1), ("sha256", "0" * 64)])
def test_a_part_is_what_its_commit_says(storage: Storage, key: str, value: Any) -> None:
    edit(storage, COMMIT, lambda commit: commit["parts"]["proposals"].update({key: value}))
    found = validate(OUTPUT)
    assert kinds(validate(OUTPUT, quick=True)) == {"rows": {"commit"}, "bytes": {"part"}, "sha256": set()}[key]
    assert kinds(found) == {"part"}
    assert [one.file for one in found.violations.kept] == ["proposals/part-00000000.parquet"]


PLAN_ROWS: list[Callable[[list[dict[str, Any]]], object]] = [
    lambda rows: rows.reverse(),
    lambda rows: rows[1].update(unit=2),
    lambda rows: rows[1].update(first_image_id=4),
    lambda rows: rows[0].update(first_image_id=1),
    lambda rows: rows[2].update(keys=[], offsets=[], sizes=[]),
    lambda rows: rows[1]["sizes"].pop(),
    lambda rows: rows[1].update(keys=["a", None, "b"]),
    lambda rows: rows.pop(),
    lambda rows: [rows[2][name].append(rows[2][name][0]) for name in ("keys", "offsets", "sizes")],
]


@pytest.mark.parametrize("change", PLAN_ROWS)
def test_a_plan_has_no_gap(storage: Storage, change: Callable[[list[dict[str, Any]]], object]) -> None:
    rows = pq.read_table(pa.BufferReader(storage.read(PLAN))).to_pylist()
    change(rows)
    storage.put(PLAN, plan_bytes(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)))
    found = validate(OUTPUT)
    assert any(one.file == PLAN or "holds 8 images" in one.message for one in found.violations.kept)


@pytest.mark.parametrize("what", ["another file", "gone", "cut off", "other columns", "other bytes"])
def test_a_plan_has_its_files_as_they_were_written(storage: Storage, what: str) -> None:
    data, file, other = storage.read(PLAN), PLAN, pa.BufferOutputStream()
    rows = pq.read_table(pa.BufferReader(data))
    pq.write_table(rows.drop_columns("kind") if what == "other columns" else rows, other, write_page_checksum=True)
    storage.delete(PLAN)
    if what == "another file":
        file = f"{UNITS}/part-00001.parquet"
        storage.put(PLAN, data)
    if what != "gone":
        storage.put(file, {"another file": data, "cut off": data[:-9]}.get(what, other.getvalue().to_pybytes()))
    found = validate(OUTPUT, fix=True)
    assert kinds(found) == {"plan"}
    assert (found.violations.kept[0].file, found.fixed) == (file, [])
    lost = what in ("gone", "cut off", "other columns")
    assert lost == any("3 committed units can't be looked at" in one.message for one in found.violations.kept)
    assert "put those files back from a copy" in "".join(found.lines(9))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda job: job.update(fingerprint="0" * 64), "job"),
        (lambda job: job["job"]["labels"].update(top_labels=3), "job"),
        (lambda job: job["categories"][0].update(name="bell"), "job"),
        (lambda job: job["categories"][0].update(id=-1), "job"),
        (lambda job: job["models"][0].update(name="other"), "job"),
        (lambda job: job.update(tables=["annotations", "images", "segments"]), "commit"),
        (lambda job: job.update(tables=["annotations", "proposals", "segments"]), "job"),
        (lambda job: job.update(images=8), "plan"),
        (lambda job: job.update(units=4), "plan"),
        (lambda job: job.pop("units"), "job"),
    ],
)
def test_job_json_is_what_the_job_is(storage: Storage, change: Callable[[Any], object], kind: str) -> None:
    edit(storage, JOB, change)
    assert kind in kinds(validate(OUTPUT))


def test_job_json_that_is_cut_off_can_not_be_fixed(storage: Storage) -> None:
    storage.put(JOB, storage.read(JOB) + b" ")
    assert kinds(validate(OUTPUT)) == {"job"}
    storage.put(JOB, storage.read(JOB)[:-5])
    found = validate(OUTPUT, fix=True)
    assert kinds(found) == {"job"}
    assert not found.fixed
    with pytest.raises(JobError, match="no job"):
        validate("memory://elsewhere")


# Parts


@pytest.mark.parametrize("key", ["prelabel.schema_version", "prelabel.fingerprint", "prelabel.categories"])
def test_a_part_carries_what_the_job_is(made: Made, storage: Storage, key: str) -> None:
    write_part(storage, "annotations", lambda rows, metadata: (rows, metadata | {key: "other"}), made.metadata)
    found = validate(OUTPUT)
    assert kinds(found) == {"schema"}
    assert found.violations.kept[0].line() == f"unit 0: annotations/{part_name(0)}: its {key} is not the job's"


def test_a_part_has_the_columns_of_its_table(made: Made, storage: Storage) -> None:
    write_part(storage, "proposals", lambda rows, metadata: (rows.drop_columns("score"), metadata), made.metadata)
    assert kinds(validate(OUTPUT)) == {"schema"}


def test_page_checksums_tell_damage_before_the_commit_was_written(storage: Storage) -> None:
    data = bytearray(storage.read("segments/part-00000000.parquet"))
    data[data.index(b"panoptic") + 2] ^= 1
    put_part(storage, "segments", bytes(data))
    found = validate(OUTPUT)
    assert kinds(found) == {"part"}
    assert "can't be read" in found.violations.kept[0].message


def test_a_lost_part_is_named_and_nothing_that_follows_from_it(storage: Storage) -> None:
    storage.delete("annotations/part-00000000.parquet")
    found = validate(OUTPUT)
    assert found.violations.counts == {"part": 1}


def test_missing_parts_are_named_also_by_a_quick_look(storage: Storage) -> None:
    storage.delete("images/part-00000002.parquet")
    storage.put("segments/part-00000001.parquet", b"PAR1")
    for quick in (False, True):
        found = validate(OUTPUT, quick=quick)
        assert kinds(found) == {"part"}
        assert found.violations.units == {1, 2}
    assert kinds(validate(OUTPUT, units=range(0, 1))) == set()


def write_part(storage: Storage, table: str, change: Callable[[Any, Any], Any], metadata: dict[str, str]) -> None:
    rows = pq.read_table(pa.BufferReader(storage.read(f"{table}/{part_name(0)}")))
    put_part(storage, table, to_parquet(*change(rows, metadata)))


def put_part(storage: Storage, table: str, data: bytes) -> None:
    """Unit 0's, with a commit that knows of it."""
    storage.put(f"{table}/{part_name(0)}", data)
    sums = {"bytes": len(data), "sha256": checksum(data)}
    edit(storage, COMMIT, lambda commit: commit["parts"][table].update(sums))


# What lies about


def test_leftovers_are_told_and_are_harmless(storage: Storage) -> None:
    names = [f"{TEMPORARY}/x", "notes.txt", "_manifest/notes", f"{COMMITS}/1.json", "images/_notes"]
    failure = {"unit": 0, "attempts": 1, "error": "OSError", "message": "", "final": False}
    for name in names:
        storage.put(name, b"")
    storage.put(f"{FAILURES}/{unit_name(0)}", to_json(failure))
    found = validate(OUTPUT)
    assert found.is_proven
    assert {one.file for one in found.leftovers.kept} == {*names, f"{FAILURES}/{unit_name(0)}"}


@pytest.mark.parametrize("name", ["images/copy.parquet", "annotations/part-00000003.parquet", "reviews/notes.txt"])
def test_what_arrow_would_take_for_rows_is_a_violation(storage: Storage, name: str) -> None:
    storage.put(name, storage.read("images/part-00000000.parquet"))
    found = validate(OUTPUT)
    assert [(one.kind, one.file) for one in found.violations.kept] == [("stray", name)]


def test_a_failure_that_nobody_can_read_is_named_and_removed(storage: Storage) -> None:
    storage.delete(COMMIT)
    storage.put(f"{FAILURES}/{unit_name(0)}", b"{}")
    found = validate(OUTPUT, fix=True)
    assert kinds(found) == {"failure"}
    assert not storage.exists(f"{FAILURES}/{unit_name(0)}")


@pytest.mark.parametrize(
    "review",
    [
        Review(7),
        Review(-1),
        Review(1, 65_537),
        Review(1, 2 * 65_536),
        Review(4, 4 * 65_536),
        Review(0, None, "perhaps"),
    ],
)
def test_reviews_are_of_what_exists(review: Review) -> None:
    write_reviews(open_dataset(OUTPUT), "anna", [Review(2), review])
    found = validate(OUTPUT)
    assert kinds(found) == {"review"}
    assert [one.row for one in found.violations.kept] == [1]
    assert not found.violations.units


def test_a_review_is_there_once_and_whole(storage: Storage) -> None:
    file = f"reviews/{storage.names('reviews')[0]}"
    data, again = storage.read(file), pa.BufferOutputStream()
    storage.put("reviews/part-a-copy.parquet", data)
    assert validate(OUTPUT).violations.counts == {"review": 2}
    storage.delete("reviews/part-a-copy.parquet")
    pq.write_table(pq.read_table(pa.BufferReader(data)), again)
    for damaged in (data[:-9], again.getvalue().to_pybytes()):
        storage.put(file, damaged)
        assert validate(OUTPUT).violations.counts == {"review": 1}


# Damage, and what becomes of it


def means_the_same(name: str, data: bytes, damaged: bytes) -> bool:
    """Whether only a commit's timings or its time differ, which nothing else tells."""
    if not name.startswith(COMMITS):
        return False
    try:
        before, after = json.loads(data), json.loads(damaged)
    except ValueError:
        return False
    told = [{k: v for k, v in one.items() if k not in ("timings", "committed")} for one in (before, after)]
    return told[0] == told[1] and before.keys() == after.keys() and len(data) == len(damaged)


def test_every_bit_counts(made: Made, storage: Storage) -> None:
    chance = random.Random(7)
    names = sorted(name.lstrip("/") for name in made.files if JOB not in name)
    for _ in range(FLIPS):
        name = chance.choice(names)
        data = made.files[f"/{name}"]
        damaged = damage(data, chance)
        storage.put(name, damaged)
        found = validate(OUTPUT)
        told = {one.file for one in (*found.violations.kept, *found.leftovers.kept)}
        if name not in told and not any(f"{unit:08d}" in name for unit in found.violations.units):
            assert means_the_same(name, data, damaged), f"{name}: {damaged!r}"
        storage.put(name, data)


def test_damaged_units_are_worked_again(made: Made, storage: Storage) -> None:
    storage.put("segments/part-00000001.parquet", b"")
    storage.put(COMMIT, b"{")
    failure = {"unit": 1, "attempts": 3, "error": "ModelError", "message": "no", "final": True}
    failure |= {"skip": [{"image_id": 4, "code": "timeout", "unread": False}]}
    storage.put(f"{FAILURES}/{unit_name(1)}", to_json(failure))
    found = validate(OUTPUT, fix=True)
    assert found.fixed == [0, 1]
    assert "prelabel resume memory:///labels" in "".join(found.lines(9))
    assert Manifest(storage).given_up() == set()
    assert json.loads(storage.read(f"{FAILURES}/{unit_name(1)}"))["skip"] == failure["skip"]
    assert [unit.number for unit in pending(storage)] == [0, 1]
    for unit in pending(storage):
        made.write(unit.number)
    assert validate(OUTPUT).is_proven
    after = files_of(OUTPUT)
    assert {n: d for n, d in made.files.items() if "_manifest" not in n}.items() <= after.items()


def test_nothing_is_fixed_under_a_runner(storage: Storage) -> None:
    storage.put(COMMIT, b"{")
    with Lock(storage), pytest.raises(JobError, match="is being worked on"):
        validate(OUTPUT, fix=True)
    assert storage.read(COMMIT) == b"{"


def test_of_many_violations_some_are_named_and_all_are_counted(made: Made) -> None:
    def change(tables: dict[str, list[dict[str, Any]]]) -> None:
        for row in tables["annotations"]:
            row["score"] = 2.0

    for unit in range(3):
        made.write(unit, change)
    found = validate(OUTPUT, limit=2)
    assert found.violations.counts == {"score": 5}
    assert len(found.violations.kept) == 2
    assert "… and 4 more like that (score)" in list(found.lines(1))
    assert found.violations.units == {0, 1}


def test_the_command_tells_people_and_programs(storage: Storage) -> None:
    run = partial(CliRunner().invoke, command, standalone_mode=False)
    assert run([OUTPUT]).return_value == 0
    storage.put("segments/part-00000001.parquet", b"")
    storage.put("images/two\nlines.txt", b"")
    told = run([OUTPUT, "--show", "1"])
    assert told.return_value == 3
    assert "unit 1: segments/part-00000001.parquet: has 0 bytes, its commit says" in told.stderr
    assert "images/two\\nlines.txt: is no part of the job" in told.stderr
    as_json = run([OUTPUT, "--json", "--units", ":2", "--quick"])
    found = json.loads(as_json.stdout)
    assert (found["proven"], found["checked"], found["damaged_units"]) == (False, 2, [1])
    assert {one["kind"] for one in found["violations"]} == {"part", "stray"}
    with pytest.raises(UsageError, match="is not A:B"):
        run([OUTPUT, "--units", "2:1"], catch_exceptions=False)


def test_the_page_names_every_promise() -> None:
    page = (Path(__file__).parents[2] / "docs" / "validate.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == set(PROMISES)
