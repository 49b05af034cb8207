"""transformers: detection and segmentation networks of Hugging Face's library, from a directory or from its hub.

`--model transformers:DIRECTORY` takes what `save_pretrained` of the network and of its image processor wrote, or what
`hf download ID --local-dir DIRECTORY` fetched, and needs no network; `--model transformers:ID` fetches it first.
No code from there is run: `trust_remote_code` is off, and weights are safetensors, or a state_dict unpickled with
`weights_only`. `--weights` replaces the directory's weights with those of a file for the same configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prelabel.operators.devices import torch_device
from prelabel.operators.label_names import categories_of
from prelabel.operators.models import Family, ModelSpec, Offer, unknown_model
from prelabel.operators.transformers_models import (
    PROMPTS,
    READINGS,
    Loaded,
    TransformersDetector,
    TransformersMaskClassifier,
    TransformersModel,
    TransformersSegmenter,
)
from prelabel.operators.weights import file_digest, read_weights
from prelabel.schemas.errors import ModelError, one_line

BOXES = ("detect",)
LABEL_MAP = ("segment_semantic",)
ALL = ("detect", "segment_instances", "segment_semantic", "fuse_panoptic")
OFFERS = {
    "DIRECTORY": (ALL, "of the weights"),
    "facebook/detr-resnet-50": (BOXES, "COCO"),
    "facebook/detr-resnet-50-panoptic": (ALL, "COCO panoptic"),
    "facebook/mask2former-swin-tiny-coco-panoptic": (ALL, "COCO panoptic"),
    "facebook/maskformer-swin-tiny-coco": (ALL, "COCO panoptic"),
    "hustvl/yolos-tiny": (BOXES, "COCO"),
    "nvidia/segformer-b0-finetuned-ade-512-512": (LABEL_MAP, "ADE20K"),
    "PekingU/rtdetr_r50vd": (BOXES, "COCO"),
    "shi-labs/oneformer_coco_swin_large": (ALL, "COCO panoptic"),
    "ustc-community/dfine-large-coco": (BOXES, "COCO"),
}
"""A few of the many: name -> tasks and categories."""

CONFIGURATION = ("*config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")
WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
"""Of the weights files, whole or in shards with their index, the better kind first."""

UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError)
"""What the library raises for weights that are absent, damaged or pickled."""


class TransformersFamily(Family):
    """`transformers:DIRECTORY` or `transformers:ID`; the weights, if any, are a file for that configuration."""

    def offers(self) -> list[Offer]:
        """How such a name is made, and well-known ids."""
        return [Offer(name, tasks, categories, "transformers") for name, (tasks, categories) in OFFERS.items()]

    def weights_path(self, spec: ModelSpec) -> str | None:
        """The file given, or that of the directory where it has just one."""
        files = [spec.weights] if spec.weights else [str(file) for file in _weights(_folder(spec))]
        return files[0] if len(files) == 1 else None

    def load(self, spec: ModelSpec) -> TransformersModel:
        """The network of the class that the configuration names, with the image processor beside it."""
        import transformers

        with _quiet():
            folder = _folder(spec)
            config = _read(transformers.AutoConfig, folder)
            kind, network_class = _class(spec.name, config)
            network = _network(network_class, config, folder, spec)
            processor = _processor(folder)
            things = partial(_things, folder, processor)
            categories, category_ids = categories_of(config.id2label, spec.categories, things)
            loaded = Loaded(
                name=spec.name,
                network=network.to(torch_device(spec.device)),
                processor=processor,
                categories=categories,
                category_ids=category_ids,
                digest=_digest(folder, spec.weights),
                score_threshold=spec.score_threshold,
                options=spec.options,
            )
            if config.model_type == "oneformer":
                return _tried(TransformersMaskClassifier(loaded, _prompts(loaded.processor, config, folder)))
            return _tried(kind(loaded))


def _tried(model: TransformersModel) -> TransformersModel:
    """The model, after one pass over a black image: another network's image processor is told by nothing else."""
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    try:
        model.predict([black], frozenset({min(model.tasks)}))
    except Exception as error:
        raise ModelError(
            f"{model.name} fails on a black image ({_line(error)}): check that {type(model.processor).__name__} is its "
            "network's own image processor"
        ) from error
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's own log lines and progress bars off the terminal: what matters becomes an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# ---- files


def _folder(spec: ModelSpec) -> Path:
    """The directory with the model's files, fetched from the hub where the name is none."""
    if not spec.rest:
        raise unknown_model(spec.name)
    folder = Path(spec.path or "", Path(spec.rest).expanduser())
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{spec.name}: there is no config.json in that directory: name one that save_pretrained wrote"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        fetched = Path(snapshot_download(spec.rest, allow_patterns=[*CONFIGURATION, WEIGHTS[0]]))
        if spec.weights is None and not _weights(fetched):
            fetched = Path(snapshot_download(spec.rest, allow_patterns=[*CONFIGURATION, WEIGHTS[1]]))
    except ValueError:
        raise ModelError(f"{spec.name}: there is no such directory, and no id of the hub looks so: check it") from None
    except OSError as error:  # no such id, no access, no network
        raise ModelError(
            f"{spec.name}: there is no directory {spec.rest}, and the hub does not give it ({_line(error)}): on a "
            f"machine that can, run `hf download {spec.rest} --local-dir DIRECTORY`, and take transformers:DIRECTORY"
        ) from None
    return fetched


def _weights(folder: Path) -> list[Path]:
    """The weights files that the library reads, in order."""
    kinds = (sorted(folder.glob(pattern)) for pattern in WEIGHTS)
    return next((files for files in kinds if files), [])


def _digest(folder: Path, weights: str | None) -> str:
    """SHA-256 of what configures network, processor and tokenizer, and of the weights, by whatever name."""
    configuration = sorted({file for pattern in CONFIGURATION for file in folder.glob(pattern)})
    parts = [f"{file.name} {file_digest(str(file))}" for file in configuration]
    parts += [file_digest(str(file)) for file in ([weights] if weights else _weights(folder))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _line(error: Exception) -> str:
    """The error's text in one line."""
    return f"{type(error).__name__}: {one_line(error):.120}"


# ---- network


def _class(name: str, config: Any) -> tuple[type[TransformersModel], Any]:
    """How the network is read, and its class: that of the configuration's `architectures`, or of its type."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    masks = {kind: auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES[kind] for kind in READINGS}
    kinds: list[tuple[type[TransformersModel], Mapping[str, str]]] = [
        (TransformersDetector, auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES),
        (TransformersSegmenter, auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
        (TransformersMaskClassifier, masks),
    ]
    named = config.architectures or [names[config.model_type] for _, names in kinds if config.model_type in names]
    for kind, names in kinds:
        if named and named[0] == names.get(config.model_type):
            return kind, getattr(transformers, named[0])
    raise ModelError(
        f"{name} is a {named[0] if named else config.model_type}: take one for object detection or semantic "
        f"segmentation, or {', '.join(masks.values())}"
    )


def _network(network_class: Any, config: Any, folder: Path, spec: ModelSpec) -> nn.Module:
    """The network with all its weights, in float32."""
    source: dict[str, Any] = {"dtype": torch.float32, "config": config, "output_loading_info": True}
    source["ignore_mismatched_sizes"] = True  # they are in the report, and the exception for them says nothing
    place = spec.weights or str(folder)
    if spec.weights is None:
        source |= {"local_files_only": True, "weights_only": True, "trust_remote_code": False}
    else:
        source["state_dict"] = read_weights(spec.weights)
    try:
        network, report = network_class.from_pretrained(None if spec.weights else folder, **source)
    except ImportError as error:  # timm, where the backbone is one of its
        raise ModelError(f"{spec.name} needs another package: {_line(error)}") from None
    except UNREADABLE as error:
        raise ModelError(f"weights {place} can't be loaded ({_line(error)}): check --model and --weights") from None
    wrong = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if wrong:
        raise ModelError(
            f"weights {place} are another network's: {len(wrong)} tensors of {network_class.__name__} are not there or "
            f"of another shape, such as {wrong[0]}: check --model and --weights"
        )
    return network


# ---- what comes with the network


def _processor(folder: Path) -> Any:
    """The image processor; OneFormer's without its list of classes, which it would fetch from the hub."""
    import transformers

    processor = _read(transformers.AutoImageProcessor, folder, backend="torchvision", class_info_file=None)
    if getattr(processor, "backend", "") != "torchvision":
        raise ModelError(f"{folder}: {type(processor).__name__} takes no tensors: give one of the torchvision backend")
    return processor


def _read(kind: Any, folder: Path, **options: Any) -> Any:
    """A configuration, image processor or tokenizer of the directory."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # on malformed files the library raises anything
        raise ModelError(
            f"{folder}: {kind.__name__} can't read it ({_line(error)}): save the model and its image processor there "
            "with save_pretrained"
        ) from error


def _prompts(processor: Any, config: Any, folder: Path) -> dict[str, Tensor]:
    """OneFormer's tokens (1, T) of each of PROMPTS."""
    import transformers

    tokenizer = _read(transformers.AutoTokenizer, folder)
    reader = transformers.OneFormerProcessor(processor, tokenizer, task_seq_length=config.task_seq_len)
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    return {word: reader([black], [word], return_tensors="pt")["task_inputs"] for word in PROMPTS}


def _things(folder: Path, processor: Any) -> frozenset[int] | None:
    """The labels that are things, as OneFormer's list of classes says; None: nobody says."""
    from huggingface_hub import hf_hub_download

    described, _ = type(processor).get_image_processor_dict(folder)
    name, repository = described.get("class_info_file"), described.get("repo_path")
    if not name:
        return None
    try:
        file = folder / name
        file = file if file.is_file() else Path(hf_hub_download(repository, name, repo_type="dataset"))
        return frozenset(int(label) for label, about in json.loads(file.read_bytes()).items() if about["isthing"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder}: the list of its classes {name} of {repository} can't be had ({_line(error)}): put it there, or "
            "say with --categories what its labels are"
        ) from None
