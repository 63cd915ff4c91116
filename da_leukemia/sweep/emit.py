"""What is left of a sweep as commands, or as a script for SLURM. Needs neither of the extras."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from da_leukemia.config import Experiment
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.plan import unique
from da_leukemia.sweep.status import survey

_HERE = ("executor=local", "processes=1")


def commands(experiment: Experiment, path: str, settings: Sequence[str]) -> str:
    """Return one line for each job that is not done, to be run in this folder, in any order.

    Args:
        experiment: the sweep.
        path: its file, as given.
        settings: ``key=value``, as given.
    """
    _, standings = survey(experiment)
    return "\n".join(
        shlex.join(["da-leukemia", "sweep", "run", path, *settings, *_HERE, "--job", job_hash])
        for job_hash, standing in standings.items()
        if standing.state is not State.DONE
    )


def sbatch(experiment: Experiment, path: str, settings: Sequence[str]) -> str:
    """Return a job array for ``sbatch``, each task of which runs a shard.

    Before its time is over, and when it is pre-empted, a task ends its job and is requeued; the
    job goes on from its last epoch. Arguments as of `commands`.
    """
    slurm = experiment.slurm
    entries, standings = survey(experiment)
    left = sum(s.state is not State.DONE for s in standings.values())
    total = len(unique(job for job, _ in entries))
    tasks = max(1, min(slurm.tasks, -(-left // slurm.jobs_per_task), total))
    options = {
        "job-name": experiment.name,
        "array": f"1-{tasks}%{min(tasks, slurm.at_a_time)}",
        "time": str(slurm.minutes),
        "signal": f"B:USR2@{slurm.warning_seconds}",
        "cpus-per-task": str(slurm.cpus or experiment.trainer.threads),
        "mem": f"{round(1024 * slurm.memory_gb)}M" if slurm.memory_gb else "",
        "gres": f"gpu:{slurm.gpus}" if slurm.gpus else "",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "output": str(experiment.folder / "slurm" / "%A_%a.log"),
        "open-mode": "append",
    }
    asked = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items() if value]
    run = shlex.join(["da-leukemia", "sweep", "run", path, *settings, *_HERE, "--shard"])
    lines = [
        "#!/bin/bash",
        *asked,
        "#SBATCH --requeue",
        *slurm.setup,
        "again() {",
        "  trap '' TERM",
        '  kill -TERM "$runner"; wait "$runner"',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"; exit 0',
        "}",
        "trap again USR2",
        f'{run} "$SLURM_ARRAY_TASK_ID/{tasks}" &',
        "runner=$!",
        'wait "$runner"',
    ]
    return "\n".join(lines)
