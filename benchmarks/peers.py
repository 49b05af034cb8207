"""How fast jobs are against scripts on Ray Data that keep stock torchvision and pycocotools.

    PYTHONPATH=benchmarks python benchmarks/peers.py [--quick] [CASE...]

The scripts are in peers/: as_documented.py is what Ray's own example leads to, tuned.py is what an afternoon makes of
it. All read the same JPEGs in a folder and the same weights, find at most 20 objects an image with masks, and write
Parquet; the job is the `prelabel` command with this machine's defaults.

First what they found is compared: an object is the same where its category is, its box within 0.01 pixels, its score
within 1e-3, and its mask but for 1 % of the union. The rest are near ties: rounding that put a box, a score or a pixel
on the other side of a limit. It is an error where more than 2 % are not even within a pixel.

Images a second are of the steady state: from when each worker has finished a unit (of the scripts: a batch) until one
has nothing more to do. What the command takes besides is told apart, for it is the same for ten images and for a
million. The script as documented is measured once, for it takes long.

bf16 needs a processor with such instructions; where there are none, one run shows what becomes of it.

Weights are made up, see workload.py. Not shown: reading from a bucket, a GPU, and several machines.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.dataset as ds
import workload
from measure import REPEATS, in_turn, print_table, ratios, spread
from pycocotools import mask as coco_mask
from workload import POOL

from prelabel.operators.models import ModelSpec
from prelabel.operators.precision import has_bf16
from prelabel.pipeline.dataset import open_dataset

SCRIPTS = workload.HERE / "peers"
CPUS = os.cpu_count() or 1
UNITS = 8
MASK_IOU = 0.99


@dataclass(frozen=True)
class Case:
    """A network of workload.py on images of that (height, width), and how much faster the job shall be than tuned.

    `unit` is how many images a unit of the job, and a block of the tuned script, has.
    """

    name: str
    factory: str
    size: tuple[int, int]
    unit: int
    goal: float
    options: tuple[str, ...] = ()


CASES = (
    Case("mask_rcnn", "mask_rcnn", (480, 640), 2, 1.5),
    Case("mask_rcnn-bf16", "mask_rcnn", (480, 640), 2, 3.0, ("--precision", "bf16")),
    Case("light", "light_mask_rcnn", (1080, 1920), 8, 3.0),
)
HAS_BF16 = has_bf16()


@dataclass(frozen=True)
class Found:
    """The objects of an image: float (N, 4) corners, (N,) scores and categories, and N masks of pycocotools."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, object]]


def of_job(output: Path) -> dict[str, Found]:
    """By file name."""
    data = open_dataset(str(output))
    keys = {row["image_id"]: row["key"] for row in data.table("images").to_table(["image_id", "key"]).to_pylist()}
    rows: dict[str, list[dict]] = {key: [] for key in keys.values()}
    for row in data.table("annotations").to_table().to_pylist():
        rows[keys[row["image_id"]]].append(row)
    return {key: _of_rows(some) for key, some in rows.items()}


def _of_rows(rows: Sequence[dict]) -> Found:
    boxes = np.array([list(row["bbox"].values()) for row in rows]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores, labels = ([row[name] for row in rows] for name in ("score", "category_id"))
    return Found(boxes, np.array(scores), np.array(labels), [row["segmentation"] for row in rows])


def of_script(output: Path, size: tuple[int, int]) -> dict[str, Found]:
    """By file name."""
    rows = ds.dataset(output).to_table().to_pylist()
    return {
        Path(row["path"]).name: Found(
            np.array(row["boxes"]).reshape(-1, 4),
            np.array(row["scores"]),
            np.array(row["labels"]),
            [{"size": list(size), "counts": counts} for counts in row["masks"]],
        )
        for row in rows
    }


def compared(ours: Mapping[str, Found], theirs: Mapping[str, Found]) -> Counter[str]:
    """How many objects there are, are near (within a pixel), and are the same."""
    assert ours.keys() == theirs.keys(), "other images"
    told: Counter[str] = Counter()
    for key, mine in ours.items():
        found = theirs[key]
        told["all"] += max(len(mine.labels), len(found.labels))
        apart = np.abs(mine.boxes[:, None] - found.boxes[None]).max(2)
        apart += 1e6 * (mine.labels[:, None] != found.labels[None])
        for one, other in enumerate(apart.argmin(1) if apart.size else ()):
            told["near"] += int(apart[one, other] <= 1)
            is_close = apart[one, other] <= 0.01 and abs(mine.scores[one] - found.scores[other]) <= 1e-3
            told["same"] += int(is_close and _are_alike(mine.masks[one], found.masks[other]))
    return told


def _are_alike(one: dict[str, object], other: dict[str, object]) -> bool:
    return one["counts"] == other["counts"] or coco_mask.iou([one], [other], [0])[0, 0] >= MASK_IOU


class Ways:
    """The job and the scripts over the same pictures, each run into a new folder."""

    def __init__(self, case: Case, folder: Path, unit: int) -> None:
        self.case, self.folder, self.unit = case, folder, unit
        self.pictures = workload.write_pictures(folder / "pictures", UNITS * unit, case.size)
        self.spec: ModelSpec = workload.spec_of(case.factory, f"python:workload:{case.factory}", folder)
        self.ran: dict[str, list[workload.Ran]] = {"job": [], "tuned": [], "as documented": []}

    def output(self, way: str) -> Path:
        return self.folder / f"{way} {len(self.ran[way])}"

    def job(self) -> float:
        options = ("--unit-images", str(self.unit), "--task", "segment_instances", *self.case.options)
        return self._keep("job", workload.run_job(self.pictures, self.output("job"), self.spec, POOL.most, *options))

    def tuned(self) -> float:
        return self._script("tuned", CPUS, str(self.unit))

    def as_documented(self) -> float:
        return self._script("as documented", 1)

    def _script(self, way: str, workers: int, *more: str) -> float:
        output = self.output(way)
        script = SCRIPTS / f"{way.replace(' ', '_')}.py"
        given = self.pictures, output, self.spec.weights, self.case.factory, self.spec.score_threshold
        seconds = workload.run_command(sys.executable, script, *map(str, given), *more)
        ends = Counter(ds.dataset(output).to_table(["finished"])["finished"].to_pylist())
        return self._keep(way, workload.ran(ends.items(), workers, seconds))

    def _keep(self, way: str, ran: workload.Ran) -> float:
        self.ran[way].append(ran)
        return ran.rate


def measured(case: Case, folder: Path, unit: int, repeats: int) -> list[str]:
    """A row of the table."""
    ways = Ways(case, folder, unit)
    outputs = [ways.output(way) for way in ways.ran]
    ways.job(), ways.tuned(), ways.as_documented()  # compiled, and in the page cache
    mine, tuned, documented = of_job(outputs[0]), *(of_script(one, case.size) for one in outputs[1:])
    told = compared(mine, tuned)
    if not case.options:
        for some in (told, compared(mine, documented)):
            assert some["near"] >= 0.98 * some["all"], f"{case.name}: not the same work: {dict(some)}"
    found = in_turn({"job": ways.job, "tuned": ways.tuned}, repeats)
    share = ratios(found["job"], found["tuned"])
    once = ways.ran["as documented"][0].rate
    slow = "" if HAS_BF16 or not case.options else ", without bf16 instructions"
    return [
        f"{case.name}, {case.size[0]} x {case.size[1]}{slow}",
        spread(found["job"]),
        spread(found["tuned"]),
        spread(share, ".2f"),
        f"{case.goal}" + ("" if median(share) >= case.goal else " missed"),
        f"{once:.3g}, {median(found['job']) / once:.2f}",
        " / ".join(f"{median(one.rest for one in some):.0f}" for some in ways.ran.values()) + " s",
        f"{told['same']} of {told['all']} (near: {told['near']})",
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=", ".join(case.name for case in CASES))
    parser.add_argument("--quick", action="store_true", help="a try of a minute or two: the light model, one repeat")
    given = parser.parse_args()
    wanted = given.cases or (["light"] if given.quick else [case.name for case in CASES])
    rows = []
    for case in CASES:
        if case.name in wanted:
            with tempfile.TemporaryDirectory() as folder:
                is_slow = given.quick or bool(case.options and not HAS_BF16)
                unit = max(1, case.unit // 4) if is_slow else case.unit
                rows.append(measured(case, Path(folder), unit, 1 if is_slow else REPEATS))
    columns = ["network", "job, images/s", "tuned", "job / tuned", "goal", "as documented, job / that"]
    print_table("Jobs against scripts on Ray Data", [*columns, "start and end", "same objects"], rows)


if __name__ == "__main__":
    main()
