"""The fork server of a sweep: a process with torch loaded, from which others start in milliseconds.

The runner itself never loads torch: what needs it runs in a process of its own (see `call`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

from da_leukemia.errors import UserError
from da_leukemia.sweep.attempt import resolve


def start_server(worker: str, threads: int = 1) -> ForkServerContext:
    """Start the fork server with the worker imported, and see that it is.

    Args:
        worker: see `attempt.resolve`.
        threads: CPU threads of a job.

    Raises:
        UserError: the worker cannot be imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.partition(":")[0]])
    # Read once, when the libraries are loaded; BLAS makes its threads then, and a process with
    # threads is no safe one to fork.
    names = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": 1}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        call(context, resolve, worker)  # the server swallows an ImportError in what it loads
    except UserError:
        raise
    except (RuntimeError, OSError, EOFError) as error:  # any other exception ends the server
        raise UserError(f"the worker {worker} cannot be loaded:\n{error or 'see above'}") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def call(context: ForkServerContext, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in a process forked from the server and wait for its end.

    Raises:
        UserError: as raised by the function.
        RuntimeError: any other exception of it, with its traceback.
        EOFError: the process was killed.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    try:
        process.start()
        sender.close()
        error, trace = receiver.recv()
    finally:
        receiver.close()
        if process.pid is not None:
            process.kill()
            process.join()
    if error is not None:
        raise error
    if trace:
        raise RuntimeError(trace)


def _answer(sender: Connection, function: Callable[..., object], arguments: tuple[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner's business
    try:
        function(*arguments)
    except UserError as error:
        sender.send((error, ""))
    except Exception:
        sender.send((None, traceback.format_exc()))
    else:
        sender.send((None, ""))
