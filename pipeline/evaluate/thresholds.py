"""The best thresholds as a file for exports."""

from __future__ import annotations

import orjson

from prelabel.pipeline.evaluate.figures import Evaluation
from prelabel.pipeline.storage import writing
from prelabel.schemas.errors import UserError


def write_thresholds(found: Evaluation, to: str) -> None:
    """Writes JSON, category name -> lowest score to keep; no entry for a category of which nothing is right.

    Raises:
        UserError: no objects were measured.
    """
    if found.detections is None:
        raise UserError("there are no thresholds: --thresholds needs a job with objects, and COCO instances as --truth")
    with writing(to) as out:
        out.write(orjson.dumps(found.detections.thresholds(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
