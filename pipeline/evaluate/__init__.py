"""How good the labels are, measured against a COCO ground truth.

`evaluate(...)` returns an `Evaluation`: a dict of headline figures, and what they are made of as attributes (the
dataclasses of `figures`, which say what each number is).

```python
found = evaluate(open_dataset("labels"), "instances.json")
found["boxes"]["AP"]                              # kinds: boxes, masks, keypoints, proposals; panoptic, semantic
found.images.measured, found.images.not_labeled.first
found.categories["boxes"]["leaf"]["AP50_small"]   # kind, category, metric
if found.detections:                              # against instances, where the job has objects
    found.detections.overall.ece                  # calibration; .bins is the reliability curve
    found.detections.categories["leaf"].best      # threshold of the best F1: score, precision, recall, f1; or None
    found.detections.thresholds()                 # category -> score
    found.detections.confusion.counts             # (row, column, how many), names in confusion.categories
found.to_dict()                                   # all of it for JSON
```
"""

from __future__ import annotations

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate.figures import Evaluation
from prelabel.pipeline.evaluate.objects import measure_objects
from prelabel.pipeline.evaluate.segments import measure_segments
from prelabel.pipeline.evaluate.truth import Truth, read_truth
from prelabel.schemas.errors import UserError


def evaluate(dataset: LabelDataset, truth: str | Truth, confusion_score: float | None = None) -> Evaluation:
    """Measures all that the job and the truth have in common.

    Against COCO's instances or keypoints (Lin et al. 2014, as pycocotools has them): AP and AR of "boxes", of "masks"
    and "keypoints" where both sides have them, and AR of "proposals", categories ignored; and how far scores can be
    trusted. Against COCO's panoptic document: "panoptic", the panoptic quality of Kirillov et al. 2019, and
    "semantic", the mean IoU. All from 0 to 1; -1 where nothing counts.

    Args:
        dataset: the labels
        truth: URL of the document, or what `read_truth` has read of it; its images are matched by file name, its
            categories by name, or by id where it has no name in common with the job
        confusion_score: objects below it are left out of the confusion matrix; by default the threshold of the best
            F1 over all categories, or 0.5 where nothing is right

    Raises:
        UserError: the truth is no such document, none of its images was labeled, it can't be told which, those
            have nothing that counts, or the job has no labels of that kind.
    """
    expected = read_truth(truth, dataset) if isinstance(truth, str) else truth
    if expected.is_panoptic:
        found = measure_segments(dataset, expected)
    else:
        found = measure_objects(dataset, expected, confusion_score)
    if all(value == -1 for metrics in found.values() for value in metrics.values()):
        raise UserError(
            f"there is nothing to measure: {expected.url} has no objects in the {len(expected.images)} images of it "
            "that were labeled, or none that counts: check its annotations' image_id, category_id, area and iscrowd"
        )
    return found
