"""Exports for Label Studio, what it might export of them, and imports of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labels import Row

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.imports import importer_of
from prelabel.pipeline.imports.write import write_import


def export(labels: Any, folder: Path, images: str = "none") -> list[Row]:
    """The tasks."""
    exporter_of("label-studio").write(labels, f"{folder}/tasks", images)
    return [task for path in sorted(folder.glob("tasks/tasks-*.json")) for task in json.loads(path.read_bytes())]


def annotated(tasks: list[Row], edit: Callable[[list[Row], Row], Any] = lambda result, task: None) -> list[Row]:
    """As the tool exports tasks whose predictions were accepted, after an edit of each one's result."""
    for number, task in enumerate(tasks, 1):
        result = task.pop("predictions")[0]["result"]
        edit(result, task)
        task |= {"id": number, "predictions": [number], "annotations": [annotation(result)]}
    return tasks


def annotation(result: list[Row], day: int = 2, **more: Any) -> Row:
    return {"id": 9, "result": result, "was_cancelled": False, "updated_at": f"2026-01-0{day}T00:00:00Z"} | more


def imported(tasks: Any, folder: Path, of: LabelDataset | None = None) -> LabelDataset:
    document = folder / "export.json"
    document.write_text(tasks if isinstance(tasks, str) else json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    write_import(importer_of("label-studio")(str(document)), f"{folder}/imported", of)
    return LabelDataset(f"{folder}/imported")
