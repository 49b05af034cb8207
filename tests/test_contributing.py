"""The worked example of CONTRIBUTING.md, word for word."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from prelabel.operators.base import Answer, ImageInfo, Task
from prelabel.operators.models import FAMILIES, ModelSpec, available, load_model, who_can
from prelabel.operators.options import DEFAULTS
from prelabel.operators.registry import assign, operators_for
from prelabel.schemas.errors import ModelError

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_a_family_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brightness.py").write_text(FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name, target in ast.literal_eval(f"{{{LINE}}}").items():
        monkeypatch.setitem(FAMILIES, name, target.replace("prelabel.operators.models.", ""))
    assert "brightness:mean" in who_can("segment_semantic")
    assert len(available()["brightness"]) == 1

    model = load_model(ModelSpec("brightness:mean"))
    assignment = assign([model], ["segment_semantic"])
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 9, 13), np.uint8))
    (prediction,) = model.predict([image], assignment.asked[0])
    (operator,) = operators_for(assignment.written, model.categories, DEFAULTS)
    rows = operator.rows(ImageInfo(7, 9, 13), [Answer(model.name, prediction)]).to_pylist()
    light = int((image.float().mean(0) > 127).sum())
    assert {row["category"]: row["area"] for row in rows} == {"light": light, "dark": 9 * 13 - light}
    with pytest.raises(ModelError, match="there is no model 'brightness:median'"):
        load_model(ModelSpec("brightness:median"))
    with pytest.raises(ModelError, match="brightness:mean can't detect"):
        assign([model], [Task.DETECT])
