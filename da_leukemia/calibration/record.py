"""What a calibration says, with its uncertainty, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from da_leukemia.errors import DataError

RED_CELL_UM = 7.5
"""Diameter of a human red cell on a dry film, um (7.2-7.8: Bain, Blood Cells, 6th ed., ch. 3)."""

RED_CELL_UM_SPREAD = 0.04
"""Relative standard deviation of a patient's mean red-cell diameter."""

FORMAT = 2

NAME = "calibration.json"
"""The file beside a device's images."""


@dataclass(frozen=True)
class Quantity:
    """A number and its 90 % interval; None wherever it is unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


@dataclass(frozen=True)
class RedCells:
    """Size of a red cell in pixels of the original image.

    Attributes:
        width: median horizontal extent, px.
        height: median vertical extent, px.
        low: the 90 % interval of the diameter ``sqrt(width * height)``, px.
        high: its upper end.
    """

    width: float
    height: float
    low: float
    high: float

    @property
    def diameter(self) -> float:
        """Geometric mean of width and height, px."""
        return float((self.width * self.height) ** 0.5)


@dataclass(frozen=True)
class Surface:
    """A smooth field of light: ``exp`` of a polynomial in ``x, y``, one for each channel.

    Coordinates are -1..1 from the first to the last pixel's outer edge, so it fits any size of the
    same frame. It is 1 at the brightest place of the frame.

    Attributes:
        powers: exponents ``(i, j)`` of ``x**i * y**j``.
        coefficients: for R, G and B one number for each of the powers.
    """

    powers: tuple[tuple[int, int], ...]
    coefficients: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Calibration:
    """What a device's own films say of it. Lengths are in pixels of the original image.

    Attributes:
        fields: images that were measured.
        size: ``width, height`` of most of them.
        red_cell_px: size of a red cell, None where unknown.
        px_per_um_x: horizontal scale.
        px_per_um_y: vertical scale.
        aspect: width over height of a round cell; 1 where pixels are square.
        illumination: the lamp's field, None where unknown.
        illumination_error: relative error of that field, RMS over the frame, that it stays below
            with 90 % probability.
        illumination_fall: share of light lost at the darkest place inside the valid field.
        background: R, G, B of the clear background, grey levels.
        red_cell_colour: R, G, B of red cells, grey levels.
        nucleus_colour: R, G, B of nuclei, grey levels.
        edge_x: 10-90 % width of red cells' left and right edges, px.
        edge_y: the same of upper and lower edges, px.
        noise: standard deviation in the clear background, grey levels of green.
        valid: ``x, y, radius_x, radius_y`` of the ellipse inside a dark rim, as shares of width
            and height; None where the whole frame is lit.
        cells: red cells that were measured.
        notes: what was unknown and why, and what disagreed.
    """

    fields: int
    size: tuple[int, int]
    red_cell_px: RedCells | None = None
    px_per_um_x: Quantity = Quantity()
    px_per_um_y: Quantity = Quantity()
    aspect: Quantity = Quantity()
    illumination: Surface | None = None
    illumination_error: float | None = None
    illumination_fall: Quantity = Quantity()
    background: tuple[Quantity, Quantity, Quantity] | None = None
    red_cell_colour: tuple[Quantity, Quantity, Quantity] | None = None
    nucleus_colour: tuple[Quantity, Quantity, Quantity] | None = None
    edge_x: Quantity = Quantity()
    edge_y: Quantity = Quantity()
    noise: Quantity = Quantity()
    valid: tuple[Quantity, Quantity, Quantity, Quantity] | None = None
    cells: int = 0
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; unknown quantities are null."""
        out: dict[str, Any] = {"format": FORMAT}
        for name, value in asdict(self).items():
            if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
                value = None if value["value"] is None else value
            out[name] = value
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            DataError: of another format, or a value is missing.
        """
        if data.get("format") != FORMAT:
            raise DataError(f"a calibration of format {data.get('format')!r}, not {FORMAT}")
        try:
            known = {k: v for k, v in data.items() if k != "format"}
            for name in _QUANTITIES:
                known[name] = Quantity(**known[name]) if known[name] else Quantity()
            for name in ("background", "red_cell_colour", "nucleus_colour", "valid"):
                known[name] = known[name] and tuple(Quantity(**q) for q in known[name])
            red, light = known["red_cell_px"], known["illumination"]
            known["red_cell_px"] = red and RedCells(**red)
            known["illumination"] = light and Surface(
                tuple((int(i), int(j)) for i, j in light["powers"]),
                tuple(tuple(float(v) for v in row) for row in light["coefficients"]),
            )
            known["size"] = tuple(known["size"])
            known["notes"] = tuple(known["notes"])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a calibration: {error}; run `da-leukemia calibrate`") from error


_QUANTITIES = (
    "px_per_um_x",
    "px_per_um_y",
    "aspect",
    "illumination_fall",
    "edge_x",
    "edge_y",
    "noise",
)


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON.

    Raises:
        DataError: it cannot be written there; names the file and the way out.
    """
    text = json.dumps(calibration.to_dict(), indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another place with --out FILE"
        ) from error


def store(calibration: Calibration, folder: Path, out: Path | None = None) -> Path:
    """Write a calibration beside its images, or where it is wanted; return the file.

    Args:
        calibration: the device's.
        folder: its images; the file there is `NAME`, an earlier one is replaced.
        out: another file.

    Raises:
        DataError: it cannot be written there.
    """
    path = folder / NAME if out is None else out
    save(calibration, path)
    return path


def load(path: Path) -> Calibration:
    """Read a calibration that `save` wrote.

    Raises:
        DataError: missing, or not a calibration; names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise DataError("not a calibration")
        return Calibration.from_dict(data)
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
