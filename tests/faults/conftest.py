"""What the tests of faults share: the small jobs of the pipeline's tests, and pauses that take no time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits: neither before a storage call is repeated, nor for another runner's heartbeat."""
    for module in ("tenacity.nap", "prelabel.pipeline.lock"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=lambda seconds: None))
