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

OPEN_SET = -2
"""The label of a single cell whose type is known and is none of the label space's."""


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

LEUKEMIAATTRI13 = LabelSpace("leukemiaattri13", LEUKEMIAATTRI.classes[1:], MORPHOLOGY)
"""The thirteen cell types of LeukemiaAttri without "none".

A "none" box (smudge cell, precipitate) is read as of unknown type, not as background: many are
white cells that broke, so a detector that marks one is neither taught nor punished.
"""

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

WBCATT_ATTRIBUTES = (
    Attribute("cell_size", ("small", "big")),
    Attribute("cell_shape", ("round", "irregular")),
    Attribute(
        "nucleus_shape",
        (
            "unsegmented-band",
            "unsegmented-round",
            "unsegmented-indented",
            "segmented-bilobed",
            "segmented-multilobed",
            "irregular",
        ),
    ),
    Attribute("nuclear_cytoplasmic_ratio", ("low", "high")),
    Attribute("chromatin_density", ("loosely", "densely")),
    Attribute("cytoplasm_vacuole", ("no", "yes")),
    Attribute("cytoplasm_texture", ("clear", "frosted")),
    Attribute("cytoplasm_colour", ("light blue", "blue", "purple blue"), ("cytoplasm_color",)),
    Attribute("granule_type", ("nil", "small", "round", "coarse")),
    Attribute("granule_colour", ("nil", "pink", "red", "purple"), ("granule_color",)),
    Attribute("granularity", ("no", "yes")),
)
"""The eleven attributes of WBCAtt (Tsutsui et al., NeurIPS 2023)."""

WBCATT = LabelSpace("wbcatt", WBC5.classes, WBCATT_ATTRIBUTES)

M5 = LabelSpace("m5", ("gametocyte", "schizont", "trophozoite", "ring"))
"""Life-cycle stages of the malaria parasite in the red cells of M5 (CVPR 2022)."""

MATEK19 = LabelSpace(
    "matek19",
    (
        *("neutrophil_segmented", "neutrophil_band", "lymphocyte", "atypical_lymphocyte"),
        *("monocyte", "eosinophil", "basophil", "myeloblast", "monoblast", "promyelocyte"),
        *("promyelocyte_bilobed", "myelocyte", "metamyelocyte", "erythroblast", "smudge_cell"),
    ),
    (),
    (
        *(("ngs", "neutrophil_segmented"), ("ngb", "neutrophil_band"), ("lyt", "lymphocyte")),
        *(("lya", "atypical_lymphocyte"), ("mon", "monocyte"), ("eos", "eosinophil")),
        *(("bas", "basophil"), ("myo", "myeloblast"), ("mob", "monoblast")),
        *(("pmo", "promyelocyte"), ("pmb", "promyelocyte_bilobed"), ("myb", "myelocyte")),
        *(("mmz", "metamyelocyte"), ("ebo", "erythroblast"), ("ksc", "smudge_cell")),
    ),
)
"""The fifteen classes of AML-Cytomorphology_LMU (Matek et al., 2019), and its folders' codes."""

MLL23 = LabelSpace(
    "mll23",
    (
        *("myeloblast", "neutrophil_segmented", "lymphocyte", "hairy_cell", "monocyte"),
        *("eosinophil", "normoblast", "promyelocyte_atypical", "lymphocyte_large_granular"),
        *("plasma_cell", "smudge_cell", "myelocyte", "promyelocyte", "neutrophil_band"),
        *("basophil", "metamyelocyte", "lymphocyte_neoplastic", "lymphocyte_reactive"),
    ),
)
"""The eighteen classes of MLL23 (Scientific Data 12:1773, 2025), the frequent ones first."""

PBC8 = LabelSpace(
    "pbc8",
    (*WBC5.classes, "ig", "erythroblast", "platelet"),
    WBCATT_ATTRIBUTES,
    (("immature_granulocyte", "ig"),),
)
"""The eight folders of Acevedo et al. (2020), with the attributes that WBCAtt adds to five."""

LABEL_SPACES: dict[str, LabelSpace] = {
    s.name: s
    for s in (
        *(LEUKEMIAATTRI, LEUKEMIAATTRI13, LINEAGE, WBC5, WBC, WBCATT, M5),
        *(MATEK19, MLL23, PBC8),
    )
}

_SAME, _TYPE_UNKNOWN, _BACKGROUND = "=", "?", "-"

_TABLE: dict[str, dict[str, str]] = {
    name: dict(zip(tuple(LABEL_SPACES), row, strict=True))
    for name, *row in (
        # found              leukemiaattri 13   lineage    wbc5 wbc  wbcatt m5 matek19 mll23 pbc8
        ("none",                   "=", "?", "-",           "-", "-",   "-", "-", "?", "?", "-"),
        ("myeloblast",             "=", "=", "blast",       "?", "wbc", "?", "-", "=", "=", "?"),
        ("lymphoblast",            "=", "=", "blast",       "?", "wbc", "?", "-", "?", "?", "?"),
        ("monoblast",              "=", "=", "blast",       "?", "wbc", "?", "-", "=", "?", "?"),
        ("promonocyte",            "=", "=", "blast",       "?", "wbc", "?", "-", "?", "?", "?"),
        ("abnormal_promyelocyte",  "=", "=", "blast",       "?", "wbc", "?", "-", "?", "?", "?"),
        ("promyelocyte_bilobed",   "?", "?", "?",           "?", "wbc", "?", "-", "=", "?", "?"),
        ("promyelocyte",           "?", "?", "granulocyte", "?", "wbc", "?", "-", "=", "=", "ig"),
        ("myelocyte",              "=", "=", "granulocyte", "?", "wbc", "?", "-", "=", "=", "ig"),
        ("metamyelocyte",          "=", "=", "granulocyte", "?", "wbc", "?", "-", "=", "=", "ig"),
        ("ig",                     "?", "?", "granulocyte", "?", "wbc", "?", "-", "?", "?", "="),
        ("neutrophil",             "=", "=", "granulocyte", "=", "wbc", "=", "-", "?", "?", "="),
        ("eosinophil",             "=", "=", "granulocyte", "=", "wbc", "=", "-", "=", "=", "="),
        ("basophil",               "=", "=", "granulocyte", "=", "wbc", "=", "-", "=", "=", "="),
        ("lymphocyte",             "=", "=", "lymphoid",    "=", "wbc", "=", "-", "=", "=", "="),
        ("atypical_lymphocyte",    "=", "=", "lymphoid",    "?", "wbc", "?", "-", "=", "?", "?"),
        ("lymphocyte_neoplastic",  "?", "?", "lymphoid",    "?", "wbc", "?", "-", "?", "=", "?"),
        ("hairy_cell",             "?", "?", "lymphoid",    "?", "wbc", "?", "-", "?", "=", "?"),
        ("plasma_cell",            "?", "?", "lymphoid",    "?", "wbc", "?", "-", "?", "=", "?"),
        ("monocyte",               "=", "=", "=",           "=", "wbc", "=", "-", "=", "=", "="),
        ("blast",                  "?", "?", "=",           "?", "wbc", "?", "-", "?", "?", "?"),
        ("lymphoid",               "?", "?", "=",           "?", "wbc", "?", "-", "?", "?", "?"),
        ("granulocyte",            "?", "?", "=",           "?", "wbc", "?", "-", "?", "?", "?"),
        ("wbc",                    "?", "?", "?",           "?", "=",   "?", "-", "?", "?", "?"),
        ("gametocyte",             "-", "-", "-",           "-", "-",   "-", "=", "-", "-", "-"),
        ("schizont",               "-", "-", "-",           "-", "-",   "-", "=", "-", "-", "-"),
        ("trophozoite",            "-", "-", "-",           "-", "-",   "-", "=", "-", "-", "-"),
        ("ring",                   "-", "-", "-",           "-", "-",   "-", "=", "-", "-", "-"),
        ("erythroblast",           "-", "-", "-",           "-", "-",   "-", "-", "=", "?", "="),
        ("rbc",                    "-", "-", "-",           "-", "-",   "-", "-", "-", "-", "-"),
        ("platelet",               "-", "-", "-",           "-", "-",   "-", "-", "-", "-", "="),
    )
}  # fmt: skip

_KINDS: dict[str, str] = {
    "neutrophil_band": "neutrophil",
    "neutrophil_segmented": "neutrophil",
    "lymphocyte_large_granular": "lymphocyte",
    "lymphocyte_reactive": "atypical_lymphocyte",
    "promyelocyte_atypical": "abnormal_promyelocyte",
    "abnormal_promyelocyte": "promyelocyte_atypical",
    "normoblast": "erythroblast",
    "erythroblast": "normoblast",
    "smudge_cell": "none",
}
"""What a class is in a space that does not name it: a wider class, or the same by another name."""


def _meaning(name: str, space: LabelSpace) -> str:
    """Return a cell of `MAPS`."""
    kind = _KINDS.get(name)
    if name in space.classes:
        return _SAME
    if kind is not None and kind in space.classes:
        return kind
    return _TABLE[name if name in _TABLE else str(kind)][space.name]


MAPS: dict[str, dict[str, str]] = {
    name: {space.name: _meaning(name, space) for space in LABEL_SPACES.values()}
    for name in (*_TABLE, *(n for n in _KINDS if n not in _TABLE))
}
"""The one place where label spaces meet: ``name found in a file -> label space -> class``.

"=" is the class of the same name; "?" a cell that this space cannot tell apart (read as `UNKNOWN`:
never a target, never a false positive); "-" background (not read). As a single cell, one that is
"?" or "-" is of the open set (see `data.readers.cells`).
"""

_NO_CELL = frozenset(
    normalise(name)
    for name in (LEUKEMIAATTRI.classes[0], *(alias for alias, _ in LEUKEMIAATTRI.aliases))
)


def is_cell(name: str) -> bool:
    """Tell whether a class is of cells: "none", an artefact that is boxed, is not.

    What is no cell has no attributes.
    """
    return normalise(name) not in _NO_CELL


_SYNONYMS = {
    "red blood cell": "rbc",
    "red blood cells": "rbc",
    "erythrocyte": "rbc",
    "plt": "platelet",
    "platelets": "platelet",
    "thrombocyte": "platelet",
    "white blood cells": "wbc",
    "leucocyte": "wbc",
    "band neutrophil": "neutrophil_band",
    "segmented neutrophil": "neutrophil_segmented",
    "baso": "basophil",
    "eosi": "eosinophil",
    "lymp": "lymphocyte",
    "mono": "monocyte",
    "neut": "neutrophil",
}
"""Names that are a class of no space, by the row of `MAPS` that they mean."""

_ROWS: dict[str, str] = {
    **{normalise(row): row for row in MAPS},
    **{normalise(a): c for s in LABEL_SPACES.values() for a, c in s.aliases},
    **{normalise(a): row for a, row in _SYNONYMS.items()},
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
    names = (*space.classes, *(a for a, _ in space.aliases), *MAPS, *_SYNONYMS)
    return tuple(dict.fromkeys(names))


def translate(name: str, space: LabelSpace) -> int | None:
    """Translate a class name found in any data set into a class of ``space``, by `MAPS`.

    Returns:
        The class index; ``UNKNOWN`` for a white cell whose type this space cannot tell (it must
        be neither learned nor punished); None for what is background in this space.

    Raises:
        KeyError: the name is none that this project knows.
    """
    found = space.find(name)
    if found is not None:
        return found
    row = _ROWS.get(normalise(name))
    if row is None:
        raise KeyError(name)
    # A space that is not built in has no column: it tells apart only what it names itself.
    mapped = MAPS[row].get(space.name)
    if mapped is None:
        mapped = _BACKGROUND if MAPS[row][WBC.name] == _BACKGROUND else _TYPE_UNKNOWN
    if mapped == _BACKGROUND:
        return None
    return UNKNOWN if mapped == _TYPE_UNKNOWN else space.find(row if mapped == _SAME else mapped)
