"""The job on Ray: the only package that imports it."""

from prelabel.pipeline.graph.count import Fates, Limits
from prelabel.pipeline.graph.describe import Description, Question, describe
from prelabel.pipeline.graph.session import cluster, resources
from prelabel.pipeline.graph.waves import calibrate, label_wave, probe
from prelabel.pipeline.graph.worker import CANNOT_LOAD, Work

__all__ = [
    "CANNOT_LOAD",
    "Description",
    "Fates",
    "Limits",
    "Question",
    "Work",
    "calibrate",
    "cluster",
    "describe",
    "label_wave",
    "probe",
    "resources",
]
