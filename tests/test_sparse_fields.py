"""Fields of which patches alone are annotated: made so by a setting, and seen through views."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from adaptation_kit import draw
from PIL import Image
from test_windows import device, field_of

from da_leukemia.config import Augmentation, Sparse
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.preparation import Preparation
from da_leukemia.data.sparse import centred_in, made_sparse, opened, patches
from da_leukemia.data.splits import Split
from da_leukemia.data.views import warp_images, warp_targets, weak_geometry
from da_leukemia.labels import WBC

W, H = 96, 64


def field(name="1", cells=40, size=(W, H)):
    rng = np.random.default_rng(3)
    low = rng.uniform(0, np.array(size) - 8, (cells, 2))
    made = field_of(np.concatenate([low, low + 8], 1), size)
    return dataclasses.replace(made, name=name, patient=name)


def index_of(*names):
    fields = tuple(field(n) for n in names)
    return FieldIndex("d", fields)


def split_of(index, **parts):
    return Split({f.group: parts.get(f"p{f.name}", "train") for f in index})


# --- made sparse -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(W, H), (640, 480), (100, 300)])
def test_patches_have_the_area_that_was_asked_for_and_never_overlap(size):
    for area, count in itertools.product((0.05, 0.2, 0.5, 0.97), (1, 2, 3, 4, 7)):
        regions = np.array(patches(field(size=size), Sparse(area=area, patches=count)))
        assert len(regions) == count
        sides = regions[:, 2:] - regions[:, :2]
        assert sides.prod(1).sum() == pytest.approx(area * size[0] * size[1])
        assert (regions >= -1e-9).all()
        assert (regions <= np.array([*size, *size]) + 1e-9).all()
        for a, b in itertools.combinations(regions, 2):
            common = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            assert (common <= 1e-9).any()


def test_a_larger_area_holds_a_smaller_one():
    areas = (0.05, 0.1, 0.2, 0.5, 0.9)
    for count in (1, 3):
        found = [np.array(patches(field(), Sparse(area=a, patches=count))) for a in areas]
        for small, large in itertools.pairwise(found):
            assert (large[:, :2] <= small[:, :2] + 1e-9).all()
            assert (large[:, 2:] >= small[:, 2:] - 1e-9).all()


def test_patches_depend_on_name_and_seed_and_on_nothing_else():
    one, other = field("1"), field("2")
    assert patches(one, Sparse(0.2)) == patches(one, Sparse(0.2))
    assert patches(one, Sparse(0.2)) != patches(other, Sparse(0.2))
    assert patches(one, Sparse(0.2)) != patches(one, Sparse(0.2, seed=1))
    bare = dataclasses.replace(one, boxes=one.boxes[:0], labels=one.labels[:0])
    assert patches(bare, Sparse(0.2)) == patches(one, Sparse(0.2))


def test_cells_outside_are_forgotten_and_test_fields_stay_whole():
    index = index_of("1", "2", "3")
    split = split_of(index, p2="validation", p3="test")
    train, validation, test = made_sparse(index, split, Sparse(0.3)).fields
    assert test is index.fields[2]
    for sparse, whole in zip((train, validation), index, strict=False):
        assert 0 < len(sparse.boxes) < len(whole.boxes)
        inside = centred_in(whole.boxes, sparse.annotated_regions)
        np.testing.assert_array_equal(sparse.boxes, whole.boxes[inside])
        assert len(sparse.labels) == len(sparse.attributes) == len(sparse.boxes)
    assert made_sparse(index, split, Sparse()) is index


def test_a_field_that_is_sparse_already_stays_as_it_is():
    given = dataclasses.replace(field(), annotated_regions=((1, 2, 30, 40),))
    index = FieldIndex("d", (given,))
    assert made_sparse(index, split_of(index), Sparse(0.1)).fields[0] is given


def test_beyond_the_edge_nothing_was_left_out():
    given = dataclasses.replace(field(), annotated_regions=((0, 5, W, 20), (3, 0, 9, H)))
    assert opened(given).tolist() == [
        [-np.inf, 5, np.inf, 20],
        [3, -np.inf, 9, np.inf],
    ]
    assert opened(field()).tolist() == [[-np.inf, -np.inf, np.inf, np.inf]]


# --- seen through views ------------------------------------------------------------------------


def mask_file(path, size, regions):
    """Draw the regions white on black."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for x1, y1, x2, y2 in regions:
        image[y1:y2, x1:x2] = 255
    Image.fromarray(image).save(path)
    return path


def searched(targets, size):
    axis = torch.arange(size) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], -1)
    return targets.searched(points).view(-1, size, size)


def sparse_data(tmp_path, regions, how, size=(W, H), boxes=(), **rest):
    path = mask_file(tmp_path / "mask.png", size, regions)
    made = dataclasses.replace(field_of(boxes, size, path), annotated_regions=tuple(regions))
    return FieldDataset([made], WBC, how, **rest)


REGIONS = ((12, 8, 40, 30), (50, 40, 70, 60))


@pytest.mark.parametrize(("fx", "fy"), [(-1, 1), (1, -1), (-1, -1), (1, 1)])
@pytest.mark.parametrize("shift", [(0, 0), (7, -5)])
def test_regions_go_with_the_pixels_through_flips_and_shifts(tmp_path, fx, fy, shift):
    batch = sparse_data(tmp_path, REGIONS, W).labelled([0])
    factor, move = torch.tensor([fx, fy]).float(), torch.tensor(shift).float()
    geometry = torch.stack([factor, W / 2 - factor * W / 2 + move], -1)[None]
    black = torch.zeros(1, 3)
    image = warp_images(batch.images.float() / 255, black, geometry)
    targets = warp_targets(batch.targets, geometry, W)
    assert torch.equal(searched(targets, W), image[:, 0] > 0.5)
    assert (image[:, 0] > 0.5).sum() > 500


def profile_mask(image):
    """Where a single white rectangle is: columns and rows whose peak passes a half."""
    plane = image[0, 0] > 0.5
    columns, rows = plane.any(0), plane.any(1)
    return rows[:, None] & columns[None, :]


def test_a_region_goes_with_the_pixels_through_every_augmentation(tmp_path):
    batch = sparse_data(tmp_path, REGIONS[:1], W).labelled([0])
    wild = Augmentation(scale=[0.4, 2.5], translate=0.4)
    seen = 0
    for step in range(40):
        geometry = weak_geometry(1, W, wild, draw(step))
        image = warp_images(batch.images.float() / 255, torch.zeros(1, 3), geometry)
        found = searched(warp_targets(batch.targets, geometry, W), W)[0]
        assert torch.equal(found, profile_mask(image)), step
        seen += bool(found.any())
    assert seen > 25


@pytest.mark.parametrize("boxes", [(), [(300, 200, 340, 240)]])
def test_a_region_goes_with_the_pixels_through_calibration_windows(tmp_path, boxes):
    """Half the resolution, windows of a fifth of the field, which look at what is annotated."""
    region, size = (200, 140, 420, 300), (640, 480)
    how = Preparation(128, device(4.0, 4.0, size), 2.0)
    data = sparse_data(tmp_path, (region,), how, size, boxes)
    seen = 0
    for number in range(30):
        batch = data.labelled([number])
        found = searched(batch.targets, 128)[0]
        assert torch.equal(found, profile_mask(batch.images.float() / 255)), number
        seen += bool(found.any())
    assert seen >= 20


def test_whole_fields_beside_sparse_ones_are_searched_everywhere():
    whole, sparse = field("1"), dataclasses.replace(field("2"), annotated_regions=REGIONS)
    for f in (whole, sparse):
        object.__setattr__(f, "image", "none.png")
    data = FieldDataset([whole, sparse], WBC, W)
    data.store = type("Blank", (), {"picture": lambda *_: (torch.zeros(3, W, W), torch.zeros(3))})()
    targets = data.labelled([0, 1]).targets
    assert targets.regions.shape == (2, 2, 4)
    found = searched(targets, W)
    assert found[0].all()
    assert found[1].sum() == sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in REGIONS)
    # Nothing is carried along where nobody needs it.
    data.fields, data.max_regions = [whole], 0
    assert data.labelled([0]).targets.regions is None


def test_a_box_outside_its_patch_is_neither_learned_nor_background(tmp_path):
    boxes = [(14, 10, 22, 18), (80, 10, 90, 20), (39, 10, 42, 13)]  # the last by rounding
    targets = sparse_data(tmp_path, REGIONS, W, boxes=boxes).labelled([0]).targets
    assert targets.labels[0, :3].tolist() == [0, -1, 0]
    assert targets.mask[0, :3].all()
