"""A tiny job for each kind of model. Most networks have random weights, which find something everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models import ResNet18_Weights, detection, resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from prelabel.operators.base import Model
from prelabel.operators.classifier import ClassifierModel
from prelabel.operators.detector import DetectorModel
from prelabel.operators.models import ModelSpec, load_model
from prelabel.operators.models.fast_rcnn import FastRCNNModel
from prelabel.operators.models.rcnn import RCNNModel
from prelabel.operators.models.scenes_network import ScenesBackbone, build_scenes_network
from prelabel.operators.options import Options
from prelabel.operators.segmenter import SegmenterModel
from prelabel.schemas.categories import COCO_PERSON


@dataclass(frozen=True)
class Job:
    """Models, and the tasks asked of all that can do them; none: all that they can do, proposals aside."""

    models: list[Model]
    tasks: tuple[str, ...] = ()


OPTIONS = Options(keep_proposals=20, panoptic_stuff_area=64)
ALL_OF_SCENES = ("propose", "detect", "segment_instances", "segment_semantic", "fuse_panoptic")
PRESET = ResNet18_Weights.DEFAULT.transforms(crop_size=28, resize_size=32)
ANCHORS = AnchorGenerator(((24,), (48,), (88,), (144,)), ((0.5, 1.0, 2.0),) * 4)


def load(name: str, **more: Any) -> Any:
    return load_model(ModelSpec(name, device="cpu", **more))


def detector(network: nn.Module, *layers: str, **more: Any) -> DetectorModel:
    """Takes all that it finds. Its random scores are so near to one another that rounding would rank them: spread."""
    for layer in layers:
        network.get_submodule(layer).weight.data *= 30
    return DetectorModel(network, name="tiny:detector", score_threshold=0.0, device="cpu", **more)


def scenes() -> Job:
    return Job([load("scenes:maskrcnn")], ALL_OF_SCENES)


def tiled() -> Job:
    model = load("scenes:maskrcnn", options=Options(tile=256))
    transform = model.model.network.transform
    transform.min_size, transform.max_size = (96,), 120  # a hundred windows take their time
    return Job([model], ALL_OF_SCENES)


def keypoints() -> Job:
    heads = {"keypoint_head": KeypointRCNNHeads(64, (32,)), "keypoint_predictor": KeypointRCNNPredictor(32, 17)}
    sizes = {"min_size": 96, "max_size": 160, "box_detections_per_img": 10}
    network = detection.KeypointRCNN(ScenesBackbone(), 2, rpn_anchor_generator=ANCHORS, **heads, **sizes)
    model = detector(network, "rpn.head.cls_logits", "roi_heads.box_predictor.cls_score", categories=COCO_PERSON)
    return Job([model], ("propose", "detect", "detect_keypoints"))


def retinanet() -> Job:
    sizes = {"min_size": 96, "max_size": 160, "detections_per_img": 20}
    network = detection.RetinaNet(ScenesBackbone(), 6, anchor_generator=ANCHORS, **sizes)
    return Job([detector(network, "head.classification_head.cls_logits")])


def ssdlite() -> Job:
    """Of which all images are one input size."""
    none = {"weights": None, "weights_backbone": None}
    return Job([detector(detection.ssdlite320_mobilenet_v3_large(**none, num_classes=6, detections_per_img=20))])


def classifier() -> Job:
    return Job([ClassifierModel(resnet18(num_classes=7), name="tiny:resnet18", categories=None, score_threshold=0.0)])


def segmenter() -> Job:
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2)  # so that many classes win somewhere
    return Job([SegmenterModel(network, name="tiny:lraspp", resize=96)])


def selective_search() -> Job:
    pytest.importorskip("cv2")
    return Job([load("regions:selective_search")])


def rcnn() -> Job:
    network = nn.Sequential(nn.Conv2d(3, 16, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 5))
    model = ClassifierModel(network, name="tiny:cnn", categories=None, preset=PRESET, score_threshold=0.0)
    return Job([load("regions:sliding_windows"), RCNNModel(model, "rcnn:tiny:cnn")], ("propose", "detect"))


def fast_rcnn() -> Job:
    model = detector(build_scenes_network(), "roi_heads.box_predictor.cls_score")
    return Job([load("regions:sliding_windows"), FastRCNNModel(model, "fast_rcnn:tiny:maskrcnn")])


def of_transformers(kind: str, config: str, size: dict[str, int], **options: Any) -> Job:
    """A network as `save_pretrained` leaves it, but with outputs that differ from query to query."""
    library: Any = pytest.importorskip("transformers")
    if "num_queries" in options:
        small = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "layer_type": "basic"}
        maps = ["stage1", "stage2", "stage3", "stage4"]
        options["backbone_config"] = library.ResNetConfig(**small, out_features=maps)
    names = {0: "person", 1: "tree-merged", 2: "car", 3: "sky-other-merged", 4: "dog"}
    network = getattr(library, kind)(getattr(library, f"{config}Config")(id2label=names, **options))
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        getattr(library, f"{config}ImageProcessor")(size=size).save_pretrained(folder)
        model = load(f"transformers:{folder}", score_threshold=0.3)
    model.network.register_forward_hook(spread)
    return Job([model])


def spread(_network: Any, _inputs: Any, outputs: Any) -> Any:
    """Random weights say nearly the same of all queries and labels: adds noise, the same for each image."""
    random = torch.Generator().manual_seed(3)
    for key in [key for key in outputs if "logits" in key or key == "pred_masks"]:
        _, count, *size = outputs[key].shape
        noise = torch.randn(1, count, *(size if len(size) == 1 else (5, 6)), generator=random)
        noise = 5 * noise if len(size) == 1 else 15 * interpolate(noise, size, mode="bicubic") - 18
        outputs[key] = 20 * outputs[key] + noise
    return outputs


EDGES, SQUARE = {"shortest_edge": 64, "longest_edge": 128}, {"height": 64, "width": 64}


def detr() -> Job:
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return of_transformers("DetrForSegmentation", "Detr", EDGES, **small, num_queries=12, use_timm_backbone=False)


def segformer() -> Job:
    small = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    return of_transformers("SegformerForSemanticSegmentation", "Segformer", SQUARE, **small, decoder_hidden_size=16)


def mask2former() -> Job:
    widths = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    small = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16}
    kind = "Mask2FormerForUniversalSegmentation"
    return of_transformers(kind, "Mask2Former", EDGES, **widths, **small, encoder_feedforward_dim=16, num_queries=12)


JOBS: dict[str, Callable[[], Job]] = {
    job.__name__: job
    for job in (
        *(scenes, tiled, keypoints, retinanet, ssdlite, classifier, segmenter),
        *(selective_search, rcnn, fast_rcnn, detr, segformer, mask2former),
    )
}
