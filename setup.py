"""The three top-level folders install as prelabel.schemas, prelabel.operators and prelabel.pipeline.

The list of packages is computed: a written-out list would silently leave a new subpackage out of the wheel.
"""

from setuptools import find_packages, setup

setup(packages=[f"prelabel.{name}" for name in find_packages(include=["schemas*", "operators*", "pipeline*"])])
