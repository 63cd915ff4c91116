"""Settings of the executors that are not the machine itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Slurm:
    """What each task of the job array asks for. Empty and 0 leave it to the cluster's defaults."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    minutes: int = 240  # time limit; a job that needs longer is requeued and goes on
    warning_seconds: int = 120  # before it, to be requeued
    cpus: int = 0  # of a task; default: trainer.threads
    memory_gb: float = 8.0
    gpus: int = 0  # of a task: 1 or 0
    jobs_per_task: int = 1  # one after the other in one task, torch is imported once
    at_a_time: int = 256  # tasks
    tasks: int = 1000  # in one array, at most (the cluster's MaxArraySize - 1)
    setup: list[str] = field(default_factory=list)  # shell lines before Python, e.g. module load


@dataclass
class Ray:
    """The cluster, and what each job asks of it."""

    address: str = "auto"  # HOST:PORT of a running cluster; auto: the one of this machine
    start: bool = False  # start one on this machine, for the time of the run
    cpus: float = 0.0  # of a job; default: trainer.threads
    gpus: float = 0.0  # of a job; a share such as 0.5 puts two on one GPU
