"""What the tests of jobs on single cells share: two devices' settings, and a job's scores."""

from __future__ import annotations

from da_leukemia.config import Data, Domain
from da_leukemia.sweep import worker


def scores_of(folder):
    return {d: t["metrics"] for d, t in worker.read_result(folder)["tests"].items()}


def domains(**settings):
    data = Data(label_space="wbc5", image_size=33)
    data.domains = {"a": Domain(**settings), "b": Domain(**settings)}
    return data
