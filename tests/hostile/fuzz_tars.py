"""Fuzzes the tar index with atheris: bytes end as members that lie within the file, or as a SourceError.

Not run by pytest. In an environment of its own:

    pip install --constraint constraints.txt atheris .
    python tests/hostile/fuzz_tars.py -max_total_time=300 -rss_limit_mb=1024 -timeout=20 CORPUS

CORPUS is a folder that begins with some tars, or an empty one.
"""

import sys

import atheris

with atheris.instrument_imports(include=["tarfile", "prelabel"]):
    from fsspec.implementations.memory import MemoryFileSystem

    from prelabel.pipeline.sources import source_of_kind
    from prelabel.pipeline.sources.base import Shard
    from prelabel.schemas.errors import SourceError

URI = "memory://fuzz/x.tar"
SOURCE = source_of_kind("webdataset", URI)


def index_once(data: bytes) -> None:
    """Anything but a SourceError is a finding, and so is a member that lies outside of the file, or a hang."""
    MemoryFileSystem().pipe_file("/fuzz/x.tar", data)
    before, keys = 0, set()
    try:
        for image in SOURCE.index(Shard("webdataset", URI, len(data))):
            assert before < image.offset <= image.offset + image.size <= len(data)
            assert image.key not in keys
            before, _ = image.offset, keys.add(image.key)
    except SourceError as error:
        if "\n" in str(error):
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, index_once)
    atheris.Fuzz()
