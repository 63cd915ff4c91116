"""Settings of the executors that are not the machine itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from da_leukemia.bounds import number


@dataclass
class Slurm:
    """What each task of the job array asks for. Empty and 0 leave it to the cluster's defaults."""

    partition: str = ""  # sbatch --partition
    account: str = ""  # sbatch --account
    qos: str = ""  # sbatch --qos
    constraint: str = ""  # sbatch --constraint
    # time limit of a task; a job that needs longer is requeued and goes on
    minutes: int = number(240, least=1)
    # so long before the time limit a task is warned, to be requeued
    warning_seconds: int = number(120, least=1)
    cpus: int = number(0, least=0)  # of a task; 0: trainer.threads
    memory_gb: float = number(8.0, least=0)  # memory of a task
    gpus: int = number(0, 0, 1)  # of a task: 1 or 0
    # one after the other in one task, which imports torch once
    jobs_per_task: int = number(1, least=1)
    at_a_time: int = number(256, least=1)  # tasks of an array that run together
    tasks: int = number(1000, least=1)  # of one array, at most (the cluster's MaxArraySize - 1)
    setup: list[str] = field(default_factory=list)  # shell lines before Python, e.g. module load


@dataclass
class Ray:
    """The cluster, and what each job asks of it."""

    address: str = "auto"  # HOST:PORT of a running cluster; auto: the one of this machine
    start: bool = False  # start one on this machine, for the time of the run
    cpus: float = number(0.0, least=0)  # of a job; 0: trainer.threads
    gpus: float = number(0.0, least=0)  # of a job; a share such as 0.5 puts two on one GPU
