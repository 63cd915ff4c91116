"""Which location answers for which cell, on examples small enough to do by hand."""

from __future__ import annotations

import pytest
import torch

from da_leukemia.data.batches import Targets
from da_leukemia.models.assign import assign

SIZE = 256
STRIDES = (8, 16, 32)


def grid(strides=STRIDES, size=SIZE):
    points, levels = [], []
    for stride in strides:
        centres = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], -1))
        levels.append(torch.full((len(points[-1]),), float(stride)))
    return torch.cat(points), torch.cat(levels)


def targets_of(*boxes, labels=None, images=1, padded=5):
    count = len(boxes)
    out = Targets(
        torch.zeros(images, padded, 4),
        torch.full((images, padded), -1),
        torch.full((images, padded, 0), -1),
        torch.zeros(images, padded, dtype=torch.bool),
        torch.ones(images, 3, dtype=torch.bool),
    )
    if count:
        out.boxes[0, :count] = torch.tensor(boxes, dtype=torch.float32)
        out.labels[0, :count] = torch.tensor(labels or [0] * count)
        out.mask[0, :count] = True
    return out


def answers(targets, strides=STRIDES):
    """Return ``{(x, y, stride): box}`` of the positive locations of the first image."""
    points, levels = grid(strides)
    found = assign(targets, points, levels)
    return {
        (*points[i].tolist(), int(levels[i])): int(found.box[0, i])
        for i in found.positive[0].nonzero().squeeze(1).tolist()
    }


def square(x, y, side):
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def test_the_locations_near_the_centre_answer_and_no_other():
    # A 40-px cell centred on the location (100, 100): 1.5 strides = 12 px reach the 8 neighbours.
    expected = {(x, y, 8) for x in (92, 100, 108) for y in (92, 100, 108)}
    assert set(answers(targets_of(square(100, 100, 40)))) == expected


def test_a_location_must_lie_inside_its_box():
    # 10 px wide: the neighbours at 8 px are near enough but outside.
    assert set(answers(targets_of(square(100, 100, 10)))) == {(100, 100, 8)}
    # A slim cell keeps the column inside it only.
    assert set(answers(targets_of((97, 80, 103, 120)))) == {(100, y, 8) for y in (92, 100, 108)}
    # Exactly on the border is outside.
    assert set(answers(targets_of((92, 92, 108, 108)))) == {(100, 100, 8)}


@pytest.mark.parametrize(
    ("side", "stride"), [(3, 8), (20, 8), (64, 8), (65, 16), (128, 16), (129, 32), (250, 32)]
)
def test_size_decides_the_level(side, stride):
    levels = {key[2] for key in answers(targets_of(square(124, 124, side)))}
    assert levels == {stride}


def test_the_coarsest_level_takes_all_that_is_larger():
    assert {key[2] for key in answers(targets_of((0, 0, 256, 256)), strides=(8,))} == {8}


@pytest.mark.parametrize("side", [10, 60, 70, 130, 200])
@pytest.mark.parametrize("strides", [(8, 32), (4, 16, 32), (16,), (4, 8, 16, 32)])
def test_every_size_has_a_level_whatever_strides_are_chosen(side, strides):
    """The finest level that reaches the cell, also where the strides skip a power of two."""
    wanted = next((s for s in strides if 8 * s >= side), strides[-1])
    found = answers(targets_of(square(124, 124, side)), strides)
    assert {key[2] for key in found} == {wanted}


def test_the_level_goes_by_area_not_by_the_longer_side():
    # 32 x 128: the root of the area is 64.
    assert {key[2] for key in answers(targets_of((60, 60, 92, 188)))} == {8}


def test_of_two_cells_the_smaller_wins():
    large, small = square(100, 100, 60), square(100, 100, 20)
    for boxes, winner in (((large, small), 1), ((small, large), 0)):
        found = answers(targets_of(*boxes))
        assert found[(100, 100, 8)] == winner
    side_by_side = answers(targets_of(square(60, 60, 20), square(180, 60, 20)))
    assert side_by_side[(60, 60, 8)] == 0
    assert side_by_side[(180, 60, 8)] == 1


def test_a_cell_of_unknown_type_is_neither_learned_nor_background():
    points, levels = grid()
    found = assign(targets_of(square(100, 100, 40), labels=[-1]), points, levels)
    assert not found.positive.any()
    x, y = points.T
    inside = (x > 80) & (x < 120) & (y > 80) & (y < 120)
    assert torch.equal(~found.background[0], inside)  # on every level


def test_a_known_cell_on_an_unknown_one_is_learned_still():
    found = answers(targets_of(square(100, 100, 60), square(100, 100, 20), labels=[-1, 2]))
    assert found == {
        (100, 100, 8): 1,
        **{(x, y, 8): 1 for x in (92, 100, 108) for y in (92, 100, 108)},
    }


def test_what_is_no_cells_centre_is_background():
    points, levels = grid()
    found = assign(targets_of(square(100, 100, 40)), points, levels)
    assert torch.equal(found.background, ~found.positive)
    empty = assign(targets_of(), points, levels)
    assert empty.background.all()
    assert not empty.positive.any()


def test_padding_and_other_images_have_no_say():
    points, levels = grid()
    targets = targets_of(square(100, 100, 40), images=3)
    targets.boxes[0, 3] = torch.tensor(square(200, 200, 40))  # beyond the mask
    targets.labels[0, 3] = 1
    found = assign(targets, points, levels)
    assert found.positive.sum(1).tolist() == [9, 0, 0]
    assert (found.box[found.positive] == 0).all()


def test_a_cell_between_all_locations_is_learned_by_the_nearest():
    # 5 px wide, between the stride-8 locations at 4 and 12: none of them lies inside it.
    boxes = torch.tensor([[[5.6, 5.6, 10.4, 10.4]]])
    targets = Targets(
        boxes,
        torch.zeros(1, 1, dtype=torch.long),
        torch.zeros(1, 1, 0, dtype=torch.long),
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, 1, dtype=torch.bool),
    )
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [4.0, 12.0], [12.0, 12.0], [20.0, 4.0]])
    found = assign(targets, points, torch.full((5,), 8.0))
    assert found.positive[0, :4].any()
    assert not found.positive[0, 4]
