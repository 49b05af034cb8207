"""Images of a committed unit that are worked again: their rows take the place of those that said `failed`.

A part's name never changes, so it can't be replaced before what replaces it is whole. New parts are written to
`_manifest/amended` first, then the unit's new commit beside them: from that moment on they count, and readers take them
from there. Then they are copied to their places, the new commit to its own, and what lies in `_manifest/amended` goes,
the commit first. A crash leaves the old rows or the new ones: whoever goes on with the job finds the commit that waits,
and copies again.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prelabel.pipeline.manifest import AMENDED, Manifest, checksum, to_json, unit_name, unit_number, waiting
from prelabel.pipeline.portions import Portion
from prelabel.pipeline.sources.base import Unit
from prelabel.pipeline.storage import Storage, reaching
from prelabel.pipeline.writer import commit_of, write_parts
from prelabel.schemas.errors import JobError
from prelabel.schemas.tables import TABLES


def failed_images(manifest: Manifest, unit: Unit) -> Portion:
    """The images of a committed unit that have failed; files of a folder may have been mended, so they have any size.

    Raises:
        JobError: its part is missing or damaged.
    """
    (commit,) = manifest.commits([unit.number])
    images = _read(manifest, commit["parts"]["images"])
    failed = images.filter(pc.is_valid(images["error_code"]))["image_id"]
    if unit.shard.kind == "folder" and unit.shard.size is None:
        unit = replace(unit, sizes=np.full(len(unit), -1))
    return Portion(unit, tuple(failed.to_pylist()))


def amend_unit(
    manifest: Manifest, unit: int, tables: dict[str, pa.Table], metadata: dict[str, str], timings: dict[str, float]
) -> dict[str, Any]:
    """Puts the rows of some images into the parts of their unit, and its new commit in place of the old, as above.

    Arguments and result are those of `write_unit`; the rows of the other images stay as they are.

    Raises:
        JobError: a part of the unit is missing or damaged.
    """
    began = perf_counter()
    if unit in manifest.amended():  # by a task that died over it
        put_in_place(manifest, unit)
    (old,) = manifest.commits([unit])
    again = tables["images"]["image_id"].combine_chunks()
    merged = {name: _merged(_read(manifest, old["parts"][name]), rows, again, name) for name, rows in tables.items()}
    parts = write_parts(manifest.storage, unit, merged, metadata, waiting)
    spent = Counter(old["timings"]) + Counter(timings | {"write": perf_counter() - began})
    commit = commit_of(unit, parts, merged, {name: round(took, 3) for name, took in spent.items()})
    manifest.storage.put(f"{AMENDED}/{unit_name(unit)}", to_json(commit))
    put_in_place(manifest, unit)
    return commit


def put_in_place(manifest: Manifest, unit: int) -> None:
    """Copies the new parts of a unit, and its commit, to where they belong; once more if that was cut short.

    Another runner, taken over or taking over, may have removed what waits. If it is not in its place either, the old
    rows stay.
    """
    storage, commit = manifest.storage, manifest.amendment(unit)
    parts = list(commit["parts"].values())
    new = [_new(storage, part) for part in parts]
    if None not in new:
        for part, data in zip(parts, new, strict=True):
            storage.put(part["path"], data or b"")
        manifest.commit(unit, commit)
    storage.delete(f"{AMENDED}/{unit_name(unit)}")
    for part in parts:
        storage.delete(waiting(part["path"]))


def _new(storage: Storage, part: dict[str, Any]) -> bytes | None:
    """A new part: from where it waits, or from its place."""
    for path in (waiting(part["path"]), part["path"]):
        with suppress(FileNotFoundError):
            if checksum(data := storage.read(path)) == part["sha256"]:
                return data
    return None


def finish_amending(manifest: Manifest) -> None:
    """Puts in place what waits, and removes what was never to count."""
    with reaching(f"write to {manifest.storage.url}"):
        names = manifest.storage.names(AMENDED)
        for name in names:
            if (unit := unit_number(name)) is not None:
                put_in_place(manifest, unit)
        for name in names:
            manifest.storage.delete(f"{AMENDED}/{name}")


def _read(manifest: Manifest, part: dict[str, Any]) -> pa.Table:
    path, url = manifest.storage.path(part["path"]), manifest.storage.url
    try:
        data = manifest.storage.read(part["path"])
    except FileNotFoundError:
        data = b""
    if checksum(data) != part["sha256"]:
        raise JobError(f"{path} is missing or damaged: `prelabel validate {url} --fix`, then resume")
    return pq.read_table(pa.BufferReader(data))


def _merged(old: pa.Table, new: pa.Table, again: pa.Array, name: str) -> pa.Table:
    """The old rows but for those of the images that were worked again, and the new ones, in the images' order."""
    kept = old.filter(pc.invert(pc.is_in(old["image_id"], value_set=again)))
    schema = TABLES[name]
    rows = pa.concat_tables([kept.cast(schema), new.cast(schema)]).unify_dictionaries()
    return rows.take(pc.sort_indices(rows["image_id"]))  # which is stable: an image's rows stay in their order
