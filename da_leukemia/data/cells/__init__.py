"""Single cells: cut out of fields, recognised where they are there twice. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from da_leukemia.config import Data
from da_leukemia.data.cache import cache_folder
from da_leukemia.data.cells.crops import cut_cells
from da_leukemia.data.cells.duplicates import keep_together
from da_leukemia.data.cells.prints import prints_of
from da_leukemia.data.fields import FieldIndex

__all__ = ["FORMAT", "single_cells"]

FORMAT = "cells"
"""The format whose images are single cells (see `data.readers.cells`)."""


def single_cells(data: Data, indexes: Mapping[str, FieldIndex]) -> dict[str, FieldIndex]:
    """Return the indexes with fields cut into cells where the settings say so, copies grouped.

    Devices of whole fields pass unchanged. Copies are looked for by content alone, over all
    devices at once; labels of one device never reach another.

    Args:
        data: settings.
        indexes: what the readers returned, by device.

    Raises:
        ConfigError: fields are to be cut and there is no folder for the cells.
        DataError: a field that cannot be decoded.
    """
    caches = cache_folder(data.cache_dir)
    found = dict(indexes)
    ours = []
    for name, domain in data.domains.items():
        if domain.crop is not None and domain.format != FORMAT:
            found[name] = cut_cells(found[name], domain.crop, caches)
        elif domain.format != FORMAT:
            continue
        if data.split.kind == "released" and domain.labels == "test_only":
            # A data set that is only tested on has no part to be learned from.
            fields = (replace(f, released_split=f.released_split or "test") for f in found[name])
            found[name] = replace(found[name], fields=tuple(fields))
        ours.append(name)
    if not ours:
        return found
    prints = [prints_of(found[name], caches) for name in ours]
    together = keep_together([found[name] for name in ours], prints)
    return found | dict(zip(ours, together, strict=True))
