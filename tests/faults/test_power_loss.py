"""The power goes at any moment: whatever the disk still holds, going on ends with the files of an undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import files_of, write_images
from made_up import go_on, without_ray
from power import Disk, recorded
from simulated import told

from prelabel.pipeline import storage
from prelabel.pipeline.validate import validate


@pytest.fixture(autouse=True)
def _without_ray(hasty: None) -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_images(f"{tmp_path}/images", 4)


def bury(root: str) -> None:
    lock = Path(root, "_manifest/lock.json")
    if lock.exists() and lock.read_bytes().endswith(b"}\n"):
        lock.write_text(json.dumps(json.loads(lock.read_bytes()) | {"started": -1.0}))


def record(source: str, root: Path) -> Disk:
    root.mkdir()
    with recorded(str(root)) as disk:
        assert go_on(source, str(root), unit_images=2).is_complete
    return disk


def assert_survives(source: str, root: Path) -> int:
    """Goes on from every state that the disk may be in; returns how many there are."""
    disk = record(source, root)
    expected = told(files_of(str(root)))
    count = 0
    for count, state in enumerate(disk.states(), 1):  # noqa: B007
        disk.restore(state)
        bury(str(root))
        assert go_on(source, str(root), unit_images=2).is_complete, sorted(state)
        assert told(files_of(str(root))) == expected, sorted(state)
    assert validate(str(root)).is_proven
    return count


def test_whatever_a_power_failure_leaves_the_job_goes_on(source: str, tmp_path: Path) -> None:
    assert assert_survives(source, tmp_path / "out") > 30


@pytest.mark.parametrize("mutant", ["files are not synced", "folders are not synced", "new folders are not synced"])
def test_the_test_tells_what_is_not_synced(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    def unsynced(path: str, data: bytes) -> None:
        with storage.open(path, "xb") as file:  # type: ignore[attr-defined]
            file.write(data)

    changes = {
        "files are not synced": {"_write_and_sync": unsynced},
        "folders are not synced": {"_sync_folder": lambda path: None},
        "new folders are not synced": {"_make_folder": lambda path: storage.os.makedirs(path, exist_ok=True)},
    }
    for name, change in changes[mutant].items():
        monkeypatch.setattr(storage, name, change)
    with pytest.raises(Exception):  # noqa: B017  a job that is not whole shows itself in many ways
        assert_survives(source, tmp_path / "out")
