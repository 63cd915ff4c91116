"""A progress bar for long work in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done, total) that moves a bar, which stays hidden without a terminal."""
    with tqdm(desc=what, disable=None, leave=False) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress
