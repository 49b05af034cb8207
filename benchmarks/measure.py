"""What the benchmarks share: the machine in words, ways measured in turn, tables of medians with their spread."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

REPEATS = 5
PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "pycocotools")
WIDTH = 120


def machine(packages: Sequence[str] = PACKAGES) -> str:
    """Processor, cores, memory, Python and the packages that matter, in a line."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name} " in told.replace("\n", " ")]
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    processor = f"{names[0] if names else platform.machine()} x {os.cpu_count()} ({' '.join(wide)})"
    return f"{processor}, {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def seconds(function: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def forget_peak() -> None:
    """Peak memory counts from now on; a new process begins with the peak of who has started it. Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """MiB that this process had in memory at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def in_turn(ways: Mapping[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """What each way returns, A B A B …: a machine whose speed drifts is as slow for one as for the other."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, measure in ways.items():
            found[name].append(measure())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Pair by pair, of measurements made in turn."""
    return [one / other for one, other in zip(above, below, strict=True)]


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """The median, the least and the most."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output, under the machine that it was measured on; plain where there is no rich."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title, *("\t".join(row) for row in (columns, *rows)), machine(), sep="\n")
        return
    table = Table(*columns, title=title, caption=machine(), title_justify="left", caption_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=WIDTH).print(table)
