"""Fixtures for all floors."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images with ground truth, beside the checkout of those who have them."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images are not here: ../shared/data is absent")
    return SHARED_DATA
