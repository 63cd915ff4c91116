"""How a device's photographs become network input, and how boxes get back. Free of torch.

Without a calibration the whole photograph is fitted into the network's square. With one, a device
whose scale is known is brought to a common number of pixels per um, and the network looks at it
through windows of its own size: random ones in training, overlapping ones at test.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from da_leukemia import config
from da_leukemia.calibration.apply import (
    fill_colour,
    flat_field,
    same_colour,
    scale_factors,
)
from da_leukemia.calibration.record import Calibration
from da_leukemia.errors import DataError

OVERLAP_UM = 30.0
"""Overlap of neighbouring windows: a cell of 20 um is whole in one of them wherever it lies."""

SLACK = 1 / 6
"""Share of the overlap by which a window keeps cells beyond the middle of it."""

WINDOW_LIMIT = 4000
"""Windows of one field; more is a scale that cannot be."""


class Placement(NamedTuple):
    """Where an image lies in its picture: ``new = old * (x, y)``, from the top left.

    Attributes:
        x: picture pixels per image pixel, horizontally.
        y: the same vertically.
        width: of the image in the picture, px.
        height: the same.
    """

    x: float
    y: float
    width: int
    height: int

    @property
    def factors(self) -> NDArray[np.float64]:
        """Factors of a box ``x0, y0, x1, y1``."""
        return np.array([self.x, self.y, self.x, self.y])


class Window(NamedTuple):
    """A network-sized part of a picture, and the part of it that counts.

    Attributes:
        x: left edge in the picture, px.
        y: top edge.
        kept: ``x0, y0, x1, y1`` in the picture: a detection counts when its centre lies in it.
    """

    x: int
    y: int
    kept: tuple[float, float, float, float]


WHOLE = Window(0, 0, (-math.inf, -math.inf, math.inf, math.inf))


@dataclass(frozen=True)
class Preparation:
    """What is done to every photograph of a device.

    Attributes:
        size: side of the network input, px.
        device: the device's calibration, None where it is not used.
        px_per_um: scale that pictures are brought to; 0 fits the whole image into the input.
        illumination: even out the lamp.
        colour: bring background and red cells to common colours.
    """

    size: int
    device: Calibration | None = None
    px_per_um: float = 0.0
    illumination: bool = False
    colour: bool = False

    @cached_property
    def key(self) -> str:
        """Name of everything that decides what pictures look like."""
        if self.device is None:
            return str(self.size)
        told = repr((self.px_per_um, self.illumination, self.colour, self.device.to_dict()))
        return f"{self.size}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    @property
    def scaled(self) -> bool:
        """Whether pictures have a common scale; else images are fitted into the input."""
        known = self.device is not None and self.device.px_per_um_x.known
        return known and self.px_per_um > 0

    def placement(self, width: int, height: int) -> Placement:
        """Return where an image of a size lies in its picture."""
        if not self.scaled:
            factor = self.size / max(width, height)
            return Placement(
                factor, factor, max(1, round(width * factor)), max(1, round(height * factor))
            )
        assert self.device is not None
        x, y = scale_factors(self.device, self.px_per_um, (width, height))
        return Placement(x, y, round(width * x), round(height * y))

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of an image's picture: at least the network's input."""
        place = self.placement(width, height)
        return max(self.size, place.width), max(self.size, place.height)

    def windows(self, width: int, height: int) -> list[Window]:
        """Return the windows in which an image is searched: they overlap and cover it."""
        across, down = self.canvas(width, height)
        overlap = min(round(OVERLAP_UM * self.px_per_um), self.size // 2)
        columns, rows = (_cuts(n, self.size, overlap) for n in (across, down))
        if len(columns) * len(rows) == 1:
            return [WHOLE]
        if len(columns) * len(rows) > WINDOW_LIMIT:
            raise DataError(
                f"an image of {width} x {height} px has {len(columns)} x {len(rows)} windows of "
                f"{self.size} px at {self.px_per_um:.2f} px/um; raise data.calibration.view_um, or "
                "look at what `da-leukemia calibrate` says of the device"
            )
        return [
            Window(x, y, (left, top, right, bottom))
            for y, top, bottom in rows
            for x, left, right in columns
        ]

    @cached_property
    def fill(self) -> NDArray[np.uint8] | None:
        """Colour ``(3,)`` around images, None where each has its own."""
        if self.device is None:
            return None
        return fill_colour(self.device, self.illumination, self.colour)

    def correct(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Correct light and colour of a whole frame at any size."""
        if self.device is not None and self.illumination:
            image = flat_field(image, self.device)
        if self.device is not None and self.colour:
            image = same_colour(image, self.device)
        return image


def _cuts(length: int, size: int, overlap: int) -> list[tuple[int, float, float]]:
    """Cut a length into windows: start of each, and from where to where its finds count."""
    if length <= size:
        return [(0, -math.inf, math.inf)]
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    cuts = []
    for i, start in enumerate(starts):
        low, high = -math.inf, math.inf
        if i:
            shared = starts[i - 1] + size - start
            low = start + shared * (0.5 - SLACK)
        if i + 1 < count:
            shared = start + size - starts[i + 1]
            high = start + size - shared * (0.5 - SLACK)
        cuts.append((start, low, high))
    return cuts


def preparations(
    data: config.Data, devices: Mapping[str, Calibration], source: str
) -> dict[str, Preparation]:
    """Return how each device of an experiment is prepared for a detector of one or some of them.

    Where the scale of the device that it learns from is unknown, there is nothing to bring the
    others to: then no image is scaled.

    Args:
        data: settings.
        devices: calibration of each device (see `data.devices.measure_devices`); may be empty
            where no calibration is used.
        source: device that is learned from, also one that is not there any more; of several, one
            of known scale is enough.
    """
    settings = data.calibration
    names = dict.fromkeys([*data.domains, *config.devices_of(source)])
    if not settings.used:
        return {name: Preparation(data.image_size) for name in names}
    known = any(devices[name].px_per_um_x.known for name in config.devices_of(source))
    scaled = settings.scale and known
    return {
        name: Preparation(
            data.image_size,
            devices[name],
            data.image_size / settings.view_um if scaled else 0.0,
            settings.illumination,
            settings.colour,
        )
        for name in names
    }
