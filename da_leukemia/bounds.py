"""What a number of the settings may be, declared beside it. Free of torch.

``share(0.5)`` and ``number(1e-3, above=0, most=10)`` stand for the defaults in a dataclass of
settings; `config.check` reads the bounds where it looks at types and choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

_SHARES = 2
"""Bounds up to here are of shares, which some write in per cent."""

_PER_CENT = 5
"""From here on a number that should be a share is rather one in per cent than a slip."""


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers; None leaves a side open.

    Attributes:
        least: smallest number.
        most: largest number.
        above: what the number must be larger than.
        below: what the number must be smaller than.
        what: what the number is, for the message.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    what: str = ""

    def hold(self, value: float) -> bool:
        """Whether a number may be; infinity and what is no number never."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def text(self, whole: bool) -> str:
        """Say what is expected; ``whole`` numbers or any."""
        what = self.what or ("a whole number" if whole else "a number")
        upper = (("up to", self.most), ("below", self.below))
        ends = [f"{word} {_plain(end)}" for word, end in upper if end is not None]
        if self.least is None:
            lower = [] if self.above is None else [f"above {_plain(self.above)}"]
            return f"{what} {' and '.join(lower + ends)}".strip()
        if ends:
            return f"{what} from {_plain(self.least)} to {ends[0].removeprefix('up to ')}"
        return f"{self.what} of at least {_plain(self.least)}".removeprefix(" of ")

    def refusal(self, value: float, whole: bool) -> str | None:
        """Return what is wrong with a number; None where nothing is."""
        if self.hold(value):
            return None
        said = f"expected {self.text(whole)}, got {_plain(value)}"
        if not math.isfinite(value):
            return f"{said}, which is no finite number"
        ends = [end for end in (self.most, self.below) if end is not None]
        share = not whole and bool(ends) and ends[0] <= _SHARES
        meant = share and _PER_CENT <= value <= 100 and self.hold(value / 100)
        return f"{said}; did you mean {_plain(value / 100)}?" if meant else said


def _plain(value: float) -> str:
    """Return a number as it is written in a file: 2, 0.25, 4294967295, nan."""
    return f"{value:.12g}"


def number(
    default: float | None,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    what: str = "",
) -> Any:
    """Return a field of a dataclass that holds a number within bounds.

    A list of numbers has its `Bounds`, which are those of each, as ``metadata["bounds"]``.

    Args:
        default: of the field.
        least: see `Bounds`, also for the rest.
        most: see there.
        above: see there.
        below: see there.
        what: see there.
    """
    bounds = Bounds(least, most, above, below, what)
    return field(default=default, metadata={"bounds": bounds})


def share(default: float) -> Any:
    """Return a field of a dataclass that holds a share, a probability or a score: 0 to 1."""
    return number(default, 0, 1)
