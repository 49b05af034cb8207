"""Commands that read the tables: export, query."""

from __future__ import annotations

import click


@click.command()
@click.argument("format_name", metavar="FORMAT")
@click.argument("url")
@click.option("--to", required=True, metavar="PATH", help="The file to write.")
def export(format_name: str, url: str, to: str) -> int:
    """Write the labels in another tool's format.

    FORMAT is coco (an instances document), coco-results (what pycocotools' loadRes takes), coco-keypoints, or
    coco-panoptic (a document, and a folder of PNGs beside it).

    \b
    Examples:
      prelabel export coco labels --to labels.json
      prelabel export coco-results labels --to results.json
      prelabel export coco-panoptic labels --to panoptic.json
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.exports import exporter_of

    exporter, dataset = exporter_of(format_name), open_dataset(url)
    if not dataset.is_complete:
        click.echo(
            f"{url} is not finished: {len(dataset.units)} of {dataset.record.units} units are exported", err=True
        )
    written = exporter.write(dataset, to)
    click.echo(f"{written.to}: {written.annotations:,} annotations of {written.images:,} images", err=True)
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

    There are the tables images, annotations, segments and proposals. The question reads them and nothing else.

    \b
    Examples:
      prelabel query labels "SELECT category, count(*) FROM annotations GROUP BY category ORDER BY 2 DESC"
      prelabel query s3://bucket/labels "SELECT key FROM images WHERE num_annotations = 0" --to empty.csv
    """
    from prelabel.pipeline.dataset import open_dataset
    from prelabel.pipeline.query import query as answer

    answer(open_dataset(url), sql, format_name, to, rows)
    return 0
