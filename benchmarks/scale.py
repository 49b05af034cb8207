"""What a job of 1,000,000 images costs before, beside and after its models: plan, resume, units, export.

    python benchmarks/scale.py [--quick] [--only plan resume units export] [--folder FOLDER]

plan     as `run` does until its plan is written: 1,000 tars of 1,000 files, and the same names as a folder (hard links
         of a few hundred bytes). The plan must hold every name once, in order.
resume   as `resume` does until it knows the units that are pending: job, commits and failures are read, and the shards
         of what is left are compared with the plan. 99 % of the units are committed; the others must be what is found.
units    seconds for each unit of `run`'s own loop and of the writer, in jobs of 20 and of 2,000 units (10,000 and
         1,000,000 images at 512 each), with parts of a few rows written in Ray's place, and `status` at the end.
export   10,000,000 annotations with masks to COCO's JSON. The whole document is read again, a line at a time: ids,
         areas and lengths of masks must be those of the tables. Beside it, in turn on a fiftieth of it and checked to
         be equal: orjson and json over the rows as Python objects, without the checks that each row passes here.
         Each process has exported a small job before, as numba's compiled code takes about a second to load.

Each measurement is a process of its own, whose peak memory is told. Files are in the page cache, as they have just been
written. It does not show what Ray adds to a unit (see overhead.py), the disk or bucket that a real source is on, nor
masks other than ellipses: a longer mask makes the same rows more megabytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import orjson
import pyarrow.compute as pc
from exports import images_of, objects_of
from measure import forget_peak, in_turn, peak_memory, print_table, ratios, seconds, spread
from review import MODEL, record_of, table_of
from scale_job import MASK, write_job

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.labeling import Labeling, Todo
from prelabel.pipeline.lock import Lock
from prelabel.pipeline.manifest import Manifest
from prelabel.pipeline.plan import plan_units
from prelabel.pipeline.sources.shards import check_planned
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.summary import summarize
from prelabel.pipeline.writer import commit_of, write_unit
from prelabel.schemas.job import Job
from prelabel.schemas.tables import ANNOTATIONS, IMAGES

BYTES = 300
"""Of each image file."""
IMAGES_OF_A_SHARD = 1_000
UNITS = 2_000


def alone(function: Callable[..., Any], *arguments: Any) -> tuple[float, float, Any]:
    """Seconds, peak memory in MB and result of a call in a new process; importing is not counted."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        answer: tuple[float, float, Any] = ours.recv()
    finally:
        process.join()
    return answer


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    forget_peak()
    began = time.perf_counter()
    result = function(*arguments)
    took = time.perf_counter() - began
    pipe.send((took, peak_memory() * 2**20 / 1e6, result))


# Sources


def write_tars(folder: Path, shards: int) -> None:
    """Tars of IMAGES_OF_A_SHARD files each; their headers differ in the name's first digits and the checksum."""
    folder.mkdir(parents=True)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in islice(names(), IMAGES_OF_A_SHARD):
            member = tarfile.TarInfo(name)
            member.size = BYTES
            tar.addfile(member, io.BytesIO(b"x" * BYTES))
    data = np.frombuffer(file.getvalue(), np.uint8).copy()
    headers = data[: IMAGES_OF_A_SHARD * 1024].reshape(-1, 1024)[:, :512]
    for shard in range(shards):
        headers[:, :4] = np.frombuffer(b"%04d" % shard, np.uint8)
        headers[:, 148:156] = ord(" ")
        sums = headers.sum(1, dtype=np.int64)
        headers[:, 148:156] = np.frombuffer(b"".join(b"%06o\0 " % one for one in sums.tolist()), np.uint8).reshape(
            -1, 8
        )
        data.tofile(folder / f"{shard:04d}.tar")


def write_folder(folder: Path, shards: int) -> None:
    """The same files in as many folders, as links to one each: 1,000,000 inodes are more than some disks have left."""
    for name in islice(names(), shards * IMAGES_OF_A_SHARD):
        first = folder / f"{name[:4]}.first"
        path = folder / name
        if name.endswith("/0000000.jpg"):
            path.parent.mkdir(parents=True)
            first.write_bytes(b"x" * BYTES)
        os.link(first, path)


def names() -> Iterator[str]:
    """Of all images, in the order of the plan."""
    return (f"{shard:04d}/{k:07d}.jpg" for shard in range(10_000) for k in range(IMAGES_OF_A_SHARD))


# plan


def plan(source: str, output: str) -> int:
    """Writes the plan and the job; returns the number of units."""
    job = Job.of(source, output=output, model=MODEL)
    manifest = Manifest(Storage(output))
    manifest.check_free()
    units, images = manifest.write_plan(plan_units(job.labels))
    manifest.write_job(record_of(job, images, units))
    return units


def planned_once(output: Path, images: int) -> None:
    found = (key for wave in Manifest(Storage(str(output))).waves(set()) for unit in wave for key in unit.keys)
    assert all(one == name for one, name in zip(found, islice(names(), images), strict=True))


def measure_plans(folder: Path, shards: int) -> None:
    """Prints; the jobs that were planned last stay."""
    images, memory = shards * IMAGES_OF_A_SHARD, dict.fromkeys(("tars", "folder"), 0.0)

    def once(kind: str) -> float:
        output = folder / f"job of {kind}"
        shutil.rmtree(output, ignore_errors=True)
        took, peak, _ = alone(plan, str(folder / kind), str(output))
        memory[kind] = max(memory[kind], peak)
        return took

    found = in_turn({kind: partial(once, kind) for kind in memory})
    rows = []
    for kind, times in found.items():
        planned_once(folder / f"job of {kind}", images)
        rows.append([kind, spread(times), f"{images / median(times):,.0f}", f"{memory[kind]:.0f}"])
    print_table(f"plan of {images:,} images", ["source", "seconds (60)", "images/s", "peak MB (1,000)"], rows)


# resume


def commit_most(output: Path) -> set[int]:
    """Commits 99 % of the units; returns the others."""
    manifest = Manifest(Storage(str(output)))
    units = manifest.read_job().units
    left = set(range(units - 1, -1, -100))
    tables = {"images": IMAGES.empty_table()}
    with ThreadPoolExecutor(8) as pool:
        done = [unit for unit in range(units) if unit not in left]
        list(pool.map(lambda unit: manifest.commit(unit, commit_of(unit, {}, tables, {"label": 1.5})), done))
    return left


def decide(output: str) -> set[int]:
    """What `resume` asks before it works, up to the list of pending units; twice, for it asks again under its lock."""
    for _ in range(2):
        manifest = Manifest(Storage(output))
        record = manifest.read_job()
        done = manifest.committed() | manifest.given_up() | manifest.amended()
    pending: set[int] = set()
    for wave in manifest.waves(done & set(range(record.units))):
        pending.update(unit.number for unit in wave)
        check_planned(wave)
    return pending


def measure_resume(folder: Path, shards: int) -> None:
    """Prints; the jobs of `measure_plans` are committed."""
    memory, left, jobs = dict.fromkeys(("tars", "folder"), 0.0), {}, {}
    for kind in memory:
        jobs[kind] = folder / f"job of {kind}"
        if not jobs[kind].exists():
            plan(str(folder / kind), str(jobs[kind]))
        left[kind] = commit_most(jobs[kind])

    def once(kind: str) -> float:
        took, peak, pending = alone(decide, str(jobs[kind]))
        assert pending == left[kind]
        memory[kind] = max(memory[kind], peak)
        return took

    found = in_turn({kind: partial(once, kind) for kind in memory})
    rows = [[kind, spread(found[kind]), f"{memory[kind]:.0f}", f"{len(left[kind])}"] for kind in memory]
    title = f"resume: which units are pending, of {shards * IMAGES_OF_A_SHARD:,} images"
    print_table(title, ["source", "seconds (10)", "peak MB", "units found"], rows)


# units


def measure_units(folder: Path, many: int) -> None:
    """Prints what a unit costs in a job of few, and of many."""
    few = max(2, many // 100)
    costs: Any = in_turn({"few": partial(cost_of_units, folder, few), "many": partial(cost_of_units, folder, many)})
    rows = []
    for what in ("driver", "writer", "status", "all"):
        each = {name: [one[what] for one in some] for name, some in costs.items()}
        grown = ratios(each["many"], each["few"])
        rows.append([what, *(spread([1e3 * one for one in each[name]]) for name in costs), spread(grown)])
    print_table("cost of a unit, ms", ["", f"of {few:,}", f"of {many:,}", "grows by (1.1)"], rows)


def cost_of_units(folder: Path, count: int) -> Any:
    """Seconds a unit: of the driver, of the writer, and of `status` when all are done."""
    output = folder / "job of units"
    shutil.rmtree(output, ignore_errors=True)
    return alone(label_nothing, str(folder), str(output), count)[2]


def label_nothing(folder: str, output: str, count: int) -> dict[str, float]:
    """The loop of `run` over units of four images, each written as soon as it is asked for."""
    from prelabel.pipeline import graph  # which imports ray, and the other measurements need none

    listed = Path(f"{output}.txt")
    listed.write_text("".join(f"{folder}/{k}.jpg\n" for k in range(4 * count)))
    manifest = Manifest(Storage(output))
    job = Job.of(str(listed), output=output, model=MODEL, unit_images=4)
    units, images = manifest.write_plan(plan_units(job.labels))
    manifest.write_job(record := record_of(job, images, units))
    writing = 0.0

    def label_wave(work: Any, portions: Any, amended: Any, pool: Any, limits: Any, progress: Any) -> Any:
        nonlocal writing
        began = time.perf_counter()
        for portion in portions:
            ids = np.array(portion.image_ids)
            rows = objects_of(ids, 1, MASK, 0)
            tables = {"images": images_of(portion.unit, ids), "annotations": table_of(rows, ANNOTATIONS)}
            write_unit(manifest, portion.unit.number, tables, {}, {"label": 0.1})
        writing += time.perf_counter() - began
        return graph.Fates(committed=frozenset(range(len(portions)))), []

    with patch.object(graph, "label_wave", label_wave), Lock(manifest.storage) as lock:
        began = time.perf_counter()
        pool: Any = SimpleNamespace(most=2, groups=[()])
        Labeling(manifest, record, None, pool, lock, id).label(Todo(frozenset(range(units)), images=images))
        driving = time.perf_counter() - began - writing
    began = time.perf_counter()
    assert summarize(manifest, record).committed == count
    spent = {"driver": driving, "writer": writing, "status": time.perf_counter() - began}
    return {name: seconds / count for name, seconds in (spent | {"all": sum(spent.values())}).items()}


# export


def export(labels: str, to: str) -> None:
    """The product's."""
    exporter_of("coco").write(LabelDataset(labels), to)


def export_rows(dumps: Callable[[Any], bytes | str], labels: str, to: str) -> None:
    """The same document from rows as Python objects, by a JSON library alone."""
    dataset = LabelDataset(labels)
    with open(to, "wb") as out:
        out.write(b'{"annotations":[')
        for place, batch in enumerate(dataset.batches("annotations")):
            text = dumps(list(map(_annotation, batch.to_pylist())))
            out.write((b"," if place else b"") + (text if isinstance(text, bytes) else text.encode())[1:-1])
        out.write(b"]}")


def _annotation(row: dict[str, Any]) -> dict[str, Any]:
    annotation = {name: row[name] for name in ("image_id", "category_id", "segmentation", "area", "score")}
    box = [row["bbox"][side] for side in ("x", "y", "width", "height")]
    return annotation | {"id": row["annotation_id"], "bbox": box, "iscrowd": int(row["iscrowd"])}


def annotations_in(document: Path) -> Iterator[dict[str, Any]]:
    """Of an export, which has a part's in a line."""
    with document.open("rb") as file:
        for line in file:
            if line.startswith(b'{"id":') and b'"segmentation"' in line[:500]:
                yield from orjson.loads(b"[" + line.rstrip(b"\n]},") + b"}]")


def check_document(document: Path, labels: Path) -> int:
    """The number of annotations, which are those of the tables."""
    written, count = annotations_in(document), 0
    for batch in LabelDataset(str(labels)).batches("annotations", ["annotation_id", "area", "segmentation"]):
        found = list(islice(written, len(batch)))
        assert [one["id"] for one in found] == batch["annotation_id"].to_pylist()
        assert [one["area"] for one in found] == batch["area"].to_pylist()
        lengths = pc.binary_length(pc.struct_field(batch["segmentation"], "counts"))
        assert [len(one["segmentation"]["counts"]) for one in found] == lengths.to_pylist()
        count += len(found)
    assert next(written, None) is None
    return count


def check_equal(one_document: Path, other_document: Path) -> None:
    """That the product's holds what json wrote, floats as float32."""
    for one, other in zip(
        annotations_in(one_document), orjson.loads(other_document.read_bytes())["annotations"], strict=True
    ):
        floats = {name: np.float32(other[name]) for name in ("bbox", "score")}
        assert all((np.float32(one[name]) == value).all() for name, value in floats.items())
        assert one | {"bbox": 0, "score": 0} == other | {"bbox": 0, "score": 0}


def warm(way: Callable[[str, str], object], few: str, labels: str, to: str) -> float:
    """Seconds of the second export of a process."""
    way(few, f"{to}.few")
    return seconds(lambda: way(labels, to))


def measure_export(folder: Path, units: int) -> None:
    """Prints: the whole once, then ways in turn on a fiftieth of it."""
    ways: dict[str, Callable[[str, str], object]] = {"prelabel": export}
    ways |= {one.__name__: partial(export_rows, one.dumps) for one in (orjson, json)}
    jobs = {name: str(folder / name / "labels") for name in ("few", "some", "all")}
    for name, number in (("few", 1), ("some", max(1, units // 50)), ("all", units)):
        write_job(folder / name, number)
    memory = dict.fromkeys(ways, 0.0)

    def once(name: str, job: str = "some") -> float:
        for written in folder.glob(f"{job}-{name}.json*"):
            written.unlink()
        to = folder / f"{job}-{name}.json"
        _, memory[name], took = alone(warm, ways[name], jobs["few"], jobs[job], str(to))
        return to.stat().st_size / float(took) / 1e6

    speeds = in_turn({name: partial(once, name) for name in ways})
    check_equal(folder / "some-prelabel.json", folder / "some-json.json")
    rows = [
        [f"1/50, {name}", spread(some), spread(ratios(some, speeds["json"])), f"{memory[name]:.0f}"]
        for name, some in speeds.items()
    ]
    whole, document = once("prelabel", "all"), folder / "all-prelabel.json"
    rows.append(["all, prelabel", f"{whole:.3g}", "", f"{memory['prelabel']:.0f}"])
    count, size = check_document(document, Path(jobs["all"])), document.stat().st_size / 1e6
    title = f"COCO's JSON of {count:,} annotations with masks: {size:,.0f} MB in {size / whole:.1f} s"
    print_table(title, ["", "MB/s (100)", "times json", "peak MB (500)"], rows)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--only", nargs="+", choices=("plan", "resume", "units", "export"), help="leave out the rest")
    parser.add_argument("--folder", help="where to put it all, about 8 GB: a temporary folder of the system's")
    given = parser.parse_args()
    scale, wanted = 100 if given.quick else 1, given.only or ("plan", "resume", "units", "export")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, shards = Path(name), 1_000 // scale
        if {"plan", "resume"} & set(wanted):
            write_tars(folder / "tars", shards)
            write_folder(folder / "folder", shards)
        measures = {"plan": measure_plans, "resume": measure_resume, "units": measure_units, "export": measure_export}
        for what in wanted:
            measures[what](folder, shards if what in ("plan", "resume") else UNITS // scale)


if __name__ == "__main__":
    main()
