"""A device's calibration from a list of its images, for programs: nobody looks at it in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from da_leukemia.calibration.fields import MOST_FIELDS, spread
from da_leukemia.calibration.measure import Progress, measure_images
from da_leukemia.calibration.record import Calibration
from da_leukemia.errors import DataError


def calibrate_images(
    paths: Sequence[Path],
    seed: int = 0,
    most: int = MOST_FIELDS,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the device that took some images, as ``da-leukemia calibrate`` does.

    The choice depends on names, number and seed alone, so every run on the same images gives the
    same calibration.

    Args:
        paths: images of one device in any order, without their labels.
        seed: moves the even choice along the sorted list; 0 is the command's choice.
        most: images to read, spread evenly over the sorted list.
        progress: called with (done, total).

    Returns:
        The calibration. What the images do not tell is unknown in it; images that cannot be read
        are left out and named in its notes.

    Raises:
        DataError: no paths, or none of the chosen images can be read.
    """
    if not paths:
        raise DataError("no images to calibrate a device from; give it at least one")
    return measure_images(spread(sorted(set(paths)), most, seed), progress).calibration
