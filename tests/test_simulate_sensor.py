"""Simulated devices with another sensor: the same field in other pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data.check import check
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.errors import ConfigError
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.simulate import simulate
from da_leukemia.simulate.domains import DomainName, parse_domain

BASE, WIDE = "H_100X_C2", "H_100X_C2@900x420"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("sensor") / "data"
    return simulate(out, domains=[BASE, WIDE], patients=3, fields_per_patient=2, seed=1)


def read(tree, name):
    index = read_domain(DomainSource(name, tree), "leukemiaattri", LEUKEMIAATTRI)
    return {(f.patient, f.name): f for f in index.fields}


def test_boxes_are_those_of_the_field_in_the_sensors_pixels(tree):
    base, wide = read(tree, BASE), read(tree, WIDE)
    assert base.keys() == wide.keys()
    assert sum(len(f.labels) for f in base.values()) > 5
    stretch = np.array([900 / 640, 420 / 640] * 2)
    for key, field in base.items():
        assert (wide[key].width, wide[key].height) == (900, 420)
        assert Image.open(wide[key].image).size == (900, 420)
        np.testing.assert_allclose(wide[key].boxes, field.boxes * stretch, atol=0.02)
        np.testing.assert_array_equal(wide[key].labels, field.labels)
        np.testing.assert_array_equal(wide[key].attributes, field.attributes)


def test_the_pixels_are_those_of_the_field(tree):
    base, wide = read(tree, BASE), read(tree, WIDE)
    for key, field in base.items():
        plain = Image.open(field.image).resize((160, 160), Image.Resampling.BOX)
        other = Image.open(wide[key].image).resize((160, 160), Image.Resampling.BOX)
        difference = np.asarray(plain, float) - np.asarray(other, float)
        assert np.abs(difference).mean() < 3


def test_such_a_device_is_ready_to_train_on(tree):
    report = check(tree)
    assert {d.domain for d in report.domains} == {BASE, WIDE}
    assert not [f for f in report.all_findings if f.severity == "error"]


def test_names_are_parsed_and_written_back():
    for name in (WIDE, f"{BASE}~blur~L_100X_C2@64x2000"):
        assert str(parse_domain(name)) == name
    assert parse_domain(WIDE) == DomainName(BASE, sensor=(900, 420))


@pytest.mark.parametrize("sensor", ["", "400", "400x", "63x400", "400x2001", "0400x300", "axb"])
def test_what_is_no_sensor_is_refused_with_an_example(sensor):
    with pytest.raises(ConfigError, match="H_100X_C2@400x280"):
        parse_domain(f"{BASE}@{sensor}")


@pytest.mark.parametrize("variant", [{"sparse": 0.2}, {"defects": True}])
def test_variants_of_the_release_have_its_size(tmp_path, variant):
    with pytest.raises(ConfigError, match="640 x 640"):
        simulate(tmp_path / "x", domains=[BASE, WIDE], patients=3, fields_per_patient=3, **variant)
