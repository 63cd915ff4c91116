"""What a cell can be called: cell types, morphological attributes, and maps between label spaces.

A label space is the contract between a data set, a detector and a score. Names are matched
without regard to case, spaces and punctuation; ids of a file format never leave its reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from da_leukemia.errors import ConfigError, did_you_mean

UNKNOWN = -1
"""A label or attribute that is there in the image but that nobody wrote down."""


def normalise(name: str) -> str:
    """Reduce a class or attribute name to lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class Attribute:
    """One morphological attribute and its values, in the order of their codes.

    Attributes:
        name: snake_case name, as in result files.
        values: name of each code ``0..n-1``.
        aliases: other keys under which files carry it.
    """

    name: str
    values: tuple[str, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelSpace:
    """A named, ordered set of cell types and attributes.

    Attributes:
        name: the name used in settings (``data.label_space=wbc``).
        classes: cell types in index order.
        attributes: attributes in column order of ``FieldOfView.attributes``.
        aliases: other names of a class, ``alias -> class``.
    """

    name: str
    classes: tuple[str, ...]
    attributes: tuple[Attribute, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _index(self) -> dict[str, int]:
        table = {normalise(c): i for i, c in enumerate(self.classes)}
        table.update({normalise(a): table[normalise(c)] for a, c in self.aliases})
        return table

    def find(self, name: str) -> int | None:
        """Return the index of a class by any of its names, or None."""
        return self._index.get(normalise(name))

    @property
    def attribute_sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(a.values) for a in self.attributes)

    def find_attribute(self, key: str) -> int | None:
        """Return the column of an attribute by its name or an alias, or None."""
        wanted = normalise(key)
        for column, attribute in enumerate(self.attributes):
            if wanted in {normalise(n) for n in (attribute.name, *attribute.aliases)}:
                return column
        return None


MORPHOLOGY = (
    Attribute("cell_size", ("small", "medium", "large")),
    Attribute("nuclear_chromatin", ("open", "coarse"), ("nuclear_chromatio", "chromatin")),
    Attribute("nuclear_shape", ("regular", "irregular")),
    Attribute("nucleolus", ("inconspicuous", "prominent"), ("nucleus", "nucleoli")),
    Attribute("cytoplasm", ("scanty", "abundant")),
    Attribute("cytoplasmic_basophilia", ("slight", "moderate"), ("basophilia",)),
    Attribute("cytoplasmic_vacuoles", ("absent", "prominent"), ("vacuoles",)),
)
"""The seven attributes of LeukemiaAttri, in the order of its text files."""

LEUKEMIAATTRI = LabelSpace(
    "leukemiaattri",
    # Index = id in the released text files, so 0 is "none": an artefact that is boxed and scored.
    (
        "none",
        "myeloblast",
        "lymphoblast",
        "neutrophil",
        "atypical_lymphocyte",
        "promonocyte",
        "monoblast",
        "lymphocyte",
        "myelocyte",
        "abnormal_promyelocyte",
        "monocyte",
        "metamyelocyte",
        "eosinophil",
        "basophil",
    ),
    MORPHOLOGY,
    (("unidentified", "none"), ("artefact", "none"), ("artifact", "none")),
)

LINEAGE = LabelSpace("lineage", ("blast", "lymphoid", "granulocyte", "monocyte"), MORPHOLOGY)
"""A coarse reading of a film: blasts and the three mature lines."""

WBC5 = LabelSpace(
    "wbc5", ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"), MORPHOLOGY
)
WBC = LabelSpace(
    "wbc",
    ("wbc",),
    MORPHOLOGY,
    (("white blood cell", "wbc"), ("white cell", "wbc"), ("leukocyte", "wbc"), ("wbcs", "wbc")),
)

LABEL_SPACES: dict[str, LabelSpace] = {s.name: s for s in (LEUKEMIAATTRI, LINEAGE, WBC5, WBC)}

_BLOOD_BACKGROUND = ("rbc", "red blood cell", "plt", "platelet", "platelets", "none")
"""Boxes that films carry and that are no white cell: dropped where the space has no such class."""

_LINEAGE_OF = {
    "myeloblast": "blast",
    "lymphoblast": "blast",
    "monoblast": "blast",
    "promonocyte": "blast",
    "abnormal_promyelocyte": "blast",
    "lymphocyte": "lymphoid",
    "atypical_lymphocyte": "lymphoid",
    "neutrophil": "granulocyte",
    "myelocyte": "granulocyte",
    "metamyelocyte": "granulocyte",
    "eosinophil": "granulocyte",
    "basophil": "granulocyte",
    "monocyte": "monocyte",
}


def get_label_space(name: str) -> LabelSpace:
    """Return a built-in label space by name.

    Raises:
        ConfigError: the name is unknown; carries a suggestion.
    """
    if name not in LABEL_SPACES:
        raise ConfigError(
            f"data.label_space: unknown label space {name!r}{did_you_mean(name, LABEL_SPACES)}"
        )
    return LABEL_SPACES[name]


def known_names(space: LabelSpace) -> tuple[str, ...]:
    """Return the class names that `translate` knows for ``space``, to suggest from."""
    names = (*space.classes, *(a for a, _ in space.aliases), *LEUKEMIAATTRI.classes, "wbc")
    return tuple(dict.fromkeys((*names, *_BLOOD_BACKGROUND)))


def translate(name: str, space: LabelSpace) -> int | None:
    """Translate a class name found in any data set into a class of ``space``.

    Returns:
        The class index; ``UNKNOWN`` for a white cell whose type this space cannot tell (it must
        be neither learned nor punished); None for what is background in this space.

    Raises:
        KeyError: the name is none that this project knows.
    """
    found = space.find(name)
    if found is not None:
        return found
    if normalise(name) in {normalise(n) for n in _BLOOD_BACKGROUND}:
        return None
    if LEUKEMIAATTRI.find(name) == 0:
        return None
    if WBC.find(name) is not None:
        return UNKNOWN
    fine = LEUKEMIAATTRI.find(name)
    if fine is None:
        raise KeyError(name)
    if space.name == "wbc":
        return 0
    if space.name == "lineage":
        return space.find(_LINEAGE_OF[LEUKEMIAATTRI.classes[fine]])
    return UNKNOWN
