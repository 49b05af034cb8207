"""python: a factory of your own, `python:module:factory`, that returns a Model or a network.

A network has torchvision's detection interface, see `prelabel.operators.detector`. The module is looked for in the
current folder first, then where Python looks.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from prelabel.operators.base import Model
from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import Family, ModelSpec
from prelabel.operators.weights import load_weights, read_weights, state_digest
from prelabel.schemas.errors import ModelError

_INSTALLED = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))


class PythonFamily(Family):
    """`python:module:factory`; the weights, if any, are a file that is loaded into the factory's network."""

    def names(self) -> list[str]:
        """How such a name is made."""
        return ["MODULE:FACTORY"]

    def load(self, spec: ModelSpec) -> Model:
        """What the factory returns, as a model."""
        made = _call(spec, _factory(spec))
        if isinstance(made, Model):
            return _as_it_is(spec, made)
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
            digest=state_digest(made.state_dict()),
        )


def _factory(spec: ModelSpec) -> Callable[[], object]:
    module_name, _, attribute = spec.rest.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"model {spec.name!r}: write python:MODULE:FACTORY")
    folder = spec.path or os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _quoted(f"{spec.name}: importing {module_name} failed", error) from error
        raise ModelError(f"{spec.name}: there is no module {error.name!r} in {folder} or installed") from None
    except Exception as error:
        raise _quoted(f"{spec.name}: importing {module_name} failed", error) from error
    factory: Callable[[], object] | None = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(f"{spec.name}: {module.__file__} has no function {attribute!r}: check --model")
    return factory


def _call(spec: ModelSpec, factory: Callable[[], object]) -> object:
    try:
        return factory()
    except Exception as error:
        raise _quoted(f"{spec.name} failed", error) from error


def _quoted(what: str, error: Exception) -> ModelError:
    """The user's own mistake in one line, with the innermost place in a file that is not an installed one."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    theirs = [frame for frame in frames if not frame.filename.startswith(("<", *_INSTALLED))]
    at = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    text = " ".join(str(error).split())
    return ModelError(f"{what}: {type(error).__name__}: {text:.300}{at}")


def _as_it_is(spec: ModelSpec, model: Model) -> Model:
    options: dict[str, Any] = {
        "--weights": spec.weights,
        "--categories": spec.categories,
        "--score-threshold": spec.score_threshold,
    }
    for option, value in options.items():
        if value is not None:
            raise ModelError(f"{spec.name} returned {_kind(model)}, which sets this itself: leave {option} out")
    model.name = spec.name
    return model


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
