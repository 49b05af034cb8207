"""Prints what `datasets` or `webdataset` finds in an export, as JSON: run by the interpreter that has them.

    python read_with_datasets.py datasets FOLDER CACHE
    python read_with_datasets.py webdataset FOLDER

Pixels are told by their SHA-256, of RGB from the top left.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def pixels_of(image: Any) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def with_datasets(folder: str, cache: str) -> list[dict[str, Any]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    found = datasets.load_dataset(folder, cache_dir=cache, split="train")
    names = found.features["objects"]["category"].feature
    rows = []
    for row in found:
        row["objects"]["category"] = [names.int2str(one) for one in row["objects"]["category"]]
        rows.append(row | {"image": row["image"] and pixels_of(row["image"])})
    return rows


def with_webdataset(folder: str) -> list[dict[str, Any]]:
    import webdataset

    shards = sorted(map(str, Path(folder).glob("*.tar")))
    found = webdataset.WebDataset(shards, shardshuffle=False)
    whole = [one["json"] | {"image": pixels_of(one["png"])} for one in found.decode("pil")]
    raw = [hashlib.sha256(data).hexdigest() for data, _ in found.to_tuple("png", "json")]
    return [row | {"bytes": digest} for row, digest in zip(whole, raw, strict=True)]


if __name__ == "__main__":
    read = {"datasets": with_datasets, "webdataset": with_webdataset}[sys.argv[1]]
    print(json.dumps(read(*sys.argv[2:])))
