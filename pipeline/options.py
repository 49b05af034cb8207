"""The options of the command line that say what to label and how to run it, from arguments, environment or a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from prelabel.schemas.errors import UserError, one_line

F = TypeVar("F", bound=Callable[..., Any])


class Line(click.types.StringParamType):
    """Text of which an environment variable holds one a line: file names may have spaces in them."""

    envvar_list_splitter = "\n"


class Share(click.FloatRange):
    """A number from 0 to 1; click's range takes nan for one."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails on what is none."""
        number = float(super().convert(value, param, ctx))
        return self.fail("nan is not a number.", param, ctx) if math.isnan(number) else number


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option whose environment variable is PRELABEL_ and its long name."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    return click.option(*names, envvar="PRELABEL_" + long[2:].replace("-", "_").upper(), **settings)


def several(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds some options, in their order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _read_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Makes a YAML file's values the defaults of the command's options."""
    if path is None:
        return
    import yaml

    class Loader(yaml.SafeLoader):
        """Text stays text, for the options to read: to YAML 1.1, 1:4 is the number 64."""

    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].endswith((":bool", ":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {getattr(error, 'strerror', None) or one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected lines like `model: torchvision:...`")
    try:
        context.default_map = {**(context.default_map or {}), **dict(_defaults(context.command, values))}
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None


def _defaults(command: click.Command, values: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Parameter names and values from keys that are the long names of options, with dashes or underscores."""
    parameters = {max(parameter.opts, key=len).lstrip("-"): parameter for parameter in command.params}
    del parameters["config"]
    for key, value in values.items():
        parameter = parameters.get(str(key).replace("_", "-"))
        if parameter is None:
            raise UserError(f"unknown key {key!r}; there are {', '.join(sorted(parameters))}")
        several = parameter.nargs == -1 or getattr(parameter, "multiple", False)
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise UserError(f"{key} takes one value")
        yield str(parameter.name), [value] if several and not isinstance(value, list) else value


config_option = click.option(
    "--config",
    metavar="FILE",
    envvar="PRELABEL_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="YAML file with these options as keys. The command line wins, then the environment, then the file.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
label_options = several(
    option(
        "--model",
        "-m",
        metavar="FAMILY:NAME",
        required=True,
        multiple=True,
        help="`prelabel models` lists what there is. Several: each image goes through all of them.",
    ),
    option(
        "--task",
        metavar="TASK",
        multiple=True,
        help="propose, detect, segment_instances, segment_semantic, fuse_panoptic, classify, detect_keypoints. "
        "[default: all that the models can, but propose]",
    ),
    option(
        "--weights",
        metavar="NAME|FILE",
        type=Line(),
        multiple=True,
        help="A name that the family knows, or a .pth or .safetensors file.",
    ),
    option(
        "--weights-sha256",
        metavar="HEX",
        multiple=True,
        help="What the weights' file must hash to; looked at before anything in it.",
    ),
    option(
        "--categories",
        metavar="FILE",
        type=Line(),
        multiple=True,
        help="COCO JSON, a JSON list, or one name a line. [default: the model's own]",
    ),
    option(
        "--score-threshold",
        metavar="X",
        multiple=True,
        help="From 0 to 1, of objects and labels; segments that are not objects have none. "
        "[default: 0.05, or the model's own if higher]",
    ),
    option(
        "--keep-proposals", type=click.IntRange(1, 65_536), metavar="N", help="Write the best N regions of each image."
    ),
    option(
        "--top-labels", type=click.IntRange(1), metavar="N", help="Most labels of an image as a whole. [default: 5]"
    ),
    option(
        "--precision",
        type=click.Choice(["float32", "bf16"]),
        help="Of most of the networks' arithmetic; bf16 is faster, and not just rounding away. [default: float32]",
    ),
    option(
        "--tile",
        type=click.IntRange(32),
        metavar="PIXELS",
        help="Look at larger images through windows of this side. [default: as a whole]",
    ),
    option(
        "--tile-overlap",
        type=click.FloatRange(0, 0.75),
        metavar="F",
        help="Of a window's side, shared with the next. [default: 0.25]",
    ),
    option(
        "--panoptic-score",
        type=click.FloatRange(0, 1),
        metavar="X",
        help="Least score of a thing's panoptic segment. [default: 0.5]",
    ),
    option(
        "--panoptic-overlap",
        type=click.FloatRange(0, 1),
        metavar="F",
        help="Least part of it that no better one covers. [default: 0.5; 0.8 for end-to-end models]",
    ),
    option(
        "--panoptic-stuff-area",
        type=click.IntRange(0),
        metavar="PIXELS",
        help="Least area of fused stuff. [default: 4096]",
    ),
)
runtime_options = several(
    option(
        "--pools",
        type=click.Choice(["shared", "each"]),
        help="Whether workers hold all models, or each model has its own. [default: shared]",
    ),
    option("--workers", metavar="N|MIN:MAX", help="Processes with the model. [default: one per GPU, or per CPU]"),
    option(
        "--gpus-per-worker",
        type=click.FloatRange(0),
        metavar="X",
        help="May be a fraction. [default: 1 where there are any]",
    ),
    option(
        "--cpus-per-worker", type=click.IntRange(1), metavar="N", help="Threads of each. [default: shared out evenly]"
    ),
    option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        help="Images a forward pass. [default: up to 8; on CPUs 1 where the network's input is large]",
    ),
    option(
        "--address",
        metavar="HOST:PORT",
        help="Of a running Ray cluster; `auto` finds it. [default: Ray starts on this machine]",
    ),
    option(
        "--max-failed",
        metavar="N|F%",
        help="Stop, and exit with 3, if more images fail. [default: any number is fine]",
    ),
    option(
        "--image-timeout",
        type=click.FloatRange(0, 1e6, min_open=True),
        metavar="SECONDS",
        help="For decoding an image, and for a model to look at 16 megapixels of it. [default: 600]",
    ),
    option(
        "--max-failed-units",
        type=click.IntRange(1),
        metavar="N",
        help="Stop after so many failed units. [default: 100]",
    ),
)
