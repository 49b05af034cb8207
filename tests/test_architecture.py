"""The house: who may import whom, and what loads when. Read with the table in CONTRIBUTING.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prelabel.operators.models import FAMILIES
from prelabel.operators.registry import OPERATORS
from prelabel.pipeline.exports import EXPORTS
from prelabel.pipeline.imports import IMPORTS
from prelabel.pipeline.sources import SOURCES

ROOT = Path(__file__).parents[1]
FLOORS = ("schemas", "operators", "pipeline")
MODULES = {
    ".".join(("prelabel", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for floor in FLOORS
    for path in sorted((ROOT / floor).rglob("*.py"))
}
NEVER = {
    "prelabel.schemas": ("torch", "torchvision", "ray", "fsspec", "prelabel.operators", "prelabel.pipeline"),
    "prelabel.operators": ("ray", "fsspec", "pydantic", "prelabel.pipeline", "prelabel.schemas.job"),
    "prelabel.pipeline.sources": ("ray", "torch", "prelabel.pipeline.exports"),
    "prelabel.pipeline.exports": ("ray", "torch", "prelabel.pipeline.sources"),
    "prelabel.pipeline.manifest": ("ray", "torch"),
    "prelabel.pipeline.plan": ("ray", "torch"),
    "prelabel.pipeline.storage": ("ray", "torch"),
    "prelabel.pipeline.dataset": ("ray", "torch"),
}
ONLY_IN = {"ray": ("prelabel.pipeline.graph",), "click": ("prelabel.pipeline.cli", "prelabel.pipeline.options")}
REGISTRIES = (FAMILIES, OPERATORS, SOURCES, EXPORTS, IMPORTS)
PLUGINS = [{target.partition(":")[0] for target in registry.values()} for registry in REGISTRIES]


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name or "") of every import in a file, at whatever depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    for imported, name in imports_of(MODULES[module]):
        full = f"{imported}.{name}" if f"{imported}.{name}" in MODULES else imported
        for package, banned in NEVER.items():
            if is_within(module, package):
                assert not any(is_within(full, one) for one in banned), f"{module} imports {full}"
        for owned, owners in ONLY_IN.items():
            may = any(is_within(module, owner) for owner in owners)
            assert may or not is_within(full, owned), f"{module} imports {full}, which only {owners} may"
        for plugins in PLUGINS:
            siblings = plugins - {module} if module in plugins else set()
            assert full not in siblings, f"{module} imports its sibling {full}"


@pytest.mark.parametrize("module", MODULES)
def test_nobody_reaches_into_underscore_names(module: str) -> None:
    names = [(imported, name) for imported, name in imports_of(MODULES[module]) if imported.startswith("prelabel")]
    assert not [pair for pair in names if pair[1].startswith("_")]


@pytest.mark.parametrize("module", [module for module in MODULES if is_within(module, "prelabel.schemas")])
def test_pydantic_is_for_the_job_alone(module: str) -> None:
    uses = any(is_within(imported, "pydantic") for imported, _ in imports_of(MODULES[module]))
    assert uses == (module == "prelabel.schemas.job")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_command_line_starts_without_heavy_packages() -> None:
    loaded = run_python("import sys, prelabel.pipeline.cli; print(*sys.modules)").split()
    assert "click" in loaded
    assert not {"ray", "torch", "duckdb", "numba", "pandas", "pyarrow"} & set(loaded)


def test_status_and_export_load_neither_ray_nor_torch() -> None:
    status = "import sys, prelabel.pipeline.runner, prelabel.pipeline.terminal"
    assert not {"ray", "torch", "numba"} & set(run_python(f"{status}; print(*sys.modules)").split())
    export = "import sys, prelabel.pipeline.exports.coco, prelabel.pipeline.gate"
    assert not {"ray", "torch"} & set(run_python(f"{export}; print(*sys.modules)").split())


def test_operators_and_schemas_run_where_there_is_no_ray() -> None:
    lower = [module for module in MODULES if not is_within(module, "prelabel.pipeline")]
    lower.remove("prelabel.schemas.job")
    code = "import sys\nfor name in ('ray', 'fsspec', 'pydantic', 'click'): sys.modules[name] = None\n"
    assert "done" in run_python(code + "".join(f"import {module}\n" for module in lower) + "print('done')")


def test_every_plugin_is_registered() -> None:
    shared = {
        "base",
        "options",
        "registry",
        "rows",
        "label",
        "images",
        "masks",
        "threads",
        "watchdog",
        "detector",
        "weights",
        "scenes_network",
    }
    shared |= {"classifier", "compiled", "devices", "label_maps", "label_names", "queries", "segmenter", "tiled"}
    shared |= {"batched", "counts", "outlines", "precision", "prepare", "roi_align", "suppression", "watchdog"}
    shared |= {"transformers_models", "torchvision_networks", "names", "shards", "fetch", "web"}
    shared |= {"batches", "bilinear", "json_document", "kernels", "regions", "resize", "turns", "write"}
    plugins = set().union(*PLUGINS)
    for package in ("operators", "operators.models", "pipeline.sources", "pipeline.exports", "pipeline.imports"):
        inside = {m for m in MODULES if m.rpartition(".")[0] == f"prelabel.{package}"} - {"prelabel.operators.models"}
        unknown = {m for m in inside if m.rpartition(".")[2] not in shared} - plugins
        assert not unknown, f"neither shared nor registered: {unknown}"
