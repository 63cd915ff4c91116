"""A device measured from its own unlabelled films, and images brought to a common appearance."""

from __future__ import annotations

from da_leukemia.calibration.apply import (
    boxes_back,
    flat_field,
    same_colour,
    scale_factors,
    scale_to,
    stain_matrix,
)
from da_leukemia.calibration.record import Calibration, Quantity, RedCells, load, save, store

__all__ = [
    "Calibration",
    "Quantity",
    "RedCells",
    "boxes_back",
    "flat_field",
    "load",
    "same_colour",
    "save",
    "scale_factors",
    "scale_to",
    "stain_matrix",
    "store",
]
