"""Commands that read the tables: export, query."""

from __future__ import annotations

import click

from prelabel.pipeline.cli.terminal import tell_unfinished


@click.command()
@click.argument("format_name", metavar="FORMAT")
@click.argument("url")
@click.option("--to", required=True, metavar="PATH", help="The file or folder to write, which must not be there yet.")
@click.option(
    "--score-threshold",
    "thresholds",
    metavar="X|CATEGORY=X|FILE",
    multiple=True,
    help="Leave out objects that score lower; a FILE is what `prelabel evaluate --thresholds FILE` writes.",
)
@click.option("--category", "categories", metavar="NAME", multiple=True, help="Leave out objects of other categories.")
@click.option("--where", metavar="SQL", help="Leave out images and objects for which this expression does not hold.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Most images.")
@click.option(
    "--images",
    metavar="copy|link|none|URL",
    default="none",
    show_default=True,
    help="Put the images beside the labels, or link to them, or give the URL that their names are appended to.",
)
def export(
    format_name: str,
    url: str,
    to: str,
    thresholds: tuple[str, ...],
    categories: tuple[str, ...],
    where: str | None,
    limit: int | None,
    images: str,
) -> int:
    """Write the labels, or some of them, in another tool's format.

    \b
    FORMAT is one of
      coco            an instances document
      coco-results    what pycocotools' loadRes takes; coco-proposals likewise
      coco-keypoints  a document like person_keypoints
      coco-panoptic   a document, and a folder of PNGs beside it
      label-studio    tasks with predictions, and their labeling configuration
      cvat            CVAT for images 1.1; cvat-coco: COCO as CVAT imports it
      yolo            boxes for Ultralytics and others; yolo-segment: polygons; yolo-pose: keypoints
      voc             Pascal VOC: XML, PNGs of classes and of objects
      fiftyone        a COCODetectionDataset
      hf              Parquet for datasets.load_dataset
      webdataset      tars of images with their labels beside them
    The others than coco's write a folder. Each is told of in docs/ and README.md.

    --score-threshold and --category choose objects and segments; their images stay, though none of their objects may.
    A number is for all categories, CATEGORY=X and files are for theirs; a segment without a score stays.

    --where is true or false of an object and its image, by the columns of images and annotations, and by verdict,
    reviewer and note of the last review of the object, or else of its image. An object stays if it is true of it. An
    image stays if it is true of one of its objects, or of the image by itself, when the columns of annotations are
    NULL. Segments have no columns there; they stay with their image.

    Ids stay those of the job.

    \b
    Examples:
      prelabel export coco labels --to labels.json
      prelabel export coco-results labels --to results.json
      prelabel export coco-panoptic labels --to panoptic.json
      prelabel export cvat labels --to cvat --images copy
      prelabel export label-studio labels --to tasks --images https://images.example.com/
      prelabel export coco labels --to sure.json --score-threshold 0.5 --score-threshold person=0.8
      prelabel export coco labels --to sure.json --score-threshold thresholds.json --category person
      prelabel export coco labels --to accepted.json --where "verdict = 'accept'"
      prelabel export coco labels --to todo.json --where "width > 1000 AND verdict IS NULL" --limit 500
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.exports import exporter_of
    from prelabel.pipeline.selection import score_thresholds
    from prelabel.pipeline.terminal import progress_bar

    exporter, dataset = exporter_of(format_name), open_dataset(url)
    tell_unfinished(url, dataset, "exported")
    lowest = score_thresholds(thresholds, dataset.categories)
    selection = dataset.select(lowest, categories or None, where, limit)
    with progress_bar(of="rows") as advance:
        written = exporter.write(selection, to, images, advance)
    left_out = ", ".join(f"{rows:,} {name}" for name, rows in selection.left_out.items() if rows)
    more = f"; left out: {left_out}" if left_out else ""
    click.echo(f"{written.to}: {written.annotations:,} annotations of {written.images:,} images{more}", err=True)
    for note in written.notes:
        click.echo(note, err=True)
    return 0


@click.command()
@click.argument("url")
@click.argument("sql")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "csv", "json", "parquet", "arrow"]),
    help="[default: by --to's suffix; a table on a terminal, csv elsewhere]",
)
@click.option("--to", metavar="PATH", help="The file to write. [default: standard output]")
@click.option("--rows", default=40, show_default=True, type=click.IntRange(1), metavar="N", help="Most to show.")
def query(url: str, sql: str, format_name: str | None, to: str | None, rows: int) -> int:
    """Answer a question in SQL, by DuckDB over the committed rows.

    There are the tables images, annotations, segments, proposals and reviews, and verdicts: what each reviewer said
    last. The question reads them and nothing else.

    \b
    Examples:
      prelabel query labels "SELECT category, count(*) FROM annotations GROUP BY category ORDER BY 2 DESC"
      prelabel query s3://bucket/labels "SELECT key FROM images WHERE num_annotations = 0" --to empty.csv
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.query import query as answer

    answer(open_dataset(url), sql, format_name, to, rows)
    return 0
