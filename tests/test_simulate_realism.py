"""The estimators behind the realism table recover what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from da_leukemia.simulate import contact_sheet
from da_leukemia.simulate.realism import MEASURES, measure, summarise, tables


def _discs(sigma: float, noise: float = 0.0, count: int = 16) -> np.ndarray:
    """Draw ``count`` red cells of 32 x 56 px on an empty background."""
    y, x = np.mgrid[:640, :640]
    mask = np.zeros((640, 640))
    for i in range(count):
        cx, cy = 80 + 160 * (i % 4), 80 + 160 * (i // 4)
        mask[((x - cx) / 16) ** 2 + ((y - cy) / 28) ** 2 < 1] = 1
    mask = gaussian_filter(mask, sigma)[..., None]
    image = mask * (90, 100, 130) + (1 - mask) * (160, 162, 152)
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return np.round(image).astype(np.uint8)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_size_and_edges_of_red_cells_are_recovered(sigma: float):
    found = measure(_discs(sigma))
    assert found["width"][0] == pytest.approx(32, abs=3)
    assert found["height"][0] == pytest.approx(56, abs=3)
    # The 10-90 % width of an edge blurred by a Gaussian is 2.563 sigma.
    assert found["edge x"][0] == pytest.approx(2.563 * sigma, rel=0.15)
    assert found["edge y"][0] == pytest.approx(2.563 * sigma, rel=0.2)


def test_colour_density_and_noise_are_recovered():
    found = measure(_discs(1.5, noise=1.0))
    np.testing.assert_allclose(found["background"], (160, 162, 152), atol=1)
    np.testing.assert_allclose(found["red cell"], (90, 100, 130), atol=4)
    assert np.isnan(found["nucleus"]).all()
    assert found["red cells"][0] == pytest.approx(16, abs=0.5)
    assert found["red share"][0] == pytest.approx(16 * np.pi * 16 * 28 / 640**2, rel=0.1)
    assert found["noise"][0] == pytest.approx(1.0, rel=0.1)


def test_sharper_fields_have_more_laplacian():
    sharp, blurred = (measure(_discs(s))["Laplacian"][0] for s in (1.0, 3.0))
    assert sharp > 4 * blurred


def test_what_a_field_does_not_show_is_left_out_of_the_summary():
    empty = np.full((640, 640, 3), 160, np.uint8)
    found = measure(empty)
    assert set(found) == set(MEASURES)
    for name in ("width", "height", "red cells", "edge x", "edge y"):
        assert np.isnan(found[name]).all()
    assert summarise([empty])["width"] == "-"
    assert summarise([empty, _discs(1.5)])["width"] == summarise([_discs(1.5)])["width"]


def test_the_tables_give_median_and_quartiles_of_every_measure():
    text = tables([("drawn", [_discs(1.5), _discs(1.0), _discs(2.0)])])
    colours, shapes = text.split("\n\n")
    assert "background" in colours
    for name in MEASURES[3:]:
        assert name in shapes.splitlines()[0]
    assert "| drawn (3) | 160,162,152 (160,162,152 - 160,162,152) |" in colours
    assert len({line.count("|") for line in shapes.splitlines()}) == 1


def test_the_command_writes_the_sheet_with_real_fields_beside(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(contact_sheet, "take", lambda *_: _discs(1.5))
    (tmp_path / "real").mkdir()
    Image.fromarray(_discs(1.0)).save(tmp_path / "real/1_1_1000_ALL.png")
    out = tmp_path / "sheet.jpg"
    contact_sheet.main([str(out), "--real", str(tmp_path / "real"), "--fields", "1"])
    assert "| real (1) |" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.width == 200 * len(contact_sheet.COLUMNS)
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match=r"no \.png or \.jpg"):
        contact_sheet.main([str(out), "--real", str(tmp_path / "none"), "--fields", "0"])
