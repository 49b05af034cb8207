"""`make soak`: plays scenarios of faults until all are played or the time is up, and prints what came of them."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "pipeline")]

from buckets import s3_server
from jobs import write_images
from made_up import go_on, without_ray
from scenarios import HEAVY, LIGHT, Scene, SkipError, play, run_until_done, tables_of

IMAGES = 8


class World:
    """What scenarios share: images, what jobs over them come to, and an S3 server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.source = write_images(f"{folder}/images", IMAGES)

    @cached_property
    def light(self) -> dict[str, Any]:
        """The tables of a job without Ray that was left alone."""
        with without_ray():
            go_on(self.source, f"{self.folder}/light", unit_images=1)
        return tables_of(f"{self.folder}/light")

    @cached_property
    def heavy(self) -> dict[str, Any]:
        """The tables of the command's job."""
        scene = Scene(random.Random(0), self.folder, self.source, {}, self.port, f"{self.folder}/heavy")
        assert run_until_done(scene) == 0
        return tables_of(scene.output)

    def play(self, seed: int, kind: str) -> None:
        """One scenario in a folder of its own, that stays where it failed."""
        folder = self.folder / f"{seed}"
        folder.mkdir()
        expected = self.heavy if kind in HEAVY else self.light
        play(kind, Scene(random.Random(seed), folder, self.source, expected, self.port))
        shutil.rmtree(folder)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    with s3_server() as port:
        yield World(folder, port)


def kinds_of(count: int, without_ray: bool) -> list[str]:
    """So many scenarios: one in seven is a whole job on Ray."""
    light, heavy = list(LIGHT), list(HEAVY)
    is_heavy = [n % 7 == 6 and not without_ray for n in range(count)]
    return [heavy[n // 7 % len(heavy)] if is_heavy[n] else light[n % len(light)] for n in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-ray", action="store_true", help="Seconds each, instead of half a minute.")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    right: Counter[str] = Counter()
    wrong: dict[str, list[str]] = defaultdict(list)
    seconds: Counter[str] = Counter()
    kinds = kinds_of(asked.scenarios, asked.without_ray)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    with world(folder) as there:
        for number, kind in enumerate(kinds):
            if time.monotonic() > until:
                break
            began = time.monotonic()
            try:
                there.play(asked.seed + number, kind)
                right[kind] += 1
            except SkipError as error:
                print(f"{kind}: skipped, {error}", flush=True)
            except (Exception, subprocess.TimeoutExpired) as error:  # noqa: BLE001  told at the end
                wrong[kind].append(f"seed {asked.seed + number}: {type(error).__name__}: {error}")
                print(f"{kind}: {wrong[kind][-1]}", flush=True)
            seconds[kind] += time.monotonic() - began
    print(f"{'scenario':22} {'right':>6} {'wrong':>6} {'seconds each':>13}")
    for kind in dict.fromkeys(kinds):
        played = right[kind] + len(wrong[kind])
        print(f"{kind:22} {right[kind]:6} {len(wrong[kind]):6} {seconds[kind] / max(1, played):13.1f}")
    print(f"{'all':22} {right.total():6} {sum(map(len, wrong.values())):6} {'':13} of {asked.scenarios} asked for")
    if not wrong:
        shutil.rmtree(folder)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
