"""Commands that bring labels back: import."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from prelabel.pipeline.options import json_option, option


@click.command("import")
@click.argument("format_name", metavar="FORMAT")
@click.argument("file")
@option("--output", "-o", metavar="URL", required=True, help="Folder for the new job; must be new or empty.")
@click.option("--job", metavar="URL", help="The job that was exported: its images are the document's.")
@click.option(
    "--images",
    metavar="URL",
    help="Without --job: the folder that file names are relative to, for who wants to see the images.",
)
@json_option
def import_labels(format_name: str, file: str, output: str, job: str | None, images: str | None, as_json: bool) -> int:
    """Make a job of corrected labels, to set beside the one that was exported.

    FORMAT is coco (an instances or keypoints document: boxes, polygons, run-length masks) or label-studio (its JSON
    export). What a labeling tool wrote becomes tables like those of a model's labels, by the model import:FORMAT;
    evaluate, compare, query, review, report and export take them like any other job.

    With --job the images are those of that job that the document holds, found by id and name, or by name; without it,
    the document alone says which images there are.

    \b
    Examples:
      prelabel import coco corrected.json --job labels --output corrected
      prelabel compare labels corrected
      prelabel import coco instances.json --images photos --output truth
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.imports import importer_of
    from prelabel.pipeline.imports.write import write_import
    from prelabel.pipeline.terminal import progress_bar
    from prelabel.schemas.errors import UserError

    if job and images:
        raise UserError("--images goes without --job, which knows where its images are")
    importer_class, of = importer_of(format_name), open_dataset(job) if job else None
    with progress_bar(phase="import") as advance:
        written = write_import(importer_class(file), output, of, images, advance)
    if as_json:
        click.echo(json.dumps(asdict(written)))
        return 0
    click.echo(f"{written.output}: {written.annotations:,} annotations of {written.images:,} images", err=True)
    if written.left_out:
        click.echo(f"{written.left_out:,} more images of {job} are not in {file}, and not in {output}", err=True)
    return 0
