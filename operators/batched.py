"""Torchvision's detectors on whole batches: the same results, and the GPU never waits for each image, level or class.

Stock inference asks the GPU for a number some 20 times an image, and each time the processor waits for it and then it
for the processor. Here the score threshold comes first, what passes it is worked on for all images at once, and
numbers that are known beforehand (sizes, means, anchors) are not made anew for each batch. The decoding of boxes is
always float32: autocast's bfloat16 would round coordinates to 4 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_align

from prelabel.operators.resize import Size, resize_normalized
from prelabel.operators.suppression import keep_best

Replacement = tuple[nn.Module, str, Any]
_LEAST_SIDE = 1e-2  # pixels: `RoIHeads` drops thinner boxes
_MARGIN = 0.1  # more than rounding can move a logit, bfloat16's included
_SIZES = 16  # of the input, whose anchors are kept: 5 MB each


def batch_postprocessing(network: nn.Module) -> None:
    """Makes torchvision's own RetinaNet, SSD, Faster, Mask and Keypoint R-CNN work on a batch's boxes all at once.

    Only this network's: methods are replaced on its instances, and only torchvision's own, so that a subclass keeps
    what it does otherwise. For inference alone.
    """
    if isinstance(network, GeneralizedRCNN | RetinaNet | SSD | FCOS):
        _replace(network.transform, GeneralizedRCNNTransform, "normalize", _normalize)
        if type(network.transform).forward is GeneralizedRCNNTransform.forward:
            _replace(network.transform, GeneralizedRCNNTransform, "resize", _resize)
        _replace(network.transform, GeneralizedRCNNTransform, "postprocess", _resize_back)
    on_gpu = any(parameter.is_cuda for parameter in network.parameters())
    for module in reversed(list(network.modules())):  # children first
        _replace(module, AnchorGenerator, "forward", _anchors)
        _replace(module, DefaultBoxGenerator, "forward", _anchors)
        if on_gpu:
            _replace(module, MultiScaleRoIAlign, "forward", pool)
        if type(getattr(module, "box_coder", None)) is BoxCoder:
            _replace(module, RoIHeads, "postprocess_detections", _roi_detections)
            if type(getattr(module, "mask_predictor", None)) is MaskRCNNPredictor:
                _replace(module, RoIHeads, "forward", _roi_heads)
            _replace(module, RegionProposalNetwork, "filter_proposals", _filter_proposals)
            if isinstance(module, RegionProposalNetwork):
                _replace(module.box_coder, BoxCoder, "decode_single", decode)
            if "forward" in vars(getattr(module, "anchor_generator", None) or object):  # which are those of all images
                _replace(module, RetinaNet, "postprocess_detections", _retinanet_detections)
                _replace(module, SSD, "postprocess_detections", _ssd_detections)


def takes_bytes(network: nn.Module) -> bool:
    """Whether images may be uint8 in 0..255 instead of float32 in 0..1: the network's transform is ours."""
    normalize = vars(getattr(network, "transform", None) or object).get("normalize")
    return isinstance(normalize, partial) and normalize.func is _normalize


def _replace(owner: Any, stock: type, name: str, function: Callable[..., Any]) -> None:
    """Puts a function of the owner in the place of its method, if that is torchvision's."""
    if getattr(type(owner), name, None) is getattr(stock, name) and name not in vars(owner):
        setattr(owner, name, partial(function, owner))


@contextmanager
def replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Puts values in the place of attributes, for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for one in replacements:
            setattr(*one)
        yield
    finally:
        for one in before:
            setattr(*one)


def _on(device: torch.device, values: Any) -> Tensor:
    """A small tensor: `torch.tensor(values, device=device)`, which would wait for the GPU."""
    return torch.tensor(values).to(device, non_blocking=True)


# ---- before and after the network


@lru_cache(maxsize=_SIZES)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, ...]:
    # 255 as a tensor: a GPU multiplies with the reciprocal of a Python number, which rounds otherwise than `ToTensor`
    return tuple(_on(device, value).reshape(-1, 1, 1) for value in (255.0, mean, std))


def _normalize(transform: GeneralizedRCNNTransform, image: Tensor) -> Tensor:
    """`ToTensor` of a uint8 image, and what the class does with a float32 one."""
    if image.dtype == torch.uint8 and _shrinks(transform, image):
        return image  # `_resize` does both
    largest, mean, std = _constants(tuple(transform.image_mean), tuple(transform.image_std), image.device)
    if image.dtype == torch.uint8:
        return image.float().div_(largest).sub_(mean).div_(std)
    if image.dtype != torch.float32:
        return GeneralizedRCNNTransform.normalize(transform, image)
    return (image - mean).div_(std)


def _shrinks(transform: GeneralizedRCNNTransform, image: Tensor) -> bool:
    """Whether an image is smaller for the network, and made so by `_resize`: there the processor saves most of both."""
    height, width = resized_size(transform, *image.shape[-2:])
    return not image.is_cuda and "resize" in vars(transform) and 0 < height * width < image[0].numel()


def _resize(transform: GeneralizedRCNNTransform, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
    """The class's `resize`; of a uint8 image, which `_normalize` has left to it, its `normalize` as well."""
    if image.dtype != torch.uint8:
        return GeneralizedRCNNTransform.resize(transform, image, target)
    size = resized_size(transform, *image.shape[-2:])
    return resize_normalized(image, size, transform.image_mean, transform.image_std), target


def resized_size(transform: GeneralizedRCNNTransform, height: int, width: int) -> Size:
    """What the class's `resize` makes of such an image: `interpolate(recompute_scale_factor=True)` without pixels."""
    if transform.fixed_size is not None:
        return transform.fixed_size[1], transform.fixed_size[0]
    scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)


def _resize_back(
    transform: GeneralizedRCNNTransform, found: list[dict[str, Tensor]], inputs: Sequence[Size], images: Sequence[Size]
) -> list[dict[str, Tensor]]:
    """The class's `postprocess`: boxes, masks and keypoints in pixels of the images."""
    for one, before, after in zip(found, inputs, images, strict=True):
        vertical, horizontal = (_ratio(*both) for both in zip(after, before, strict=True))
        for name, numbers in (("boxes", 2), ("keypoints", 3)):
            if name in one:
                one[name] = one[name].clone()
                one[name][..., 0::numbers] *= horizontal
                one[name][..., 1::numbers] *= vertical
        if "masks" in one:
            one["masks"] = paste_masks_in_image(one["masks"], one["boxes"], after)
    return found


def _ratio(after: int, before: int) -> float:
    return float(torch.tensor(float(after)) / torch.tensor(float(before)))  # in float32, as torchvision's


# ---- anchors and boxes


def _anchors(
    generator: AnchorGenerator | DefaultBoxGenerator, images: ImageList, features: list[Tensor]
) -> list[Tensor]:
    """What the generator's class makes, float32, once for each size of input."""
    grids = tuple((int(feature.shape[-2]), int(feature.shape[-1])) for feature in features)
    size = int(images.tensors.shape[-2]), int(images.tensors.shape[-1])
    return [_anchors_of(generator, grids, size, features[0].device)] * len(images.image_sizes)


@lru_cache(maxsize=_SIZES)
def _anchors_of(
    generator: AnchorGenerator | DefaultBoxGenerator, grids: tuple[Size, ...], size: Size, device: torch.device
) -> Tensor:
    features = [torch.empty(0, *grid, device=device) for grid in grids]
    images = ImageList(torch.empty(0, *size, device=device), [size])
    anchors: Tensor = type(generator).forward(generator, images, features)[0]
    return anchors


def decode(coder: BoxCoder, codes: Tensor, boxes: Tensor) -> Tensor:
    """The class's `decode_single` for one box each, in float32: codes (N, 4), boxes and result (N, 4) x0 y0 x1 y1."""
    sides = []
    for axis in (0, 1):
        low, high = boxes[:, axis].float(), boxes[:, axis + 2].float()
        length = high - low
        shift = codes[:, axis].float() / coder.weights[axis]
        growth = (codes[:, axis + 2].float() / coder.weights[axis + 2]).clamp(max=coder.bbox_xform_clip)
        center, half = shift * length + (low + 0.5 * length), 0.5 * (growth.exp() * length)
        sides.append((center - half, center + half))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), 1)


def _clip(boxes: Tensor, images: Tensor, sizes: Sequence[Size]) -> Tensor:
    """Boxes (N, 4) inside of the images that they are of."""
    limits = _on(boxes.device, [[float(width), float(height)] * 2 for height, width in sizes])
    return torch.minimum(boxes.clamp(min=0), limits[images])


def _wide(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)


# ---- the region proposal network


def _filter_proposals(
    rpn: RegionProposalNetwork, proposals: Tensor, objectness: Tensor, sizes: Sequence[Size], anchors: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """The class's `filter_proposals`: proposals (N, A, 4) to boxes and scores of each image, best first."""
    num_images, device = len(proposals), proposals.device
    objectness = objectness.detach().reshape(num_images, -1)
    chosen = rpn._get_top_n_idx(objectness, anchors)
    rows = torch.arange(num_images, device=device)[:, None]
    counts = torch.tensor([min(rpn.pre_nms_top_n(), count) for count in anchors])
    levels = torch.arange(len(anchors)).repeat_interleave(counts).to(device, non_blocking=True)
    scores = objectness[rows, chosen].float().sigmoid()
    boxes = _clip(proposals[rows, chosen].reshape(-1, 4), rows.expand_as(chosen).flatten(), sizes)
    valid = _wide(boxes, rpn.min_size).view_as(scores) & (scores >= rpn.score_thresh)
    images, columns = valid.nonzero(as_tuple=True)
    boxes, scores = boxes.view(num_images, -1, 4)[images, columns], scores[images, columns]
    most = [rpn.post_nms_top_n()] * num_images
    kept = keep_best(boxes, scores, images, levels[columns], rpn.nms_thresh, most, len(anchors))
    return _take(kept, boxes), _take(kept, scores)


def _take(kept: list[Tensor], values: Tensor) -> list[Tensor]:
    return list(values[torch.cat(kept)].split([len(some) for some in kept]))


# ---- the second half of Faster and Mask R-CNN


def _owners(boxes: Sequence[Tensor]) -> Tensor:
    """Which image each of all boxes is of, int64, where they are."""
    counts = torch.tensor([len(some) for some in boxes])
    return torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0].device, non_blocking=True)


def pool(pooler: MultiScaleRoIAlign, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> Tensor:
    """The class's `forward`, (N, C, h, w) in the boxes' order, with one wait for the GPU and not one for each level."""
    if pooler.scales is None or pooler.map_levels is None:  # which the class finds on its first call
        return MultiScaleRoIAlign.forward(pooler, maps, boxes, sizes)
    features = [feature for name, feature in maps.items() if name in pooler.featmap_names]
    rois = torch.cat((_owners(boxes)[:, None], torch.cat(boxes)), 1)
    levels = pooler.map_levels(boxes) if len(features) > 1 else rois.new_zeros(len(rois), dtype=torch.int64)
    shares = levels.argsort(stable=True).split(levels.bincount(minlength=len(features)).tolist())
    pooled = features[0].new_empty(len(rois), features[0].shape[1], *pooler.output_size)
    for feature, scale, share in zip(features, pooler.scales, shares, strict=True):
        found = roi_align(feature, rois[share], pooler.output_size, scale, pooler.sampling_ratio)
        pooled[share] = found.to(pooled.dtype)
    return pooled


def _roi_detections(
    heads: RoIHeads, logits: Tensor, codes: Tensor, proposals: list[Tensor], sizes: Sequence[Size]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The class's `postprocess_detections`: only boxes whose score passes are decoded."""
    classes = logits.shape[-1]
    scores = logits.float().softmax(-1)
    rows, labels = (scores[:, 1:] > heads.score_thresh).nonzero(as_tuple=True)
    labels = labels + 1
    images = _owners(proposals)[rows]
    boxes = decode(heads.box_coder, codes.view(-1, classes, 4)[rows, labels], torch.cat(proposals)[rows])
    boxes = _clip(boxes, images, sizes)
    (wide,) = _wide(boxes, _LEAST_SIDE).nonzero(as_tuple=True)
    boxes, scores, labels, images = boxes[wide], scores[rows, labels][wide], labels[wide], images[wide]
    most = [heads.detections_per_img] * len(proposals)
    kept = keep_best(boxes, scores, images, labels, heads.nms_thresh, most, classes)
    return _take(kept, boxes), _take(kept, scores), _take(kept, labels)


def _roi_heads(heads: RoIHeads, maps: dict[str, Tensor], *others: Any) -> tuple[list[dict[str, Tensor]], Any]:
    """The class's `forward`, which computes a mask of each class for each object: here only that of its own class."""
    pool = heads.mask_roi_pool
    with replaced([(heads, "mask_roi_pool", None)]):
        found, losses = type(heads).forward(heads, maps, *others)
    if pool is not None:
        _, sizes, *_ = others
        pooled = heads.mask_head(pool(maps, [one["boxes"] for one in found], sizes))
        masks = _own_masks(heads.mask_predictor, pooled, torch.cat([one["labels"] for one in found]))
        for one, some in zip(found, masks.split([len(one["labels"]) for one in found]), strict=True):
            one["masks"] = some
    return found, losses


def _own_masks(predictor: MaskRCNNPredictor, pooled: Tensor, labels: Tensor) -> Tensor:
    """Probabilities float32 (N, 1, h, w): of what the predictor makes of such maps each one's channel, its label.

    Always float32, as the last layers are in all precisions.
    """
    hidden = predictor.relu(predictor.conv5_mask(pooled))
    layer = predictor.mask_fcn_logits
    with torch.autocast(hidden.device.type, enabled=False):
        points = hidden.float().permute(0, 2, 3, 1).flatten(1, 2)
        logits = torch.bmm(points, layer.weight[labels].flatten(1)[:, :, None]) + layer.bias[labels][:, None, None]
    return logits.sigmoid().view(-1, 1, *hidden.shape[2:])


# ---- RetinaNet and SSD


def _retinanet_detections(
    network: RetinaNet, outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], sizes: Sequence[Size]
) -> list[dict[str, Tensor]]:
    """The class's `postprocess_detections`: outputs (N, anchors of a level, classes or 4) for each level."""
    logits, codes = _joined(outputs["cls_logits"]), _joined(outputs["bbox_regression"])
    num_images, num_anchors, classes = logits.shape
    (found,) = (logits.flatten() > _logit(network.score_thresh) - _MARGIN).nonzero(as_tuple=True)
    scores = logits.flatten()[found].float().sigmoid()
    (passing,) = (scores > network.score_thresh).nonzero(as_tuple=True)
    found, scores = found[passing], scores[passing]
    level_ends = list(accumulate(level.shape[1] for level in outputs["cls_logits"]))
    ends = [(image * num_anchors + end) * classes for image in range(num_images) for end in level_ends]
    best = _best_of_each(scores, torch.searchsorted(found, _on(found.device, ends)), network.topk_candidates)
    found, scores = found[best], scores[best]
    places, labels = found // classes, found % classes
    images, own = places // num_anchors, places % num_anchors
    boxes = _clip(decode(network.box_coder, codes.view(-1, 4)[places], torch.cat(anchors[0])[own]), images, sizes)
    return _suppressed(network, boxes, scores, images, labels, len(sizes), classes)


def _ssd_detections(
    network: SSD, outputs: dict[str, Tensor], anchors: list[Tensor], sizes: Sequence[Size]
) -> list[dict[str, Tensor]]:
    """The class's `postprocess_detections`: outputs (N, anchors, classes or 4)."""
    probabilities = outputs["cls_logits"].softmax(-1)
    classes = probabilities.shape[-1]
    images, own, labels = (probabilities[..., 1:] > network.score_thresh).nonzero(as_tuple=True)
    groups, order = (images * classes + labels).sort(stable=True)
    ends = torch.searchsorted(groups, torch.arange(1, len(sizes) * classes + 1, device=groups.device))
    scores = probabilities[images, own, labels + 1]
    best = order[_best_of_each(scores[order], ends, network.topk_candidates)]
    images, own, labels = images[best], own[best], labels[best] + 1
    codes = outputs["bbox_regression"][images, own]
    boxes = _clip(decode(network.box_coder, codes, anchors[0][own]), images, sizes)
    return _suppressed(network, boxes, scores[best], images, labels, len(sizes), classes)


def _suppressed(
    network: RetinaNet | SSD, boxes: Tensor, scores: Tensor, images: Tensor, labels: Tensor, num_images: int, width: int
) -> list[dict[str, Tensor]]:
    """What the network returns of these boxes for each image; labels are below `width`."""
    most = [network.detections_per_img] * num_images
    kept = keep_best(boxes, scores, images, labels, network.nms_thresh, most, width)
    columns = {"boxes": boxes, "scores": scores, "labels": labels}
    taken = [_take(kept, values) for values in columns.values()]
    return [dict(zip(columns, one, strict=True)) for one in zip(*taken, strict=True)]


def _logit(score: float) -> float:
    """Which the sigmoid makes that score of."""
    if not 0 < score < 1:
        return -math.inf if score <= 0 else math.inf
    return math.log(score / (1 - score))


def _joined(levels: list[Tensor]) -> Tensor:
    """The tensor (N, A, C) that torchvision split along A; a copy would take as long as all that follows."""
    first, starts = levels[0], list(accumulate((level.shape[1] for level in levels), initial=0))
    size = len(first), starts[-1], first.shape[2]
    places = [first.storage_offset() + start * first.shape[2] for start in starts[:-1]]
    strides = {(size[1] * size[2], size[2], 1), *(level.stride() for level in levels)}
    storages = {level.untyped_storage().data_ptr() for level in levels}
    if places == [level.storage_offset() for level in levels] and len(strides) == len(storages) == 1:
        return first.as_strided(size, first.stride())
    return torch.cat(levels, 1)


def _best_of_each(scores: Tensor, ends: Tensor, most: int) -> Tensor:
    """Positions of the best so many scores of each stretch of them that ends there.

    A stretch that has no more stays as it is on a GPU; on a processor it costs nothing to order it by torchvision's own
    call, so that equal scores lie as they do there.
    """
    least = 0 if scores.device.type == "cpu" else most
    return torch.cat(list(_stretches(scores, ends.tolist(), most, least)))


def _stretches(scores: Tensor, ends: list[int], most: int, least: int) -> Iterator[Tensor]:
    done = 0
    for start, end in pairwise([0, *ends]):
        if end - start > least:
            yield torch.arange(done, start, device=scores.device)
            yield scores[start:end].topk(min(most, end - start)).indices + start
            done = end
    yield torch.arange(done, len(scores), device=scores.device)
