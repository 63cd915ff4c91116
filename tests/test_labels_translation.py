"""Class names of any data set end up in the right class of a label space, or nowhere."""

from __future__ import annotations

import pytest

from da_leukemia.labels import (
    LABEL_SPACES,
    LEUKEMIAATTRI,
    LINEAGE,
    UNKNOWN,
    WBC,
    WBC5,
    known_names,
    translate,
)


@pytest.mark.parametrize("space", LABEL_SPACES.values(), ids=lambda s: s.name)
def test_every_name_that_is_suggested_is_known(space):
    for name in known_names(space):
        index = translate(name, space)
        assert index is None or UNKNOWN <= index < len(space.classes)


@pytest.mark.parametrize(
    ("name", "space", "expected"),
    [
        ("Atypical Lymphocyte", LEUKEMIAATTRI, 4),
        ("Unidentified", LEUKEMIAATTRI, 0),
        ("Unidentified", WBC, None),
        ("WBC", LEUKEMIAATTRI, UNKNOWN),
        ("myeloblast", WBC, 0),
        ("myeloblast", LINEAGE, 0),
        ("myeloblast", WBC5, UNKNOWN),
        ("Neutrophil", WBC5, 0),
        ("RBC", WBC5, None),
    ],
)
def test_names_are_translated_between_spaces(name, space, expected):
    assert translate(name, space) == expected


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError):
        translate("megakaryocyte", WBC)
