"""Corrected labels become a job: the tables that were exported, but for what was corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import HEIGHT, WIDTH, files_of, ring, write_images, write_job
from pycocotools import mask as coco_mask
from shards import write_tar
from unruly import write_unruly

from prelabel.pipeline.cli import cli
from prelabel.pipeline.compare import compare
from prelabel.pipeline.dataset import LabelDataset, open_dataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.imports import importer_of, json_document
from prelabel.pipeline.imports.write import ImportSummary, write_import
from prelabel.pipeline.originals import Originals
from prelabel.pipeline.validate import validate
from prelabel.schemas import rle
from prelabel.schemas.errors import JobError, PrelabelError, UserError

Row = dict[str, Any]
DIAMOND = [10.5, 2.25, 20.0, 10.0, 10.5, 20.75, 3.0, 10.0]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelDataset:
    return write_unruly(tmp_path_factory.mktemp("job"))


def exported(labels: LabelDataset, to: Path, images: str = "none") -> Row:
    exporter_of("coco").write(labels, str(to), images)
    document: Row = json.loads(to.read_bytes())
    return document


def imported(document: Any, folder: Path, of: LabelDataset | None = None, **options: Any) -> LabelDataset:
    """The job that an import of the document makes, which keeps all promises."""
    file = folder / "corrected.json"
    file.write_text(json.dumps(document))
    write_import(importer_of("coco")(str(file)), f"{folder}/corrected", of, **options)
    assert validate(f"{folder}/corrected").exit_code == 0
    return open_dataset(f"{folder}/corrected")


def rows_of(dataset: LabelDataset, table: str, *without: str) -> list[Row]:
    return dataset.table(table).to_table().drop_columns(list(without)).to_pylist()


def changes(before: LabelDataset, after: LabelDataset) -> Row:
    found = compare(before, after).to_dict()["kinds"]["objects"]["all"]
    return {name: found[name] for name in ("moved", "reclassified", "appeared", "vanished")}


@pytest.mark.parametrize("images", ["none", "copy"])
def test_round_trip_gives_the_same_tables(images: str, labels: LabelDataset, tmp_path: Path) -> None:
    back = imported(exported(labels, tmp_path / "a.json", images), tmp_path, labels)
    assert rows_of(back, "annotations", "model", "keypoints") == rows_of(labels, "annotations", "model", "keypoints")
    assert rows_of(back, "images", "labels", "unit") == rows_of(labels, "images", "labels", "unit")
    assert back.categories == labels.categories
    assert [model["name"] for model in back.record.models] == ["import:coco"]
    assert back.record.tasks == ("detect", "segment_instances")


def test_round_trip_of_keypoints(labels: LabelDataset, tmp_path: Path) -> None:
    exporter_of("coco-keypoints").write(labels, f"{tmp_path}/a.json")
    back = imported(json.loads((tmp_path / "a.json").read_bytes()), tmp_path, labels)
    posed = [row["keypoints"] for row in rows_of(labels, "annotations") if row["keypoints"]]
    assert [row["keypoints"] for row in rows_of(back, "annotations")] == posed
    assert "detect_keypoints" in back.record.tasks


def test_edits_are_all_that_changes(tmp_path: Path) -> None:
    labels = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels")
    document = exported(labels, tmp_path / "a.json")
    renamed, deleted, _, moved, _ = document["annotations"]
    shifted = rle.place(rle.Rle.from_coco(moved["segmentation"]), (HEIGHT, WIDTH), 2, 1)
    moved |= {"segmentation": shifted.to_coco(), "bbox": list(rle.bbox(shifted))}
    document["annotations"].remove(deleted)
    renamed["category_id"] = 5 if renamed["category_id"] == 2 else 2
    back = imported(document, tmp_path, labels)
    assert changes(labels, back) == {"moved": 1, "reclassified": 1, "appeared": 0, "vanished": 1}
    again = exported(back, tmp_path / "b.json")
    same = ("image_id", "category_id", "bbox", "segmentation", "score", "area")
    assert [[one[key] for key in same] for one in again["annotations"]] == [
        [one[key] for key in same] for one in document["annotations"]
    ]
    assert again["images"] == document["images"]


def test_tool_may_number_and_order_anew(labels: LabelDataset, tmp_path: Path) -> None:
    document = exported(labels, tmp_path / "a.json")
    ids = {one["id"]: 1000 - number for number, one in enumerate(document["images"])}
    categories = {one["id"]: 9 - number for number, one in enumerate(document["categories"])}
    document = {
        "annotations": [
            {key: one[key] for key in ("bbox", "segmentation", "score")}
            | {"image_id": ids[one["image_id"]], "category_id": categories[one["category_id"]]}
            for one in document["annotations"]
        ],
        "images": [one | {"id": ids[one["id"]]} for one in reversed(document["images"])],
        "categories": [{"id": categories[one["id"]], "name": one["name"]} for one in document["categories"]],
    }
    back = imported(document, tmp_path, labels)
    assert rows_of(back, "annotations", "model", "keypoints") == rows_of(labels, "annotations", "model", "keypoints")
    assert back.categories.ids == labels.categories.ids


def test_part_of_the_images_is_a_job_of_those(tmp_path: Path) -> None:
    for name in ("a", "b"):  # every key is there twice
        write_tar(f"{tmp_path}/{name}.tar", {f"{k}.x.png": f"{name}{k}".encode() for k in range(4)})
    labels = write_job(f"{tmp_path}/{{a,b}}.tar", f"{tmp_path}/labels")
    document = exported(labels, tmp_path / "a.json")
    document["images"] = [one for one in document["images"] if one["id"] in (1, 2, 6)]
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in (1, 2, 6)]
    back = imported(document, tmp_path, labels)
    assert [(row["image_id"], row["key"]) for row in rows_of(back, "images")] == [
        (0, "1.x.png"),
        (1, "2.x.png"),
        (2, "2.x.png"),
    ]
    assert changes(labels, back) == {"moved": 0, "reclassified": 0, "appeared": 0, "vanished": 0}
    originals = Originals(back)
    assert [originals.read(row | {"digest": ""}) for row in rows_of(back, "images")] == [b"a1", b"a2", b"b2"]


def test_document_alone_is_a_job_of_its_images(tmp_path: Path) -> None:
    labels = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels")
    back = imported(exported(labels, tmp_path / "a.json"), tmp_path, images=f"{tmp_path}/images")
    assert changes(labels, back) == {"moved": 0, "reclassified": 0, "appeared": 0, "vanished": 0}
    (first, *_) = rows_of(back, "images")
    assert (first["key"], first["width"], first["height"]) == ("image-0.png", WIDTH, HEIGHT)
    assert Originals(back).read(first) == (tmp_path / "images" / "image-0.png").read_bytes()


def test_document_of_images_elsewhere_is_one_line(tmp_path: Path) -> None:
    write_images(f"{tmp_path}/images")
    with pytest.raises(UserError, match=r"corrected.json: none of the images is in .*/images: .* as 'a.png'"):
        imported(document_of([]), tmp_path, images=f"{tmp_path}/images")


def document_of(segmentation: Any, **more: Any) -> Row:
    """One image with one annotation."""
    image = {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    annotation = {"id": 3, "image_id": 7, "category_id": 5, "bbox": [3, 2, 14, 12], "segmentation": segmentation}
    return {"images": [image], "annotations": [annotation | more], "categories": [{"id": 5, "name": "leaf"}]}


@pytest.mark.parametrize(
    ("segmentation", "mask"),
    [
        ([DIAMOND], coco_mask.decode(coco_mask.frPyObjects([DIAMOND], HEIGHT, WIDTH))[..., 0]),
        (
            [DIAMOND, [0, 0, 5, 0, 5, 24.5, 0, 24.5]],
            coco_mask.decode(coco_mask.frPyObjects([DIAMOND, [0, 0, 5, 0, 5, 24, 0, 24]], HEIGHT, WIDTH)).any(2),
        ),
        (rle.encode(ring(1)).to_coco(), ring(1)),
        ({"size": [HEIGHT, WIDTH], "counts": [24, 48, 24 * 30 - 48, 24]}, np.arange(768).reshape(32, 24).T // 24 % 3),
        ([], None),
        ([[]], None),
        (None, None),
    ],
)
def test_every_form_of_a_mask(segmentation: Any, mask: np.ndarray | None, tmp_path: Path) -> None:
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[:, [1, 2, 31]] = True
    (row,) = rows_of(imported(document_of(segmentation), tmp_path), "annotations")
    assert list(row["bbox"].values()) == [3, 2, 14, 12]
    if mask is None:
        assert row["segmentation"] is None
        assert row["area"] == 14 * 12
    else:
        np.testing.assert_array_equal(LabelDataset.mask(row["segmentation"]), mask.astype(bool))
        assert row["area"] == mask.astype(bool).sum()


def test_box_ends_at_the_border_and_score_is_kept(tmp_path: Path) -> None:
    document = document_of([], bbox=[-0.5, 3, 33, 4], score=0.25, iscrowd=1)
    (row,) = rows_of(imported(document, tmp_path), "annotations")
    assert (row["bbox"], row["score"]) == ({"x": 0, "y": 3, "width": 32, "height": 4}, 0.25)
    assert row["iscrowd"]


RUNS = rle.encode(ring(0)).to_coco()
BAD: dict[str, tuple[Any, str]] = {
    "no category": (
        document_of([], category_id=9),
        "annotation 3 of 'a.png': its category_id is 9, which is not among",
    ),
    "no image": (document_of([], image_id=8), "annotation 3 is of image 8, which is not among the images"),
    "no box": (document_of([], bbox=None), "annotation 3 of 'a.png': it has neither bbox nor segmentation"),
    "odd box": (document_of([], bbox=[1, 2, "3", 4]), "annotation 3 of 'a.png': its bbox is"),
    "box outside": (document_of([], bbox=[1, 2, 40, 4]), "annotation 3 of 'a.png': its box .* over the border"),
    "box inside out": (document_of([], bbox=[9, 9, -4, 4]), "annotation 3 of 'a.png': its box is"),
    "size": (
        document_of(RUNS | {"size": [32, 24]}),
        "annotation 3 of 'a.png': its segmentation is .*, its image's size is",
    ),
    "runs": (document_of(RUNS | {"counts": [1, 2]}), "annotation 3 of 'a.png': the runs of a mask"),
    "long run": (document_of(RUNS | {"counts": [2**63]}), "annotation 3 of 'a.png': its segmentation is no run"),
    "no runs": (document_of({"size": [24, 32]}), "annotation 3 of 'a.png': its segmentation is no run-length"),
    "line": (document_of([[1, 2, 3, 4]]), "annotation 3 of 'a.png': its polygon has 4 numbers"),
    "polygon outside": (document_of([[0, 0, 1e9, 0, 0, 9]]), "annotation 3 of 'a.png': its polygon reaches over"),
    "scribble": (document_of([[0, 0, 32, 24] * 70_000]), "annotation 3 of 'a.png': its polygons are too long"),
    "score": (document_of([], score=1.5), "annotation 3 of 'a.png': its score is 1.5"),
    "keypoints": (document_of([], keypoints=[1, 2, 7]), "annotation 3 of 'a.png': its keypoints should be"),
    "no objects": ([], "it is no object"),
    "no list": ({"images": []}, "no COCO instances document: it has no list of categories"),
    "panoptic": (document_of([], segments_info=[]), "no COCO instances document: an annotation is"),
    "image": (
        document_of([]) | {"images": [{"id": 7}]},
        "an image is {'id': 7}: give its id, file_name, height, width",
    ),
    "huge": (document_of([]) | {"images": [document_of([])["images"][0] | {"height": 2**31}]}, "no image has such"),
    "no images": (
        {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]},
        "there are no images in it",
    ),
    "id twice": (document_of([]) | {"images": document_of([])["images"] * 2}, "2 images of the id 7"),
    "name twice": (
        document_of([]) | {"images": [one | {"id": k} for k in (7, 8) for one in document_of([])["images"]]},
        "2 images of the name 'a.png'",
    ),
    "category twice": (document_of([]) | {"categories": [{"id": k, "name": "a"} for k in (5, 6)]}, "of the name 'a'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_document_is_one_line_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    document, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        imported(document, tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).count("corrected.json") == 1
    assert len(str(error.value)) < 400
    assert [*files_of(str(tmp_path))] == ["/corrected.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "other.png"}, "1 images of the document are not in .*/labels, such as 'other.png'"),
        ({"height": WIDTH, "width": HEIGHT}, "is 24 x 32 in the document, and 32 x 24 in .*is it the same image"),
        ({"file_name": "sub/image-1.png"}, "'sub/image-1.png' could not be read in"),
    ],
)
def test_document_of_other_images_is_one_line(change: Row, message: str, tmp_path: Path) -> None:
    labels = write_job(write_images(f"{tmp_path}/images"), f"{tmp_path}/labels")
    document = exported(labels, tmp_path / "a.json")
    document["images"][0] |= change
    document["annotations"] = []
    with pytest.raises(UserError, match=message):
        imported(document, tmp_path, labels)


def test_image_that_is_there_twice_is_one_line(labels: LabelDataset, tmp_path: Path) -> None:
    document = exported(labels, tmp_path / "a.json")
    document["images"].append(document["images"][0] | {"id": 999})
    with pytest.raises(UserError, match="has 2 images of the name"):
        imported(document, tmp_path, labels)


def test_short_name_that_may_be_two_images_is_one_line(labels: LabelDataset, tmp_path: Path) -> None:
    document = document_of([]) | {"images": [{"id": 99, "file_name": "b.png", "height": HEIGHT, "width": WIDTH}]}
    with pytest.raises(UserError, match=r"'b.png' may be 'a/b.png' or 'c/b.png' of .*: give file names that are keys"):
        imported(document | {"annotations": []}, tmp_path, labels)


def test_import_does_not_overwrite(labels: LabelDataset, tmp_path: Path) -> None:
    imported(exported(labels, tmp_path / "a.json"), tmp_path, labels)
    with pytest.raises(JobError, match="holds a job already"):
        imported(exported(labels, tmp_path / "b.json"), tmp_path, labels)


def test_import_twice_is_the_same_labels(labels: LabelDataset, tmp_path: Path) -> None:
    document = exported(labels, tmp_path / "a.json")
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
        imported(document, folder, labels)
    first, second = ({k: v for k, v in files_of(f"{folder}/corrected").items() if "_m" not in k} for folder in folders)
    assert first == second


def test_command_line(labels: LabelDataset, tmp_path: Path) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli, [*arguments], catch_exceptions=True)

    exported(labels, tmp_path / "a.json")
    found = call("import", "coco", f"{tmp_path}/a.json", "--job", labels.url, "-o", f"{tmp_path}/back", "--json")
    written = ImportSummary(**json.loads(found.stdout))
    assert (written.images, written.left_out) == (labels.record.images, 0)
    assert "nothing to do: no unit is left" in call("resume", f"{tmp_path}/back").stderr
    assert "proven" in call("validate", f"{tmp_path}/back").stderr
    assert "import:coco" in call("query", f"{tmp_path}/back", "SELECT DISTINCT model FROM annotations").stdout
    for arguments in (
        ["kitti", "a"],
        ["coco", f"{tmp_path}/none"],
        ["coco", "a", "--job", labels.url, "--images", "b"],
    ):
        error = call("import", *arguments, "-o", f"{tmp_path}/new").exception
        assert isinstance(error, PrelabelError)
        assert error.exit_code == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='\\"[]{},:é🐈 \n1'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='\\"[]{},a'), inner, max_size=4),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    document=st.dictionaries(st.text(alphabet='\\"[]{},ab'), st.lists(VALUES, max_size=6) | VALUES, max_size=5),
    indent=st.none() | st.just(1),
    chunk=st.integers(1, 40),
)
def test_json_read_in_pieces_is_the_same(
    document: Row, indent: int | None, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_document, "CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(document, indent=indent, ensure_ascii=False))
    read = json_document.JsonDocument(str(file))
    for name, value in document.items():
        spans = read.spans(name)
        assert (spans is not None) == isinstance(value, list)
        if spans is not None:
            assert [*read.parse(spans)] == value
            assert [*read.parse(spans[::-1])] == value[::-1]


@pytest.mark.parametrize(
    "text", ["", "[]", "1", '{"a": [1, 2]', '{"a": [1', '{"a": ["', '{"a": [1]} x', "\\", "]", "{{}"]
)
def test_text_that_is_no_object_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a.json is not a JSON document that can be read: "):
        json_document.JsonDocument(f"{tmp_path}/a.json")
