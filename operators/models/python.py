"""python: a factory of your own, `python:module:factory`, that returns a Model or a network.

A network has torchvision's detection interface, see `prelabel.operators.detector`. The module is looked for in the
current folder first, then where Python looks.

The digest covers the network's tensors (of a returned Model: its own digest, else its `network`'s tensors), and the
source file of the factory's module. It does not cover what that module imports or reads.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import sysconfig
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from prelabel.operators.base import Model
from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import Family, ModelSpec, Offer
from prelabel.operators.weights import load_weights, read_weights, state_digest
from prelabel.schemas.errors import ModelError, one_line

_INSTALLED = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))


class PythonFamily(Family):
    """`python:module:factory`; the weights, if any, are a file that is loaded into the factory's network."""

    def offers(self) -> list[Offer]:
        """How such a name is made."""
        return [Offer("MODULE:FACTORY", (), "yours")]

    def load(self, spec: ModelSpec) -> Model:
        """What the factory returns, as a model."""
        module = _module(spec)
        made = _make(spec, module)
        if isinstance(made, Model):
            return _as_it_is(spec, made, module)
        if not isinstance(made, nn.Module):
            raise ModelError(f"{spec.name} returned {_kind(made)}: return a torch.nn.Module or a prelabel Model")
        if spec.weights is not None:
            load_weights(made, read_weights(spec.weights), spec.weights)
        return DetectorModel(
            made,
            name=spec.name,
            categories=spec.categories,
            score_threshold=spec.score_threshold,
            device=spec.device,
            digest=_with_source(state_digest(made.state_dict()), module),
        )


def _module(spec: ModelSpec) -> ModuleType:
    name, _, attribute = spec.rest.partition(":")
    if not name or not attribute:
        raise ModelError(f"model {spec.name!r}: write python:MODULE:FACTORY")
    folder = spec.path or os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _quoted(f"{spec.name}: importing {name} failed", error) from error
        raise ModelError(f"{spec.name}: there is no module {error.name!r} in {folder} or installed") from None
    except (Exception, SystemExit) as error:  # a script's argparse exits, which would end the worker without a word
        raise _quoted(f"{spec.name}: importing {name} failed", error) from error


def _make(spec: ModelSpec, module: ModuleType) -> object:
    attribute = spec.rest.partition(":")[2]
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(f"{spec.name}: {module.__file__} has no function {attribute!r}: check --model")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _quoted(f"{spec.name} failed", error) from error


def _with_source(digest: str, module: ModuleType) -> str:
    """SHA-256 of a digest and the bytes of the module's file, if it has one, hexadecimal."""
    source = Path(module.__file__).read_bytes() if module.__file__ else b""
    return hashlib.sha256(digest.encode() + source).hexdigest()


def _quoted(what: str, error: BaseException) -> ModelError:
    """The user's own mistake in one line, with the innermost place in a file that is not an installed one."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    theirs = [frame for frame in frames if not frame.filename.startswith(("<", *_INSTALLED))]
    at = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return ModelError(f"{what}: {type(error).__name__}: {one_line(error):.300}{at}")


def _as_it_is(spec: ModelSpec, made: Model, module: ModuleType) -> Model:
    options: dict[str, Any] = {
        "--weights": spec.weights,
        "--categories": spec.categories,
        "--score-threshold": spec.score_threshold,
    }
    for option, value in options.items():
        if value is not None:
            raise ModelError(f"{spec.name} returned {_kind(made)}, which sets this itself: leave {option} out")
    model = copy.copy(made)  # a factory may return the same one again, whose digest must not be hashed twice
    network = getattr(made, "network", None)
    digest = state_digest(network.state_dict()) if isinstance(network, nn.Module) else ""
    model.name, model.digest = spec.name, _with_source(made.digest or digest, module)
    return model


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
