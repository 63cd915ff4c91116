"""Optical factors are switched one by one between two simulated devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.errors import ConfigError
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.simulate import (
    DEVICES,
    FACTORS,
    Scene,
    device_of,
    mixed,
    photograph,
    render_field,
    simulate,
)
from da_leukemia.simulate.domains import parse_domain

BASE, OTHER = "H_100X_C2", "L_100X_C1"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_field(0, 1, 1)


def _shot(scene: Scene, domain: str) -> np.ndarray:
    return photograph(scene, device_of(domain), np.random.default_rng(5))


def test_a_device_with_all_factors_of_another_is_the_other(scene: Scene):
    for base, other in ((BASE, OTHER), (OTHER, "H_10X_C2")):
        np.testing.assert_array_equal(
            _shot(scene, mixed(base, FACTORS, other)), _shot(scene, other)
        )


def test_a_device_without_factors_is_itself(scene: Scene):
    assert device_of(BASE) is DEVICES[BASE]


@pytest.mark.parametrize("factor", FACTORS)
def test_each_factor_changes_the_photograph_and_the_last_one_matters(scene: Scene, factor: str):
    alone = _shot(scene, mixed(BASE, [factor], OTHER))
    assert not np.array_equal(alone, _shot(scene, BASE))
    all_but = _shot(scene, mixed(BASE, [f for f in FACTORS if f != factor], OTHER))
    assert not np.array_equal(all_but, _shot(scene, OTHER))


def test_every_optical_field_of_a_device_belongs_to_one_factor():
    owned = [key for keys in FACTORS.values() for key in keys]
    assert sorted(owned) == sorted(set(vars(DEVICES[BASE])) - {"name", "sensor"})


def test_colour_shifts_the_background_and_blur_takes_sharpness(scene: Scene):
    def background(domain: str) -> np.ndarray:
        return np.median(_shot(scene, domain).reshape(-1, 3), axis=0)

    def sharpness(domain: str) -> float:
        return float(np.abs(np.diff(_shot(scene, domain).astype(float), axis=1)).mean())

    assert np.abs(background(mixed(BASE, ["colour"], OTHER)) - background(BASE)).max() > 10
    assert np.abs(background(mixed(BASE, ["blur"], OTHER)) - background(BASE)).max() < 3
    assert sharpness(mixed(BASE, ["blur"], OTHER)) < 0.8 * sharpness(BASE)


def test_a_mixed_device_is_a_domain_that_the_reader_reads(tmp_path: Path):
    some, everything = mixed(BASE, ["blur"], OTHER), mixed(BASE, FACTORS, OTHER)
    domains = [BASE, OTHER, some, everything]
    out = simulate(tmp_path / "a", domains=domains, patients=2, fields_per_patient=1)
    read = {
        name: read_domain(DomainSource(name, out), "leukemiaattri", LEUKEMIAATTRI)
        for name in domains
    }
    for index in read.values():
        assert (len(index), index.findings) == (2, ())
        for field, original in zip(index, read[BASE], strict=True):
            assert (field.patient, field.name) == (original.patient, original.name)
            np.testing.assert_array_equal(field.boxes, original.boxes)

    def pixels(domain: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(field.image)) for field in read[domain]]

    # On disk too: the noise of each field comes from the device whose factor it is.
    np.testing.assert_array_equal(pixels(everything), pixels(OTHER))
    assert not np.array_equal(pixels(some), pixels(BASE))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("H_100X_C2~blurr~L_100X_C2", "unknown factor 'blurr'; did you mean 'blur'"),
        ("H_100X_C2~blur~L_100_C2", "unknown device 'L_100_C2'; did you mean 'L_100X_C2'"),
        ("H_100X_C2~blur~H_100X_C2", "cannot take factors from itself"),
        ("H_100X_C2~~L_100X_C2", "at least one factor"),
        ("H_100X_C2~blur", "write BASE~factor"),
        ("H_100X_C2~noise+blur~L_100X_C2", "write H_100X_C2~blur\\+noise~L_100X_C2"),
        ("H_100X_C2~blur+blur~L_100X_C2", "write H_100X_C2~blur~L_100X_C2"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(tmp_path: Path, name: str, said: str):
    with pytest.raises(ConfigError, match=said):
        parse_domain(name)
    with pytest.raises(ConfigError, match=r"simulate\.domains"):
        simulate(tmp_path / "a", domains=[name], patients=1, fields_per_patient=1)
    assert not (tmp_path / "a").exists()
