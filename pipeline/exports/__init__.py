"""Targets that labels can be written for: the registry, and what an export is."""

from __future__ import annotations

from importlib import import_module

from prelabel.pipeline.exports.base import Exporter
from prelabel.schemas.errors import UserError

EXPORTS: dict[str, str] = {
    "coco": "prelabel.pipeline.exports.coco:CocoInstances",
    "coco-keypoints": "prelabel.pipeline.exports.coco_keypoints:CocoKeypoints",
    "coco-panoptic": "prelabel.pipeline.exports.coco_panoptic:CocoPanoptic",
    "coco-proposals": "prelabel.pipeline.exports.coco_proposals:CocoProposals",
    "coco-results": "prelabel.pipeline.exports.coco:CocoResults",
    "cvat": "prelabel.pipeline.exports.cvat:CvatImages",
    "cvat-coco": "prelabel.pipeline.exports.cvat_coco:CvatCoco",
    "fiftyone": "prelabel.pipeline.exports.fiftyone:FiftyOne",
    "hf": "prelabel.pipeline.exports.hf:HuggingFace",
    "label-studio": "prelabel.pipeline.exports.label_studio:LabelStudioTasks",
    "voc": "prelabel.pipeline.exports.voc:Voc",
    "webdataset": "prelabel.pipeline.exports.webdataset:WebDataset",
    "yolo": "prelabel.pipeline.exports.yolo:Yolo",
    "yolo-pose": "prelabel.pipeline.exports.yolo:YoloPose",
    "yolo-segment": "prelabel.pipeline.exports.yolo:YoloSegment",
}
"""Format name -> "module:Class", imported on use."""


def exporter_of(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        UserError: there is none.
    """
    if name not in EXPORTS:
        raise UserError(f"there is no export format {name!r}: choose from {', '.join(sorted(EXPORTS))}")
    module, _, attribute = EXPORTS[name].partition(":")
    exporter: Exporter = getattr(import_module(module), attribute)()
    return exporter
