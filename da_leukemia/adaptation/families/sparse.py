"""Settings of what learns from fields of which only patches are annotated. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class PatchCrops:
    """First stage of SLA-Det: sparse fields are seen as enlarged crops of their annotated patches.

    Attributes:
        until: share of training after which whole fields are seen; 0 removes the component.
        plain_after: see whole fields without augmentation.
    """

    strength: ClassVar[str] = "until"
    targeted: ClassVar[bool] = False

    until: float = share(0.5)
    plain_after: bool = False


@dataclass
class SparseTeacher:
    """Confident detections of an EMA teacher outside the annotated patches, learned as cells.

    Attributes:
        weight: factor of their losses; 0 removes the component.
        threshold: teacher score from which a detection becomes a cell.
        overlap: largest IoU with an annotated box.
        boxes: learn the teacher's boxes, too, not only that there is a cell and of which type.
        burn_in: share of training before the teacher is asked.
        ramp: share of training over which the weight rises after burn-in.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = False

    weight: float = number(0.5, least=0)
    threshold: float = share(0.5)
    overlap: float = share(0.3)
    boxes: bool = True
    burn_in: float = number(0.3, least=0, below=1)
    ramp: float = share(0.2)


@dataclass
class SparseSimilarity:
    """Uncertain detections outside the patches drawn to annotated cells of their type (SLA-Det).

    Attributes:
        weight: factor of the loss; 0 removes the component.
        low: teacher score from which a detection takes part.
        high: score from which it is certain, and does not.
        margin: cosine up to which cells of different types may be alike.
        overlap: largest IoU with an annotated box.
        burn_in: share of training before the teacher is asked.
        until: share of training after which it is no more.
        ramp: share of training over which the weight rises after burn-in.
        regions: at most this many cells of an image take part, on either side.
        resolution: samples per side of a cell's pooled feature.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = False

    weight: float = number(0.1, least=0)
    low: float = share(0.2)
    high: float = share(0.5)
    margin: float = number(0.0, -1, 1)
    overlap: float = share(0.3)
    burn_in: float = number(0.3, least=0, below=1)
    until: float = share(1.0)
    ramp: float = share(0.2)
    regions: int = number(16, least=1)
    resolution: int = number(3, least=1)
