"""Plan, ledger, executors and the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from da_leukemia.config import Experiment


def run(experiment: Experiment) -> int:
    """Run a sweep: train what is not done, test, write the report and print the matrix.

    Call it under ``if __name__ == "__main__":`` in a script, as anything that starts processes.

    Args:
        experiment: as loaded from a file, or made in Python; its defaults are filled in place.

    Returns:
        0, or 1 where jobs failed, or 130 after an interruption.

    Raises:
        UserError: a configuration or data problem, known before a job starts.
    """
    from da_leukemia.sweep.conduct import run_sweep

    return run_sweep(experiment)
