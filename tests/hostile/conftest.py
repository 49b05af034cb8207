"""What the tests of hostile input share: how the pipeline's tests write sources and small jobs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
