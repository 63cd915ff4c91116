"""What belongs to a patient: diagnosis, stain, red-cell shapes, and which white cells occur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIAGNOSES = ("ALL", "AML", "CML", "CLL", "APML")
"""Patients take these in turn, so that a handful of patients covers all five."""

_STAINS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    # name: background, red cell, nucleus as the reference device shows them (docs/simulator.md)
    "slate": ((158, 158, 149), (77, 90, 121), (65, 38, 112)),
    "blue": ((169, 170, 160), (78, 96, 132), (76, 43, 120)),
    "violet": ((165, 170, 165), (126, 97, 139), (70, 40, 115)),
    "pale": ((155, 159, 152), (122, 115, 135), (118, 58, 132)),
    "grey": ((165, 168, 159), (99, 102, 132), (76, 41, 118)),
    "teal": ((157, 154, 149), (112, 120, 135), (74, 41, 109)),
}
_STAIN_ODDS = (0.3, 0.22, 0.1, 0.1, 0.16, 0.12)

RED_SHAPES = ("disc", "flat", "oval", "teardrop", "burr", "ring", "target")


@dataclass(frozen=True)
class Palette:
    """Colours of one slide: background in grey levels, all else as optical density ``(3,)``."""

    background: NDArray[np.float32]
    red: NDArray[np.float32]
    nucleus: NDArray[np.float32]
    lilac: NDArray[np.float32]
    blue: NDArray[np.float32]
    platelet: NDArray[np.float32]
    haze: float


@dataclass(frozen=True)
class Patient:
    """One slide.

    Attributes:
        diagnosis: one of ``DIAGNOSES``.
        mix: share of each white-cell type, by name.
        palette: the slide's stain.
        white_cells: mean number of white cells in a field.
        artefacts: mean number of boxed artefacts in a field.
        red_cells: mean number of red cells in a field.
        red_diameter: pixels.
        red_shapes: share of each of ``RED_SHAPES``.
        clumping: how often a red cell lies against another.
        pallor: mean depth of the central pallor, 0 to 1.
        dirt: how much precipitate and how many platelets lie about.
        rim: pixels over which the rounded rim of a red cell rises to half its height.
    """

    diagnosis: str
    mix: dict[str, float]
    palette: Palette
    white_cells: float
    artefacts: float
    red_cells: float
    red_diameter: float
    red_shapes: NDArray[np.float64]
    clumping: float
    pallor: float
    dirt: float
    rim: float


def diagnosis_of(patient: int) -> str:
    """Return the diagnosis of a patient; patients count from 1."""
    return DIAGNOSES[(patient - 1) % len(DIAGNOSES)]


def _mix(diagnosis: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw the shares of the cell types; every lineage keeps a small share in every diagnosis."""
    rest = {"neutrophil": 3.0, "lymphocyte": 1.8, "monocyte": 0.5, "eosinophil": 0.15}
    if diagnosis == "ALL":
        main, share = {"lymphoblast": 1.0}, rng.uniform(0.45, 0.95)
    elif diagnosis == "AML" and rng.random() < 0.35:
        lead = rng.uniform(0.3, 0.7)
        main = {"monoblast": lead, "promonocyte": 1 - lead, "myeloblast": 0.1}
        share = rng.uniform(0.8, 0.92)
    elif diagnosis == "AML":
        main = {"myeloblast": 1.0, "monoblast": 0.06, "promonocyte": 0.04}
        share = rng.uniform(0.55, 0.97)
    elif diagnosis == "APML":
        main = {"abnormal_promyelocyte": 1.0, "myeloblast": 0.15}
        share = rng.uniform(0.5, 0.92)
    elif diagnosis == "CLL":
        main = {"atypical_lymphocyte": 1.0, "lymphoblast": 0.01}
        share = rng.uniform(0.9, 0.97)
    else:
        main = {
            "neutrophil": 0.57,
            "myelocyte": 0.17,
            "metamyelocyte": 0.08,
            "myeloblast": 0.07,
            "monocyte": 0.04,
            "basophil": 0.025,
            "eosinophil": 0.02,
        }
        share = 0.96
    total = sum(main.values())
    out = {kind: share * part / total for kind, part in main.items()}
    for kind, part in rest.items():
        extra = (1 - share) * part * rng.uniform(0.5, 1.5) / sum(rest.values())
        out[kind] = out.get(kind, 0.0) + extra
    total = sum(out.values())
    return {kind: part / total for kind, part in out.items()}


def _palette(rng: np.random.Generator) -> Palette:
    name = str(rng.choice(list(_STAINS), p=_STAIN_ODDS))
    background, red, nucleus = (np.asarray(c, dtype=np.float64) for c in _STAINS[name])
    pale = name == "pale"
    od_red = np.log(background / red) * rng.uniform(0.9, 1.1) * rng.uniform(0.96, 1.04, 3)
    od_nucleus = np.log(background / nucleus) * rng.uniform(0.98, 1.14) * rng.uniform(0.96, 1.04, 3)
    # What is measured on a nucleus is paler than its ink: light from beside it is spread over it.
    od_nucleus = od_nucleus * [1.21, 1.03, 1.12]
    depth = rng.uniform(0.85, 1.15) * (0.9 if pale else 1.0)
    background = background + rng.normal(0, 3.0) + rng.normal(0, 1.5, 3)

    def stain(*od: float) -> NDArray[np.float32]:
        return np.asarray(np.asarray(od) * depth, dtype=np.float32)

    return Palette(
        background=background.astype(np.float32),
        red=od_red.astype(np.float32),
        nucleus=od_nucleus.astype(np.float32),
        lilac=stain(0.19, 0.33, 0.08),
        blue=stain(0.30, 0.33, 0.03),
        platelet=stain(0.42, 0.72, 0.13),
        haze=float(rng.uniform(0.4, 1.0) if name == "teal" else rng.exponential(0.12)),
    )


def make_patient(seed: int, patient: int) -> Patient:
    """Draw a patient's slide from ``(seed, patient)`` alone."""
    rng = np.random.default_rng([seed, patient, 7])
    diagnosis = diagnosis_of(patient)
    shapes = np.array([0.62, 0.12, 0.16, 0.03, 0.01, 0.03, 0.03])
    # One slide in five is crenated, and slides differ in how many of each odd shape they carry.
    shapes *= rng.gamma(2.0, 0.5, len(RED_SHAPES))
    if rng.random() < 0.2:
        shapes[RED_SHAPES.index("burr")] += 0.5 * shapes.sum()
    crowd = {"CML": 7.0, "AML": 4.5, "CLL": 4.0, "APML": 4.0, "ALL": 3.0}[diagnosis]
    return Patient(
        diagnosis=diagnosis,
        mix=_mix(diagnosis, rng),
        palette=_palette(rng),
        white_cells=crowd * float(rng.uniform(0.7, 1.3)),
        artefacts=float(rng.choice([0.15, 0.5, 1.0, 2.0], p=[0.25, 0.35, 0.25, 0.15])),
        red_cells=float(rng.uniform(62, 112)),
        red_diameter=float(np.clip(rng.normal(38.0, 2.8), 31, 44)),
        red_shapes=shapes / shapes.sum(),
        clumping=float(rng.uniform(0.2, 0.7)),
        pallor=float(rng.uniform(0.25, 0.65)),
        dirt=float(rng.choice([0.3, 1.0, 3.0], p=[0.35, 0.4, 0.25])),
        rim=float(np.clip(rng.lognormal(np.log(3.6), 0.2), 2.2, 5.5)),
    )
