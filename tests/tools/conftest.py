"""What the tests of real tools share: the other tests' jobs, and the interpreter that has the tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
PYTHON = os.environ.get("PRELABEL_TOOLS_PYTHON", sys.executable)


@cache
def has(module: str) -> bool:
    return not subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True, check=False).returncode


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    """Skips where a module can't be imported: for what should not be prepared in vain."""

    def check(module: str) -> None:
        if not has(module):
            pytest.skip(f"{PYTHON} has no {module}: set PRELABEL_TOOLS_PYTHON to one that has")

    return check


@pytest.fixture(scope="session")
def read_with(need: Callable[[str], None]) -> Callable[..., Any]:
    """Runs a script beside the tests where the module that it needs can be imported; what it prints as JSON."""

    def read(module: str, script: str, *arguments: object) -> Any:
        need(module)
        command = [PYTHON, str(Path(__file__).with_name(script)), *map(str, arguments)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    return read
