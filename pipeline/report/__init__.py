"""A job drawn up as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.evaluate import evaluate
from prelabel.pipeline.evaluate.truth import Truth, read_truth
from prelabel.pipeline.report.blocks import Cell, Section, short_names, shown
from prelabel.pipeline.report.choices import Choices, Drawn
from prelabel.pipeline.report.figures import Figures, Row
from prelabel.pipeline.report.gallery import gallery_section
from prelabel.pipeline.report.history import job_section, speed_section
from prelabel.pipeline.report.page import Page, render
from prelabel.pipeline.report.sections import (
    box_section,
    category_section,
    failure_section,
    image_section,
    label_section,
    review_section,
    segment_section,
)
from prelabel.pipeline.report.truth import f1_by_image, truth_section
from prelabel.pipeline.storage import writing

__all__ = ["write_report"]

GALLERY = 12
SCORE_THRESHOLD = 0.3


def write_report(
    dataset: LabelDataset,
    to: str,
    truth: str | None = None,
    gallery: int = GALLERY,
    score_threshold: float = SCORE_THRESHOLD,
    seed: int = 0,
) -> int:
    """Writes one HTML file that says all about a job and needs nothing else; returns its size in bytes.

    The same job, versions and options give the same file.

    Args:
        dataset: the job, finished or not
        to: path or URL of the file
        truth: URL of a COCO instances, keypoints or panoptic document to measure against
        gallery: images of a group, at most
        score_threshold: labels that score lower are left out of the pictures
        seed: chooses the random images

    Raises:
        UserError: the truth can't be compared with the job.
        JobError: a part is missing or damaged, or the file can't be written.
    """
    with writing(to) as file, closing(Figures(dataset)) as figures:
        html = render(_page(dataset, figures, truth, (gallery, score_threshold, seed)))
        file.write(html)
    return len(html)


def _page(dataset: LabelDataset, figures: Figures, truth: str | None, pictures: tuple[int, float, int]) -> Page:
    images, names, tables = (
        figures.images(),
        short_names({one.id: one.name for one in dataset.categories}),
        dataset.record.tables,
    )
    expected = read_truth(truth, dataset) if truth else None
    sections = [
        truth_section(evaluate(dataset, expected)) if expected else None,
        _gallery(dataset, figures, expected, names, pictures),
        category_section(figures, names) if "annotations" in tables else None,
        next((box_section(figures, table) for table in ("annotations", "proposals") if table in tables), None),
        image_section(figures, "annotations" in tables),
        segment_section(figures, names, images["pixels"]),
        label_section(figures, names),
        review_section(figures),
        failure_section(dataset, figures),
        speed_section(dataset),
        job_section(dataset),
    ]
    return Page(shown(dataset.url), _status(dataset), _lead(images, figures, tables), [one for one in sections if one])


def _gallery(
    dataset: LabelDataset,
    figures: Figures,
    truth: Truth | None,
    names: Mapping[int, str],
    pictures: tuple[int, float, int],
) -> Section | None:
    count, threshold, seed = pictures
    drawn = Drawn.of(dataset, threshold)
    choices = Choices(figures, drawn, count)
    if truth and not truth.is_panoptic and drawn and drawn.kind == "annotations":
        f1, failed = f1_by_image(dataset, truth, threshold), figures.failed()
        choices.by_truth({image: one for image, one in f1.items() if image not in failed})
    else:
        choices.by_score()
    choices.rarest(names)
    choices.random(seed)
    choices.without()
    return gallery_section(dataset, figures, choices.groups, drawn, names) if choices.groups else None


def _status(dataset: LabelDataset) -> str:
    done, planned = len(dataset.units), dataset.record.units
    if dataset.is_complete:
        return f"Complete: {planned:,} of {planned:,} units are committed."
    return f"Not complete: {done:,} of {planned:,} units are committed, and this report is about them."


def _lead(images: Row, figures: Figures, tables: Sequence[str]) -> list[tuple[str, Cell]]:
    rows = [(table, figures.count(table)) for table in ("annotations", "segments", "proposals") if table in tables]
    empty = [("without objects", images["empty"])] if "annotations" in tables else []
    sizes = [("megapixels", images["pixels"] / 1e6), ("megabytes", images["bytes"] / 1e6)]
    return [*((what, images[what]) for what in ("images", "labeled", "failed")), *empty, *rows, *sizes]
