"""Settings of an experiment: the schema, and how files become it."""

from da_leukemia.config.files import (
    complete,
    load_experiment,
    load_job,
    load_method,
    save_experiment,
    save_job,
    shipped,
)
from da_leukemia.config.schema import (
    CALIBRATED,
    CALIBRATIONS,
    Augmentation,
    Calibration,
    Data,
    Detector,
    Domain,
    Experiment,
    Job,
    Simulation,
    Split,
    Trainer,
    active_components,
)

__all__ = [
    "CALIBRATED",
    "CALIBRATIONS",
    "Augmentation",
    "Calibration",
    "Data",
    "Detector",
    "Domain",
    "Experiment",
    "Job",
    "Simulation",
    "Split",
    "Trainer",
    "active_components",
    "complete",
    "load_experiment",
    "load_job",
    "load_method",
    "save_experiment",
    "save_job",
    "shipped",
]
