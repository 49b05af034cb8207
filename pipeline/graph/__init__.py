"""The job on Ray: the only package that imports it."""

from prelabel.pipeline.graph.describe import Description, Question, describe
from prelabel.pipeline.graph.session import cluster, resources
from prelabel.pipeline.graph.waves import calibrate, label_wave
from prelabel.pipeline.graph.worker import Work

__all__ = ["Description", "Question", "Work", "calibrate", "cluster", "describe", "label_wave", "resources"]
