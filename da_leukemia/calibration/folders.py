"""A folder of photographs whose sub-folders may be devices of their own."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from da_leukemia.calibration.fields import find_images, spread
from da_leukemia.errors import DataError

_LISTED = 12
"""Sub-folders that are named."""

_LOOKED_AT = 5
"""Photographs of each sub-folder whose size is read."""


@dataclass(frozen=True)
class Parts:
    """The sub-folders in which a folder's photographs lie.

    They may be patients of one device or devices: a common parent of devices is measured as one
    by mistake, and what is measured would be of none of them.

    Attributes:
        folder: what is measured.
        images: of each sub-folder; none where a photograph lies beside them.
    """

    folder: Path
    images: Mapping[Path, Sequence[Path]]

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """Look into a folder, down to where it parts.

        Raises:
            DataError: no such folder, or there is no image in it.
        """
        at, found = folder, find_images(folder)
        while True:
            parts: dict[Path, list[Path]] = {}
            for path in found:
                parts.setdefault(at / path.relative_to(at).parts[0], []).append(path)
            if any(path in parts for path in found):  # it is no folder
                return cls(folder, {})
            if len(parts) > 1:
                return cls(folder, parts)
            (at,) = parts

    @property
    def several(self) -> bool:
        """Whether there is more than one sub-folder."""
        return len(self.images) > 1

    @property
    def if_each_is_one(self) -> str:
        """Say what to do where the sub-folders are devices."""
        names = list(self.images)
        more = [f"  ... and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
        commands = [f"  da-leukemia calibrate {shlex.quote(str(n))}" for n in names[:_LISTED]]
        return "\n".join(["where each sub-folder is a device, measure it alone:", *commands, *more])

    def refusal(self, why: str) -> DataError:
        """Return the error that says that these are several devices."""
        return DataError(
            f"{self.folder}: holds {len(self.images)} sub-folders that are several devices: {why}; "
            f"nothing is written; {self.if_each_is_one}"
        )

    def refuse_different_cameras(self) -> None:
        """Read the sizes of a few photographs: of a device they have one, of cut-outs each its own.

        Raises:
            DataError: each sub-folder has one size, and there are several.
        """
        if not self.several or min(map(len, self.images.values())) < 2:
            return
        sizes = {part: _sizes(spread(paths, _LOOKED_AT)) for part, paths in self.images.items()}
        if {len(found) for found in sizes.values()} != {1} or len(set().union(*sizes.values())) < 2:
            return
        told = [f"{part.name} {a} x {b}" for part, ((a, b),) in sizes.items()]
        raise self.refusal(f"their photographs differ in size ({', '.join(told[:_LISTED])})")


def _sizes(paths: Sequence[Path]) -> set[tuple[int, int]]:
    """Return the sizes of images, the long side first; what cannot be read is left out."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path) as image:
            found.add((max(image.size), min(image.size)))
    return found
