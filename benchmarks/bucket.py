"""What it costs a job in a bucket when 5 % of the requests fail, against the same job when none does.

    python benchmarks/bucket.py [UNITS] [SECONDS]

S3 is moto's server on loopback; a proxy before it answers 503, resets connections, or loses replies of what was done.
Workers are made up: they take so many SECONDS for each of the UNITS (read, label, write), one after the other, which is
harder than a real job, whose workers go on while one waits for storage. Runs alternate, five of each.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS / "faults"), str(TESTS / "pipeline")]

import s3fs  # noqa: E402
from buckets import Proxy, environment, now_and_then, proxy, s3_server  # noqa: E402
from jobs import files_of, write_images  # noqa: E402
from made_up import go_on, without_ray  # noqa: E402
from simulated import told  # noqa: E402

REPEATS = 5
FAULTS = ("503", "reset", "lost")


def run(server: Proxy, source: str, bucket: str) -> tuple[float, dict[str, Any]]:
    """Seconds from the start until nothing is left to do, and the tables."""
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(bucket)
    began = time.perf_counter()
    while not go_on(source, f"{bucket}/labels", unit_images=1).is_complete:
        pass
    seconds = time.perf_counter() - began
    server.choose = lambda method, path: ""
    return seconds, {name: data for name, data in told(files_of(bucket)).items() if "/_manifest/" not in name}


def main(units: int = 60, seconds: float = 1.0) -> None:
    logging.getLogger("prelabel").setLevel(logging.ERROR)
    took: dict[float, list[float]] = {0.0: [], 0.05: []}
    with tempfile.TemporaryDirectory() as folder, s3_server() as port, proxy(port) as server, without_ray(seconds):
        os.environ |= environment(server.url)
        source, expected = write_images(f"{folder}/images", units), None
        for repeat in range(REPEATS):
            for share in took:
                server.choose = now_and_then(repeat, share, FAULTS)
                passed, tables = run(server, source, f"s3://labels-{repeat}-{int(100 * share)}")
                assert expected in (None, tables), "the two jobs differ"
                expected = tables
                took[share].append(passed)
    for share, times in took.items():
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(f"{share:4.0%} of requests fail: {statistics.median(times):6.1f} s ({spread}) for {units} units")
    ratios = [slow / fast for fast, slow in zip(took[0.0], took[0.05], strict=True)]
    print(f"that is {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(*(kind(argument) for kind, argument in zip((int, float), sys.argv[1:], strict=False)))
