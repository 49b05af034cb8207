"""A job that is stopped says how to go on with it: at once when told so twice, soon where winding up takes long."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
import sys, time
from prelabel.pipeline.cli import stopping

stopping.SECONDS_TO_STOP = {patience}
with stopping.resumable({output!r}):
    try:
        print("begun", flush=True)
        time.sleep(1_000)
    finally:
        print("winding up", flush=True)
        time.sleep({winding_up})
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("patience", "winding_up", "again", "how"),
    [
        (1_000, 0, False, "nothing was labeled yet"),
        (1_000, 1_000, True, "prelabel resume"),
        (0.1, 1_000, False, "resume"),
    ],
)
def test_stopping(
    tmp_path: Path, first: signal.Signals, patience: float, winding_up: float, again: bool, how: str
) -> None:
    code = JOB.format(patience=patience, winding_up=winding_up, output=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(first)
    assert process.stdout.readline() == "winding up\n"
    if again:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; go on with" in said
    assert how in said
    assert "Traceback" not in said
