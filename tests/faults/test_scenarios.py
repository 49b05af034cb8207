"""Twenty of the scenarios that `make soak` plays by the hundred."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scenarios import LIGHT, SkipError
from soak import World, world

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
SCENARIOS = [*LIGHT, *LIGHT, "driver killed", "two runners", "Ray: driver killed", "Ray: actor killed"]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("soak")) as there:
        yield there


@pytest.mark.parametrize(("seed", "kind"), list(enumerate(SCENARIOS)), ids=str)
def test_whatever_happens_nothing_is_lost_or_doubled_or_different(there: World, seed: int, kind: str) -> None:
    try:
        there.play(seed, kind)
    except SkipError as error:
        pytest.skip(str(error))
