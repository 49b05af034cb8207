"""The registry of model families, and what a job says of its model; torch is imported when a model is loaded."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from prelabel.operators.batches import PROCESSOR_PIXELS
from prelabel.operators.options import DEFAULTS, Options
from prelabel.schemas.categories import CategorySet
from prelabel.schemas.errors import ModelError

if TYPE_CHECKING:
    from prelabel.operators.base import Model

FAMILIES: dict[str, str] = {
    "torchvision": "prelabel.operators.models.torchvision:TorchvisionFamily",
    "transformers": "prelabel.operators.models.transformers:TransformersFamily",
    "scenes": "prelabel.operators.models.scenes:ScenesFamily",
    "regions": "prelabel.operators.models.regions:RegionsFamily",
    "rcnn": "prelabel.operators.models.rcnn:RCNNFamily",
    "fast_rcnn": "prelabel.operators.models.fast_rcnn:FastRCNNFamily",
    "python": "prelabel.operators.models.python:PythonFamily",
}
"""Family -> "module:Class", imported on use; in the order in which they are suggested."""

EXTRAS: dict[str, str] = {"cv2": "selective-search", "transformers": "transformers"}
"""Package that a family imports and that may be missing -> the extra of `pip install` that brings it."""


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to load a model, the same in each process.

    Attributes:
        name: `family:rest`
        weights: a name that the family knows, or a local file; None: the family's default
        categories: what can be found; None: what the weights say
        score_threshold: the network's own threshold is set to just this; None: 0.05, or its own where that is higher
        device: "auto" (a GPU where there is one), "cpu" or "cuda"
        path: the folder from which `python:` imports; None: the current one
        options: of the job
        weights_sha256: what the weights' file must hash to, hexadecimal; None: anything
    """

    name: str
    weights: str | None = None
    categories: CategorySet | None = None
    score_threshold: float | None = None
    device: str = "auto"
    path: str | None = None
    options: Options = DEFAULTS
    weights_sha256: str | None = None

    @property
    def rest(self) -> str:
        """The name without its family."""
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class Offer:
    """A model that can be named.

    Attributes:
        name: what follows `family:`
        tasks: what it can do, as on the command line
        categories: what it finds, in a few words: "COCO", "ImageNet", "of the weights"
        extra: of `pip install`, where it needs one
    """

    name: str
    tasks: tuple[str, ...]
    categories: str
    extra: str = ""


class Family(ABC):
    """A kind of models, loaded in one way. A package that may be missing is imported in `load`, and is in EXTRAS."""

    wraps = False
    """Whether `load` leaves the weights to `load_model` of another name."""

    @abstractmethod
    def offers(self) -> list[Offer]:
        """What there is, for people; finding out is cheap, and needs no extra."""

    @abstractmethod
    def load(self, spec: ModelSpec) -> Model:
        """The model, on its device. Raises ModelError."""

    def weights_path(self, spec: ModelSpec) -> str | None:
        """The file that `load` will read its weights from; None where there is not just one."""
        return spec.weights

    def names(self) -> list[str]:
        """What can follow `family:`."""
        return [offer.name for offer in self.offers()]


def load_model(spec: ModelSpec) -> Model:
    """The model, on its device; with the options' `tile`, one that looks at large images through windows.

    Raises:
        ModelError: the name is unknown, a package is missing, or the weights or categories don't fit.
    """
    family = _family(spec.name)
    if spec.weights_sha256 is not None and not family.wraps:
        _check_sha256(spec, family.weights_path(spec))
    try:
        model = family.load(spec)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise ModelError(f"{spec.name} needs {error.name}: pip install 'prelabel[{EXTRAS[error.name]}]'") from None
    from prelabel.operators.devices import torch_device

    if spec.options.precision == "bf16":
        from prelabel.operators.precision import BFloat16Model

        model = BFloat16Model(model, torch_device(spec.device))
    if spec.options.tile is None or model.takes_regions:
        return model
    from prelabel.operators.tiled import TiledModel

    batch_pixels = PROCESSOR_PIXELS if torch_device(spec.device).type == "cpu" else math.inf
    return TiledModel(model, spec.options.tile, spec.options.tile_overlap, batch_pixels)


def available() -> dict[str, list[Offer]]:
    """What each family offers."""
    return {family: _family(f"{family}:").offers() for family in FAMILIES}


def who_can(task: str) -> list[str]:
    """The names of the models that can do a task."""
    return [
        f"{family}:{offer.name}" for family, offers in available().items() for offer in offers if task in offer.tasks
    ]


def unknown_model(name: str) -> ModelError:
    """The error for a name that no family has, with the nearest names."""
    full_names = [f"{family}:{offer.name}" for family, offers in available().items() for offer in offers]
    known = {full if ":" in name else full.partition(":")[2]: full for full in reversed(full_names)}
    near = [known[match] for match in difflib.get_close_matches(name, known, n=2)]
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return ModelError(f"there is no model {name!r}: {guess}`prelabel models` lists all")


def _check_sha256(spec: ModelSpec, path: str | None) -> None:
    """Raises ModelError if the weights are not those that were meant; nothing in them has been looked at then."""
    from prelabel.operators.weights import file_digest

    if path is None:
        raise ModelError(f"{spec.name}: --weights-sha256 is of a file, and there is not just one: give it as --weights")
    found = file_digest(path)
    if found != str(spec.weights_sha256).lower():
        raise ModelError(
            f"weights {path} have the SHA-256 {found}, and not {spec.weights_sha256} as --weights-sha256 says: they "
            "are other weights, or were tampered with"
        )


def _family(name: str) -> Family:
    family, colon, _ = name.partition(":")
    if not colon or family not in FAMILIES:
        raise unknown_model(name)
    module, _, attribute = FAMILIES[family].partition(":")
    loaded: Family = getattr(import_module(module), attribute)()
    return loaded
