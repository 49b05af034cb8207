"""The job on Ray: the only package that imports it."""

from prelabel.pipeline.graph.describe import Description, Question, describe
from prelabel.pipeline.graph.session import cluster, resources
from prelabel.pipeline.graph.waves import Work, label_wave

__all__ = ["Description", "Question", "Work", "cluster", "describe", "label_wave", "resources"]
