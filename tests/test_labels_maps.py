"""Every class of every label space has one declared meaning in every other."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from da_leukemia.labels import (
    LABEL_SPACES,
    LEUKEMIAATTRI,
    LEUKEMIAATTRI13,
    M5,
    MAPS,
    UNKNOWN,
    WBC,
    WBC5,
    WBCATT,
    LabelSpace,
    translate,
)

SPACES = tuple(LABEL_SPACES.values())
PAIRS = [
    pytest.param(a, b, id=f"{a.name}-{b.name}") for a, b in itertools.product(SPACES, repeat=2)
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_map_between_two_spaces_is_total_and_declared(source, target):
    for name in source.classes:
        declared = MAPS[name][target.name]
        index = translate(name, target)
        if declared == "-":
            assert index is None
        elif declared == "?":
            assert index == UNKNOWN
        else:
            assert index is not None
            assert target.classes[index] == (name if declared == "=" else declared)
        if name in target.classes:
            assert declared == "="
            assert index == target.classes.index(name)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_other_names_of_a_class_mean_the_same_in_every_space(space):
    for source in SPACES:
        for alias, name in source.aliases:
            assert translate(alias, space) == translate(name, space)
    assert translate("Platelets", space) == space.find("platelet")
    assert translate("red blood cells", space) is None


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_a_white_cell_never_becomes_background_in_a_space_of_white_cells(space):
    for name in (n for n, row in MAPS.items() if row[WBC.name] != "-"):
        index = translate(name, space)
        assert (index is None) == (space is M5)


def test_artefacts_are_ignored_where_the_thirteen_types_are_told_apart():
    assert translate("None", LEUKEMIAATTRI) == 0
    assert translate("None", LEUKEMIAATTRI13) == UNKNOWN
    assert LEUKEMIAATTRI13.classes == LEUKEMIAATTRI.classes[1:]
    assert translate("myeloblast", LEUKEMIAATTRI13) == 0


def test_parasites_are_no_white_cells_and_white_cells_no_parasites():
    assert translate("Ring", M5) == 3
    assert translate("ring", WBC) is None
    assert translate("leukocyte", M5) is None
    assert M5.attributes == ()


def test_a_space_of_ones_own_tells_apart_what_it_names():
    own = LabelSpace("own", ("myeloblast",))
    assert translate("Myeloblast", own) == 0
    assert translate("neutrophil", own) == UNKNOWN
    assert translate("ring", own) is None
    with pytest.raises(KeyError):
        translate("megakaryocyte", own)


def test_wbcatt_has_five_types_and_eleven_attributes():
    assert WBCATT.classes == WBC5.classes
    assert len(WBCATT.attributes) == 11
    assert WBCATT.find_attribute("Nucleus Shape") == 2
    assert WBCATT.find_attribute("nucleolus") is None


PACK = os.environ.get("DA_LEUKEMIA_SMEARS", "")


@pytest.mark.skipif(not PACK, reason="DA_LEUKEMIA_SMEARS does not point to the real pack")
def test_wbcatt_knows_every_attribute_and_value_of_the_real_annotations():
    content = json.loads((Path(PACK) / "pbc/annotations.json").read_text())
    seen: dict[str, set[str]] = {}
    for annotation in content["annotations"]:
        for key, value in (annotation.get("attributes") or {}).items():
            seen.setdefault(key, set()).add(value)
    assert {a.name: set(a.values) for a in WBCATT.attributes} == seen
