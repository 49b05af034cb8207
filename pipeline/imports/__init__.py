"""Formats that corrected labels come back in: the registry, and what an import is."""

from __future__ import annotations

from importlib import import_module

from prelabel.pipeline.imports.base import Importer
from prelabel.schemas.errors import UserError

IMPORTS: dict[str, str] = {
    "coco": "prelabel.pipeline.imports.coco:CocoImporter",
    "label-studio": "prelabel.pipeline.imports.label_studio:LabelStudioImporter",
}
"""Format name -> "module:Class", imported on use."""


def importer_of(name: str) -> type[Importer]:
    """The class that reads documents of that format.

    Raises:
        UserError: there is none.
    """
    if name not in IMPORTS:
        raise UserError(f"there is no import format {name!r}: choose from {', '.join(sorted(IMPORTS))}")
    module, _, attribute = IMPORTS[name].partition(":")
    importer: type[Importer] = getattr(import_module(module), attribute)
    return importer
