from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from da_leukemia.calibration import (
    Calibration,
    Quantity,
    boxes_back,
    flat_field,
    same_colour,
    scale_factors,
    scale_to,
    stain_matrix,
)
from da_leukemia.calibration.apply import NUCLEUS, RED_CELL, WHITE, fill_colour
from da_leukemia.calibration.light import render
from da_leukemia.calibration.record import Surface

UNKNOWN = Calibration(fields=10, size=(64, 48))


def known(x=8.0, y=8.0):
    surface = Surface(((0, 0), (2, 0), (0, 2)), ((0.0, -0.3, -0.2),) * 3)
    return Calibration(
        fields=10,
        size=(64, 48),
        px_per_um_x=Quantity(x, x, x),
        px_per_um_y=Quantity(y, y, y),
        illumination=surface,
        background=(Quantity(200, 198, 202), Quantity(180, 178, 182), Quantity(160, 158, 162)),
    )


def test_what_is_unknown_leaves_the_image_alone():
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    boxes = np.array([[1.5, 2, 30, 40]])
    assert flat_field(image, UNKNOWN) is image
    assert same_colour(image, UNKNOWN) is image
    same, there = scale_to(image, boxes, UNKNOWN, 6.0)
    assert same is image
    assert (there == boxes).all()


@pytest.mark.parametrize("size", [(48, 64), (480, 640)])
def test_a_flat_field_evens_the_lamp_at_any_size(size):
    calibration = known()
    image = (180 * render(calibration.illumination, *size) + 0.5).astype(np.uint8)
    assert np.ptp(image) > 50
    assert np.abs(flat_field(image, calibration).astype(int) - 180).max() <= 1


def test_the_clear_background_turns_white_and_neutral():
    image = np.broadcast_to(np.array([200, 180, 160], np.uint8), (8, 8, 3))
    assert (same_colour(image, known()) == 230).all()


def test_corrections_do_not_depend_on_what_a_field_shows():
    rng = np.random.default_rng(1)
    image = rng.integers(60, 200, (48, 64, 3)).astype(np.uint8)
    other = image.copy()
    other[:, 32:] = 0
    for correct in (flat_field, same_colour):
        left = correct(image, known())[:, :32]
        assert (left == correct(other, known())[:, :32]).all()


def test_a_squeezed_device_is_unsqueezed():
    image = np.zeros((64, 64, 3), np.uint8)
    out, boxes = scale_to(image, np.array([[8.0, 8, 16, 24]]), known(x=4.0, y=8.0), 8.0)
    assert out.shape == (64, 128, 3)
    assert boxes.tolist() == [[16, 8, 32, 24]]


@pytest.mark.parametrize(("aspect", "square"), [((0.95, 1.05), True), ((0.5, 0.6), False)])
def test_pixels_that_may_be_square_are_scaled_alike(aspect, square):
    low, high = aspect
    device = replace(known(x=4.0, y=4.4), aspect=Quantity((low + high) / 2, low, high))
    x, y = scale_factors(device, 8.0, (6400, 4800))
    assert (x == pytest.approx(y, rel=1e-3)) is square
    assert x * y == pytest.approx(64 / (4.0 * 4.4), rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(8, 200),
    height=st.integers(8, 200),
    x=st.floats(1, 20),
    y=st.floats(1, 20),
    to=st.floats(1, 20),
    seed=st.integers(0, 99),
)
def test_boxes_go_there_and_back_exactly(width, height, x, y, to, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, [width, height], (5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 9, (5, 2))], axis=1)
    calibration = known(x, y)
    image = np.zeros((height, width, 3), np.uint8)
    out, there = scale_to(image, boxes, calibration, to)
    factors = scale_factors(calibration, to, (width, height))
    assert out.shape[:2] == (round(height * factors[1]), round(width * factors[0]))
    frame = np.array([[0.0, 0, width, height]])
    edge = scale_to(image, frame, calibration, to)[1][0, 2:]
    assert edge == pytest.approx(out.shape[1::-1], rel=1e-12)
    back = boxes_back(there, calibration, to, (width, height))
    assert back == pytest.approx(boxes, rel=1e-12, abs=1e-9)


def test_no_boxes_stay_no_boxes():
    _, boxes = scale_to(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4)), known(), 4.0)
    assert boxes.shape == (0, 4)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="positive"):
        scale_factors(known(), scale, (64, 48))


def triple(*levels):
    return tuple(Quantity(v, v - 2, v + 2) for v in levels)


def stained(background, red_cell, nucleus=None):
    return Calibration(
        fields=9,
        size=(64, 48),
        background=triple(*background),
        red_cell_colour=triple(*red_cell),
        nucleus_colour=nucleus and triple(*nucleus),
    )


PALE = stained((208, 210, 202), (190, 170, 180))
DEEP = stained((180, 230, 198), (150, 130, 150))


@pytest.mark.parametrize("device", [PALE, DEEP])
def test_the_background_becomes_white_and_red_cells_equally_dense(device):
    clear = [q.value for q in device.background]
    cell = [q.value for q in device.red_cell_colour]
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :3], image[:, 3:] = clear, cell
    out = same_colour(image, device).astype(float)
    assert np.abs(out[0, 0] - WHITE).max() <= 1
    density = -np.log(out[0, -1] / out[0, 0])
    assert density.mean() == pytest.approx(np.mean(RED_CELL), rel=0.05)
    before = -np.log(np.array(cell) / np.array(clear))
    np.testing.assert_allclose(density / density.sum(), before / before.sum(), atol=0.02)  # hue


# Background, red cells and nuclei as measured on a magenta and on a brown film.
MAGENTA = stained((182, 220, 192), (182, 115, 145), (85, 73, 142))
BROWN = stained((254, 227, 202), (210, 171, 169), (89, 42, 136))


def densities(device):
    """Density of red cells and nuclei after `same_colour`, (2, 3)."""
    row = [getattr(device, name) for name in ("background", "red_cell_colour", "nucleus_colour")]
    image = np.array([[[q.value for q in colour] for colour in row]], np.uint8)
    clear, *cells = same_colour(image, device)[0].astype(float)
    assert np.abs(clear - WHITE).max() <= 1
    return -np.log(np.array(cells) / clear)


@pytest.mark.parametrize("device", [MAGENTA, BROWN])
def test_red_cells_and_nuclei_come_to_common_densities(device):
    red, nucleus = densities(device)
    np.testing.assert_allclose(red, RED_CELL, atol=0.1)
    np.testing.assert_allclose(nucleus, NUCLEUS, atol=0.25)


def test_films_of_two_stains_look_more_alike_than_before():
    before = [
        np.log([[a.value / b.value for a, b in zip(d.background, colour, strict=True)]
                for colour in (d.red_cell_colour, d.nucleus_colour)])
        for d in (MAGENTA, BROWN)
    ]  # fmt: skip
    apart = np.abs(before[0] - before[1]).mean()
    assert np.abs(densities(MAGENTA) - densities(BROWN)).mean() < 0.5 * apart


def test_nearly_one_hue_does_not_mix_the_channels():
    """A phone's purple film: exactly matched, blue would be taken 1.4 times from red."""
    purple = stain_matrix(stained((242, 222, 224), (182, 125, 184), (153, 59, 195)))
    assert np.abs(purple - np.diag(np.diag(purple))).max() < 0.4


def test_every_row_of_a_tall_photograph_is_changed_alike():
    tall = np.tile(np.array([[[150, 130, 150]]], np.uint8), (1200, 2, 1))
    tall[700] = (90, 60, 120)
    out = same_colour(tall, BROWN)
    assert (out[:700] == out[0, 0]).all()
    assert (out[701:] == out[0, 0]).all()
    assert (out[700] != out[0, 0]).all()


def test_nuclei_of_an_uncertain_colour_are_no_reference():
    vague = tuple(Quantity(v, 0.3 * v, 1.5 * v) for v in (85, 73, 142))
    matrix = stain_matrix(replace(MAGENTA, nucleus_colour=vague))
    assert (matrix == stain_matrix(replace(MAGENTA, nucleus_colour=None))).all()
    assert (matrix != stain_matrix(MAGENTA)).any()


def test_a_wrong_stain_estimate_cannot_blacken_a_film():
    def strongest(*colours):
        return np.linalg.norm(stain_matrix(stained(*colours)), 2)

    assert strongest((200, 200, 200), (190, 190, 190)) == 2
    assert strongest((200, 200, 200), (5, 5, 5)) == 0.5
    assert strongest((200, 200, 200), (190, 190, 190), (185, 180, 190)) == pytest.approx(2)
    # Nuclei paler than red cells are none: one factor.
    paler = stain_matrix(stained((200, 200, 200), (150, 150, 150), (151, 160, 151)))
    assert paler[0, 0] != 1
    assert (paler == paler[0, 0] * np.eye(3)).all()
    for faint in (stained((200, 200, 200), (199, 199, 199)), stained((200,) * 3, (210,) * 3)):
        assert stain_matrix(faint).tolist() == np.eye(3).tolist()
    assert stain_matrix(known()).tolist() == np.eye(3).tolist()  # red cells unknown


def test_stains_of_one_hue_get_one_factor_for_all_channels_nearly():
    one = stained((200, 200, 200), (160, 160, 160), (80, 80, 80))
    moved = stain_matrix(one) @ [0.2, 0.0, -0.2]  # a hue that the references do not have
    assert np.abs(moved - moved[0] / 0.2 * np.array([0.2, 0, -0.2])).max() < 0.05


def test_unknown_colours_leave_the_image_alone():
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    assert same_colour(image, UNKNOWN) is image
    assert fill_colour(UNKNOWN, True, True) is None
    assert fill_colour(PALE, False, False) is None
    assert fill_colour(PALE, True, False).tolist() == [208, 210, 202]
    assert fill_colour(PALE, True, True).tolist() == [WHITE] * 3


def test_content_does_not_change_what_is_done_to_a_pixel():
    rng = np.random.default_rng(1)
    full, empty = rng.integers(20, 120, (48, 64, 3)), rng.integers(190, 210, (48, 64, 3))
    full[5, 5] = empty[5, 5] = (180, 130, 150)
    one, other = (same_colour(i.astype(np.uint8), PALE) for i in (full, empty))
    assert (one[5, 5] == other[5, 5]).all()


def test_a_part_of_the_frame_is_not_evened_with_the_light_of_the_whole():
    image = np.full((64, 64, 3), 180, np.uint8)  # the frame has 64 x 48
    assert flat_field(image, known()) is image
