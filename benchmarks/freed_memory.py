"""A training step with `machine.keep_freed_memory` against one without, on a CPU.

Each runs in a process of its own, since the setting is one of a process, and they take turns, so
that a busy machine slows both alike. Page faults are those of a step: pages that the process asked
the kernel for, who clears each before it gives it away.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from multiprocessing.connection import Connection


def _steps(pipe: Connection, keep: bool, size: int, batch: int, threads: int) -> None:
    """Make a step whenever asked, and answer with its seconds and page faults."""
    import resource

    import torch

    from benchmarks.adaptation_step import TWIN, build, make_batch, stepper
    from da_leukemia.config import Detector, load_method
    from da_leukemia.machine import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    task = build(load_method(TWIN), Detector(), device)
    step = stepper(task, make_batch(batch, size, 0, device), device, bf16=False)
    while pipe.recv():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = step()
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Time both, print a table, and return the ratio of the step times, without to with."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.freed_memory",
        description="Time a source-only step on a CPU that keeps the memory it frees, and one that "
        "gives it back.",
    )
    parser.add_argument("--size", type=int, default=320, help="side of the images")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    given = parser.parse_args(arguments)

    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, keep in (("given back", False), ("kept", True)):
        here, there = context.Pipe()
        work = (there, keep, given.size, given.batch, given.threads)
        context.Process(target=_steps, args=work, daemon=True).start()
        pipes[name] = here
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in pipes}
    for turn in range(given.warmup + given.repeats):
        for name, pipe in pipes.items():
            pipe.send(True)
            answer = pipe.recv()
            found[name] += [answer] if turn >= given.warmup else []
    for pipe in pipes.values():
        pipe.send(False)
    seconds = {name: statistics.median(s for s, _ in each) for name, each in found.items()}
    print(
        f"{given.batch} images of {given.size} px, {given.threads} threads, {given.repeats} steps"
    )
    print(f"{'freed memory':<14}{'ms':>8}{'page faults':>14}")
    for name, each in found.items():
        faults = statistics.median(f for _, f in each)
        print(f"{name:<14}{1000 * seconds[name]:>8.0f}{faults:>14.0f}")
    ratio = seconds["given back"] / seconds["kept"]
    print(f"given back / kept: {ratio:.2f}")
    return {"ratio": ratio}


if __name__ == "__main__":
    main()
