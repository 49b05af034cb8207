"""Work that hangs ends its process, and tells first on which images; work that is slow does not."""

import subprocess
import sys
import threading

from prelabel.operators.watchdog import Watchdog, turns_for


def test_who_hangs_is_told_before_the_process_ends() -> None:
    told: list[object] = []
    over = threading.Event()

    def end(code: int) -> None:
        told.append(code)
        over.set()

    watchdog = Watchdog(0.2, told.append, end)
    with watchdog.watching([7], turns=500), watchdog.watching([3, 5]):
        assert over.wait(30)
    assert told == [[3, 5], 1]


def test_many_short_pieces_may_take_long_together() -> None:
    ended = threading.Event()
    watchdog = Watchdog(1.0, print, lambda code: ended.set())
    for image_id in range(30):
        with watchdog.watching([image_id]):
            assert not ended.wait(0.05)


def test_an_interpreter_that_hangs_as_a_whole_is_ended() -> None:
    code = "import ctypes, time; from prelabel.operators.watchdog import Watchdog; Watchdog(1, print); time.sleep(0.5)"
    hang = "; ctypes.PyDLL(None).sleep(1_000)"  # keeps the interpreter's lock
    ran = subprocess.run([sys.executable, "-c", code + hang], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Timeout" in ran.stderr


def test_large_images_may_take_longer() -> None:
    assert turns_for([1, 1]) == 2
    assert turns_for([100 * 2**20]) == 7
