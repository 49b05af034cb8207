"""Choosing images for people to look at: whom a rule prefers, and that probabilities are what they are said to be."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from click.testing import CliRunner
from drawn import by_chance, hits, probabilities
from jobs import CATEGORIES, FAILED, MODEL, files_of, write_images
from labels import Row, box, write_labels

from prelabel.pipeline import open_dataset
from prelabel.pipeline.cli import cli
from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.exports import exporter_of
from prelabel.pipeline.query import ask, connect
from prelabel.pipeline.review import Place, Review
from prelabel.pipeline.sampling import Sample, choose, open_sample
from prelabel.pipeline.sampling.drawing import draw
from prelabel.pipeline.sampling.labels import SampledLabels
from prelabel.pipeline.validate import validate
from prelabel.schemas.errors import UserError
from prelabel.schemas.tables import SAMPLES

IMAGES, EMPTY, DOUBTFUL, RARE = 30, {7, 8, 9}, {10, 20}, {5, 15, 25}
BALL, LEAF = CATEGORIES
RULES = ("random", "uncertainty", "diversity")


def objects(image: Row) -> list[Row]:
    """Two sure balls; in DOUBTFUL images three objects with scores near 0.5; in RARE ones a leaf."""
    image_id = image["image_id"]
    if image_id in EMPTY | {FAILED}:
        return []
    scores = [0.9, 0.8] + ([0.55, 0.5, 0.49] if image_id in DOUBTFUL else [])
    kinds = [LEAF if image_id in RARE else BALL] + [BALL] * len(scores)
    return [
        {"category_id": kind.id, "category": kind.name, "score": score, "bbox": box(rank, 1, 8, 9)}
        for rank, (kind, score) in enumerate(zip(kinds, scores, strict=False))
    ]


def write_objects(folder: Path, of: Callable[[Row], list[Row]], output: str = "labels") -> LabelDataset:
    def rows(image: Row) -> dict[str, list[Row]]:
        found, image_id = of(image), image["image_id"]
        image["num_annotations"] = len(found)
        common = {"image_id": image_id, "area": 72.0, "iscrowd": False, "model": MODEL}
        return {"annotations": [one | common | {"annotation_id": 65_536 * image_id + k} for k, one in enumerate(found)]}

    source = write_images(f"{folder}/images", IMAGES)
    return write_labels(source, f"{folder}/{output}", rows, ["detect"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_objects(folder, objects)
    return folder


@pytest.fixture
def labels(written: Path, tmp_path: Path) -> LabelDataset:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return LabelDataset(f"{tmp_path}/labels")


def by_image(sample: Sample, column: str) -> dict[int, Any]:
    return dict(zip(sample.rows["image_id"].to_pylist(), sample.rows[column].to_pylist(), strict=True))


def certain(sample: Sample) -> set[int]:
    """The images that the rule always takes."""
    return {image_id for image_id, probability in by_image(sample, "probability").items() if probability == 1}


@pytest.mark.parametrize("by", RULES)
def test_sample_is_of_the_budget_and_kept(by: str, labels: LabelDataset) -> None:
    sample = choose(labels, by, 12, seed=3)
    assert sample.rows.schema == SAMPLES
    assert len(sample.rows) == 12
    assert sample.rows["weight"].to_pylist() == [1 / p for p in sample.rows["probability"].to_pylist()]
    assert open_sample(labels).rows == open_sample(labels, f"{by}-12-3").rows == sample.rows
    with connect(labels) as connection:
        assert ask(connection, "SELECT count(*) FROM samples").fetchall() == [(12,)]
        assert ask(connection, sample.sql).columns == ["image_id", "key", "reason", "weight", "probability"]
    assert not list(validate(labels.url).violations.kept)


@pytest.mark.parametrize("by", RULES)
def test_the_same_seed_chooses_the_same_images(by: str, labels: LabelDataset) -> None:
    first = choose(labels, by, 10, seed=1)
    before = files_of(labels.url)
    assert choose(labels, by, 10, seed=1).rows == first.rows
    assert files_of(labels.url) == before
    assert by_image(choose(labels, by, 10, seed=2), "key") != by_image(first, "key")


def test_budget_above_the_number_of_images_takes_all(labels: LabelDataset) -> None:
    sample = choose(labels, "uncertainty", 10 * IMAGES)
    assert sample.rows["image_id"].to_pylist() == list(range(IMAGES))
    assert set(sample.rows["weight"].to_pylist()) == {1.0}
    strata, reasons = by_image(sample, "stratum"), by_image(sample, "reason")
    assert {image_id for image_id, stratum in strata.items() if stratum == "empty"} == EMPTY
    assert (strata[FAILED], reasons[FAILED]) == ("failed", "failed: truncated")
    assert reasons[min(EMPTY)] == "empty: nothing was found"
    assert reasons[10] == "uncertainty: ball 0.50 and others"
    assert reasons[0] == "chance"


def test_uncertainty_prefers_scores_near_the_threshold(labels: LabelDataset) -> None:
    sample = choose(labels, "uncertainty", 8)
    assert certain(sample) == DOUBTFUL
    assert max(by_image(sample, "weight").values()) < 2 * IMAGES / 8
    high = choose(labels, "uncertainty", IMAGES, score_threshold=0.85, name="high")
    assert by_image(high, "reason")[0] == "uncertainty: ball 0.90 and others"
    assert by_image(high, "score_threshold")[0] == 0.85


def test_diversity_gives_categories_the_same_share(labels: LabelDataset) -> None:
    sample = choose(labels, "diversity", 4)
    found, reasons = by_image(sample, "probability"), by_image(sample, "reason")
    asked = (1 - 1 / 30 - 3 / 30) / 2  # of the share that is not by chance: less the failed and the empty, in two
    shares = {"ball": 0.5 / 30 + 0.5 * asked / 23, "leaf": 0.5 / 30 + 0.5 * asked / 3}
    for image_id, probability in found.items():
        if image_id not in EMPTY | {FAILED}:
            name = "leaf" if image_id in RARE else "ball"
            assert probability == pytest.approx(4 * shares[name])
            assert reasons[image_id] == f"diversity: {name}, in {26 if name == 'ball' else 3} of the images"


def test_disagreement_prefers_what_another_job_has_not(labels: LabelDataset, tmp_path: Path) -> None:
    changed = {3, 13}
    other = write_objects(tmp_path, lambda image: objects(image)[: -2 if image["image_id"] in changed else None], "new")
    sample = choose(labels, "disagreement", IMAGES, other=other)
    assert {image_id for image_id, why in by_image(sample, "reason").items() if why == "disagreement: 2 vanished"} == (
        changed
    )
    assert certain(choose(labels, "disagreement", 8, other=other)) == changed
    with pytest.raises(UserError, match="needs --other URL"):
        choose(labels, "disagreement", 3)
    with pytest.raises(UserError, match="no other rule takes it"):
        choose(labels, "random", 3, other=other)


# The draw, against NumPy's


def drawing(strata: np.ndarray, sizes: np.ndarray, places: np.ndarray) -> duckdb.DuckDBPyConnection:
    connection, count = duckdb.connect(), len(strata)
    table = {"image_id": np.arange(count), "stratum": strata, "size": sizes, "place": places}
    connection.register("rows", pa.table(table | {"key": [""] * count, "reason": [""] * count}))
    connection.execute("CREATE TABLE measured AS FROM rows")
    return connection


@pytest.mark.parametrize(("sized", "budget"), [(True, 60), (True, 300), (False, 60), (True, 1)])
def test_draw_is_that_of_numpy(sized: bool, budget: int) -> None:
    rng = np.random.default_rng(5)
    strata = rng.choice(["found", "empty", "failed"], 400, p=[0.6, 0.3, 0.1])
    sizes = (1e6 * rng.gamma(0.3, size=400)).astype(int) * (strata == "found") * sized
    places = rng.choice(["a", "b", "c"], 400)
    expected = probabilities(strata, sizes, budget)
    assert expected.sum() == pytest.approx(budget)
    with drawing(strata, sizes, places) as connection:
        for seed in range(4):
            found = draw(connection, budget, seed)
            chance = [by_chance(image_id, seed) for image_id in range(400)]
            start = np.random.default_rng(seed).integers(2**40) / 2**40
            ids = hits(expected, np.lexsort((chance, places, strata)), start)
            assert found["image_id"].to_pylist() == ids.tolist()
            np.testing.assert_allclose(found["probability"], expected[ids], rtol=1e-9)
            assert len(ids) == budget


def test_images_are_drawn_as_often_as_their_probabilities_say() -> None:
    rng = np.random.default_rng(6)
    strata = rng.choice(["found", "empty"], 50)
    expected = probabilities(strata, rng.integers(0, 9, 50) * (strata == "found"), 12)
    seeds = 4_000
    drawn: Counter[int] = Counter()
    for seed in range(seeds):
        chance = np.random.default_rng(seed)
        drawn.update(hits(expected, np.lexsort((chance.random(50), strata)), chance.random()).tolist())
    frequency = np.array([drawn[image_id] / seeds for image_id in range(50)])
    assert (abs(frequency - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / seeds)).all()


# What is written


def test_export_has_the_images_their_reasons_and_weights(labels: LabelDataset, tmp_path: Path) -> None:
    sample = choose(labels, "uncertainty", 20, score_threshold=0.85)
    exporter_of("coco").write(SampledLabels(labels, sample), f"{tmp_path}/sample.json")
    document = json.loads(Path(tmp_path, "sample.json").read_bytes())
    chosen = [row for row in sample.rows.to_pylist() if row["stratum"] != "failed"]
    assert [(one["id"], one["sampling_reason"], one["sampling_weight"]) for one in document["images"]] == [
        (row["image_id"], row["reason"], row["weight"]) for row in chosen
    ]
    sure = {row["image_id"] for row in chosen} - EMPTY
    assert {(one["image_id"], round(one["score"], 2)) for one in document["annotations"]} == {(i, 0.9) for i in sure}


def test_export_reads_the_units_of_the_sample_alone(labels: LabelDataset, tmp_path: Path) -> None:
    sample = choose(labels, "random", 1)
    unit = next(iter(by_image(sample, "image_id"))) // 3
    for part in (tmp_path / "labels" / "annotations").iterdir():
        if part.name != f"part-{unit:08d}.parquet":
            part.unlink()
    assert exporter_of("coco").write(SampledLabels(labels, sample), f"{tmp_path}/one.json").images == 1


def prelabel(*arguments: object) -> str:
    ended = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_command_writes_a_table_or_an_export(labels: LabelDataset, tmp_path: Path) -> None:
    asked = ("sample", labels.url, "--by", "uncertainty", "--budget", 8)
    said = prelabel(*asked, "--to", tmp_path / "sample.csv")
    assert "sample uncertainty-8-0: 8 images" in said
    assert "prelabel review" in said
    table = pa.csv.read_csv(tmp_path / "sample.csv")
    assert table.column_names == ["image_id", "key", "reason", "weight", "probability"]
    assert table["image_id"].to_pylist() == open_sample(labels).rows["image_id"].to_pylist()
    assert "images" in prelabel(*asked, "--format", "coco", "--to", tmp_path / "sample.json")
    assert (tmp_path / "sample.json").exists()
    where = open_sample(labels).where
    prelabel("export", "coco", labels.url, "--to", tmp_path / "again.json", "--where", where)
    again, exported = (json.loads((tmp_path / name).read_bytes()) for name in ("again.json", "sample.json"))
    assert again["annotations"] == exported["annotations"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "beauty"}, "no rule 'beauty': choose from random, uncertainty, disagreement, diversity"),
        ({"by": "random", "name": "../../x"}, "letters, digits"),
        ({"by": "random", "name": "taken"}, "another sample 'taken'"),
    ],
)
def test_mistake_is_one_line(labels: LabelDataset, options: Row, said: str) -> None:
    choose(labels, "random", 5, name="taken")
    with pytest.raises(UserError, match=said) as caught:
        choose(labels, budget=6, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no sample 'gone': give --sample taken"):
        open_sample(labels, "gone")


def test_job_with_nothing_in_common_is_told(labels: LabelDataset, tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/others/of")
    others = write_labels(f"{tmp_path}/others", f"{tmp_path}/other", lambda _: {"annotations": []}, ["detect"])
    with pytest.raises(UserError, match="have no image in common"):
        choose(labels, "disagreement", 5, other=others)
    segments = write_labels(source, f"{tmp_path}/segments", lambda _: {"segments": []}, ["fuse_panoptic"])
    with pytest.raises(UserError, match=r"^.*/segments have no objects"):
        choose(labels, "disagreement", 5, other=segments)
    assert not labels.parts("samples")


def test_job_without_images_is_told(tmp_path: Path) -> None:
    source = write_images(f"{tmp_path}/images", 3)
    write_labels(source, f"{tmp_path}/labels", lambda _: {"annotations": []}, ["detect"], units=0)
    with pytest.raises(UserError, match="has no images yet"):
        choose(open_dataset(f"{tmp_path}/labels"), "diversity", 5)
    with pytest.raises(UserError, match="has no sample: choose images"):
        open_sample(open_dataset(f"{tmp_path}/labels"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "label-studio"], "--to is a path: give --format label-studio --to PATH"),
        (["--format", "coco"], "--format coco needs --to PATH"),
        (["--format", "doc", "--to", "x"], "--format doc: choose from csv, json"),
    ],
)
def test_mistake_of_the_command_costs_no_sample(labels: LabelDataset, options: list[str], said: str) -> None:
    asked = ["sample", labels.url, "--by", "random", "--budget", "3", *options]
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert not labels.parts("samples")


def test_review_opens_with_a_condition(labels: LabelDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(review: Review, place: Place, ready: Callable[[str], object]) -> None:
        review.stop()
        ready("http://here:1/?token=t")

    monkeypatch.setattr("prelabel.pipeline.review.serve", serve)
    choose(labels, "random", 3)
    said = prelabel("review", labels.url, "--no-open", "--where", open_sample(labels).where)
    address = said.partition(" at ")[2].partition(" (")[0]
    assert parse_qs(urlsplit(address).query) == {"token": ["t"], "sql": [open_sample(labels).where]}
