"""Tiny random networks of transformers as a user has them: a directory that the library wrote. No network is needed.

Their weights are so large that several labels and queries win.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

transformers = pytest.importorskip("transformers")

NAMES = {0: "person", 1: "tree-merged", 2: "car", 3: "sky-other-merged", 4: "dog"}
IDS = np.array([1, 184, 3, 187, 18])
STUFF = {1, 3}
TOLD = ("semantic", "instance", "panoptic")
EDGES = {"shortest_edge": 64, "longest_edge": 128}
SQUARE = {"height": 64, "width": 64}
SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


# ---- tiny networks


def resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def swin() -> Any:
    return transformers.SwinConfig(
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def detr(**more: Any) -> Any:
    small = SMALL | {"use_timm_backbone": False, "backbone_config": resnet(), "num_queries": 12}
    return transformers.DetrConfig(**small, **more)


def detr_timm(**more: Any) -> Any:
    backbone = transformers.TimmBackboneConfig(
        backbone="resnet10t", out_indices=[1, 2, 3, 4], use_pretrained_backbone=False
    )
    return transformers.DetrConfig(**SMALL | {"backbone_config": backbone, "num_queries": 12}, **more)


def rt_detr_parts(points: Any) -> dict[str, Any]:
    return {
        "encoder_hidden_dim": 16,
        "encoder_in_channels": [16] * 3,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "d_model": 16,
        "num_queries": 10,
        "decoder_in_channels": [16] * 3,
        "decoder_ffn_dim": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_n_points": points,
        "num_denoising": 0,
    }


def rt_detr(**more: Any) -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.RTDetrConfig(backbone_config=backbone, **rt_detr_parts(2), **more)


def d_fine(**more: Any) -> Any:
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        stage_light_block=[False] * 4,
        hidden_sizes=[8, 16, 16, 16],
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.DFineConfig(backbone_config=backbone, hidden_expansion=0.5, **rt_detr_parts([2] * 3), **more)


def yolos(**more: Any) -> Any:
    return transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 96],
        num_detection_tokens=10,
        **more,
    )


def segformer(**more: Any) -> Any:
    return transformers.SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **more,
    )


def mask2former(**more: Any) -> Any:
    return transformers.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        **more,
    )


def maskformer(**more: Any) -> Any:
    return transformers.MaskFormerConfig(
        backbone_config=swin(), fpn_feature_size=32, mask_feature_size=32, decoder_config=detr(), **more
    )


def oneformer(**more: Any) -> Any:
    return transformers.OneFormerConfig(
        backbone_config=swin(),
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        task_seq_len=12,
        text_encoder_width=16,
        text_encoder_context_length=12,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=20,
        text_encoder_n_ctx=4,
        **more,
    )


BUILDERS: dict[str, tuple[str, Callable[..., Any], str, dict[str, int]]] = {
    "detr": ("DetrForObjectDetection", detr, "DetrImageProcessor", EDGES),
    "detr_timm": ("DetrForObjectDetection", detr_timm, "DetrImageProcessor", EDGES),
    "detr_masks": ("DetrForSegmentation", detr, "DetrImageProcessor", EDGES),
    "rt_detr": ("RTDetrForObjectDetection", rt_detr, "RTDetrImageProcessor", SQUARE),
    "d_fine": ("DFineForObjectDetection", d_fine, "RTDetrImageProcessor", SQUARE),
    "yolos": ("YolosForObjectDetection", yolos, "YolosImageProcessor", EDGES),
    "segformer": ("SegformerForSemanticSegmentation", segformer, "SegformerImageProcessor", SQUARE),
    "mask2former": ("Mask2FormerForUniversalSegmentation", mask2former, "Mask2FormerImageProcessor", EDGES),
    "maskformer": ("MaskFormerForInstanceSegmentation", maskformer, "MaskFormerImageProcessor", EDGES),
    "oneformer": ("OneFormerForUniversalSegmentation", oneformer, "OneFormerImageProcessor", EDGES),
}
DETECTORS = ("detr", "detr_timm", "detr_masks", "rt_detr", "d_fine", "yolos")
PANORAMAS = ("rt_detr", "yolos", "segformer", "mask2former")  # one of each kind: the others would say the same
MASK_CLASSIFIERS = ("detr_masks", "mask2former", "maskformer", "oneformer")


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Blurred noise: something at each scale."""
    noise = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    return interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)


def vary(_network: Any, _inputs: Any, outputs: Any) -> Any:
    """A hook on the network: fixed differences between queries, labels and places, which random weights don't make."""
    for key, value in outputs.items():
        size = tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
        if key == "pred_boxes":
            outputs[key] = (value + random_numbers(*size).sigmoid()) / 2
        elif len(size) == 3 and key in ("logits", "masks_queries_logits", "pred_masks"):
            noise = random_numbers(1, size[0], 5, 6)
            outputs[key] = value + 15 * interpolate(noise, size[1:], mode="bicubic")[0] - 12
        elif key in ("logits", "class_queries_logits"):
            outputs[key] = value + 5 * random_numbers(*size)
    return outputs


def random_numbers(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(3))


def save(name: str, folder: Path) -> None:
    """What a user has: a directory that the library wrote."""
    network_class, configure, processor_class, size = BUILDERS[name]
    options: dict[str, Any] = {"size": size}
    if name == "oneformer":
        classes = {label: {"name": called, "isthing": int(label not in STUFF)} for label, called in NAMES.items()}
        (folder / "classes.json").write_text(json.dumps(classes))
        options |= {"repo_path": str(folder), "class_info_file": "classes.json"}
        words = [
            "<|startoftext|>",
            "<|endoftext|>",
            "the</w>",
            "task</w>",
            "is</w>",
            "semantic</w>",
            "instance</w>",
            "panoptic</w>",
        ]
        vocabulary = {word: number for number, word in enumerate(words)}
        transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    torch.manual_seed(0)
    getattr(transformers, network_class)(configure(id2label=NAMES)).save_pretrained(folder)
    getattr(transformers, processor_class)(**options).save_pretrained(folder)
