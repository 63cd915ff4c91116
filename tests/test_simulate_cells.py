"""Simulated cells: what the labels say is what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.simulate import render_field
from da_leukemia.simulate.cells import CELL_TYPES, draw_attributes, draw_cell
from da_leukemia.simulate.patients import DIAGNOSES, make_patient
from da_leukemia.simulate.scene import cell_size
from da_leukemia.simulate.shapes import Patch

CHROMATIN, SHAPE, NUCLEOLUS, CYTOPLASM, BASOPHILIA, VACUOLES = range(6)
PALETTE = make_patient(0, 2).palette


def _pairs(kind: str, attribute: int, diameter: float = 70.0) -> list[tuple[Patch, Patch]]:
    """Twins drawn from the same random numbers: the attribute off, and on."""
    pairs = []
    for seed in range(6):
        codes = [0, 0, 0, 1, 0, 0]
        twins = []
        for value in (0, 1):
            codes[attribute] = value
            rng = np.random.default_rng(seed)
            twins.append(draw_cell(kind, codes, PALETTE, rng, diameter))
        pairs.append((twins[0], twins[1]))
    return pairs


def _cytoplasm(cell: Patch) -> np.ndarray:
    return (cell.alpha > 0.9) & (cell.nucleus < 0.1)


def _inner_nucleus(cell: Patch) -> np.ndarray:
    return binary_erosion(cell.nucleus > 0.95, iterations=2)


@pytest.mark.parametrize("kind", CELL_TYPES)
def test_abundant_cytoplasm_covers_more_than_scanty(kind: str):
    for scanty, abundant in _pairs(kind, CYTOPLASM):
        share = [_cytoplasm(c).sum() / (c.alpha > 0.9).sum() for c in (scanty, abundant)]
        assert share[1] > 1.15 * share[0]


@pytest.mark.parametrize("kind", ["myeloblast", "lymphocyte", "monocyte"])
def test_coarse_chromatin_is_blockier_than_open(kind: str):
    for fine, coarse in _pairs(kind, CHROMATIN):
        spread = [c.od[1][_inner_nucleus(c)].std() for c in (fine, coarse)]
        assert spread[1] > 1.4 * spread[0]


@pytest.mark.parametrize("kind", ["myeloblast", "monoblast", "promonocyte"])
def test_a_prominent_nucleolus_is_a_pale_spot(kind: str):
    for without, prominent in _pairs(kind, NUCLEOLUS):
        palest = [np.percentile(c.od[1][_inner_nucleus(c)], 1) for c in (without, prominent)]
        assert palest[1] < 0.85 * palest[0]


@pytest.mark.parametrize("kind", ["neutrophil", "monocyte", "metamyelocyte", "myeloblast"])
def test_an_irregular_nucleus_fills_its_circle_less(kind: str):
    fill: list[list[float]] = [[], []]
    for pair in _pairs(kind, SHAPE):
        for i, cell in enumerate(pair):
            rows, cols = np.nonzero(cell.nucleus > 0.5)
            reach = np.hypot(rows - rows.mean(), cols - cols.mean()).max()
            fill[i].append(len(rows) / (np.pi * reach**2))
    assert np.mean(fill[1]) < 0.93 * np.mean(fill[0])


@pytest.mark.parametrize("kind", ["monoblast", "lymphoblast", "myelocyte"])
def test_basophilic_cytoplasm_is_bluer(kind: str):
    for slight, moderate in _pairs(kind, BASOPHILIA):
        red = [c.od[0][_cytoplasm(c)].mean() for c in (slight, moderate)]
        assert red[1] > 1.3 * red[0]


@pytest.mark.parametrize("kind", ["monocyte", "monoblast", "promonocyte"])
def test_vacuoles_are_clear_holes_in_the_cytoplasm(kind: str):
    for absent, prominent in _pairs(kind, VACUOLES):
        clear = [np.percentile(c.od[1][_cytoplasm(c)], 3) for c in (absent, prominent)]
        assert clear[1] < 0.6 * clear[0]


def test_granules_tell_the_granulocytes_apart():
    codes = [1, 1, 0, 1, 0, 0]
    plasma = {}
    for kind in ("neutrophil", "eosinophil", "basophil", "abnormal_promyelocyte"):
        cell = draw_cell(kind, codes, PALETTE, np.random.default_rng(1), 62.0)
        plasma[kind] = cell.od[:, _cytoplasm(cell)]
    blue_light = {kind: od[2].mean() for kind, od in plasma.items()}
    assert blue_light["eosinophil"] > 2 * blue_light["neutrophil"]
    darkest = {kind: np.percentile(od[1], 97) for kind, od in plasma.items()}
    assert darkest["basophil"] > darkest["abnormal_promyelocyte"] > darkest["neutrophil"]


def test_attributes_go_with_the_type_but_vary():
    rng = np.random.default_rng(0)
    drawn = {
        kind: np.mean([draw_attributes(kind, rng) for _ in range(300)], axis=0)
        for kind in CELL_TYPES
    }
    assert drawn["neutrophil"][CHROMATIN] > 0.9 > 0.2 > drawn["myeloblast"][CHROMATIN]
    assert drawn["monocyte"][VACUOLES] > 0.6 > 0.2 > drawn["lymphocyte"][VACUOLES]
    assert 0 < drawn["myeloblast"][NUCLEOLUS] < 1


def test_boxes_are_inside_and_tight_around_the_ink():
    for patient in range(1, 7):
        scene = render_field(1, patient, 1)
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, 2:] <= 640).all()
        assert len(scene.boxes) == len(scene.labels) == len(scene.attributes) > 0
        for index, (x0, y0, x1, y1) in enumerate(scene.boxes, start=1):
            rows, cols = np.nonzero(scene.owner == index)
            ink = np.array([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1], dtype=float)
            ink *= [0.8, 640 / 448] * 2
            loose = np.array([ink[0] - x0, ink[1] - y0, x1 - ink[2], y1 - ink[3]])
            assert (loose >= 0).all()
            assert (loose <= 7).all()


def test_size_is_read_off_the_box_and_artefacts_have_no_attributes():
    labels = []
    for patient in range(1, 11):
        scene = render_field(0, patient, 5)
        labels += scene.labels.tolist()
        for box, label, codes in zip(scene.boxes, scene.labels, scene.attributes, strict=True):
            if label == 0:
                assert (codes == -1).all()
            else:
                width, height = (box[2] - box[0]) / 0.8, (box[3] - box[1]) * 0.7
                assert codes[0] == cell_size(width, height)
                assert set(codes[1:]) <= {0, 1}
    assert 0 in labels
    assert max(labels) < len(LEUKEMIAATTRI.classes)
    assert [cell_size(50, 60), cell_size(60, 50), cell_size(70, 70)] == [0, 0, 1]
    assert [cell_size(95, 90), cell_size(90.5, 71), cell_size(120, 71)] == [2, 1, 2]


def test_patients_take_turns_in_diagnosis_and_all_types_occur_somewhere():
    patients = [make_patient(0, p) for p in range(1, 31)]
    assert tuple(p.diagnosis for p in patients[:5]) == DIAGNOSES
    assert {kind for p in patients for kind in p.mix} == set(CELL_TYPES)
    assert max(p.mix.get("lymphoblast", 0) for p in patients if p.diagnosis == "ALL") > 0.5
    assert min(p.mix["atypical_lymphocyte"] for p in patients if p.diagnosis == "CLL") > 0.85
