"""Views made of the annotated patches of several fields: pixels, boxes, regions, order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from test_windows import device, field_of

from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.mosaic import MOST_PATCHES, Patch, PatchMosaics, laid_out
from da_leukemia.data.preparation import Preparation
from da_leukemia.labels import WBC

SIDE = 64
PATCH = 28.0


@pytest.fixture
def fields(tmp_path):
    """Twelve fields of one device: random ink, an annotated patch, cells all over."""
    made = []
    for n in range(12):
        rng = np.random.default_rng(n)
        path = tmp_path / f"{n}.png"
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
        low = rng.uniform(0, SIDE - 8, (8, 2)).round()
        x, y = rng.uniform(0, SIDE - PATCH, 2).round()
        base = field_of(np.concatenate([low, low + 8], 1), (SIDE, SIDE))
        patch = ((x, y, x + PATCH, y + PATCH),)
        made.append(dataclasses.replace(base, image=path, name=str(n), annotated_regions=patch))
    return made


def with_cells(field, boxes):
    made = field_of(np.clip(np.reshape(boxes, (-1, 4)), 0, SIDE), (SIDE, SIDE))
    same = ("image", "name", "annotated_regions")
    return dataclasses.replace(made, **{name: getattr(field, name) for name in same})


def corner(field):
    return field.annotated_regions[0][:2]


def mosaics(fields, share=1.0, how=SIDE, seed=0):
    return PatchMosaics(fields, WBC, how, None, seed, share=share)


def shown(batch, row):
    t = batch.targets
    boxes = t.boxes[row][t.mask[row]].numpy()
    regions = t.regions[row].numpy()
    return boxes, t.labels[row][t.mask[row]].numpy(), regions[(regions[:, 2:] > 0).all(1)]


def found_in(pixels, pictures):
    """Return number and corner of the picture that holds a piece of random ink."""
    _, height, width = pixels.shape
    for n, picture in enumerate(pictures):
        for y in range(SIDE - height + 1):
            for x in range(SIDE - width + 1):
                if torch.equal(picture[:, y : y + height, x : x + width], pixels):
                    return n, x, y
    raise AssertionError("these pixels are of no field")


def test_what_is_seen_is_what_was_annotated(fields):
    """Pixels, boxes and labels of each region are those of a field's patch, moved."""
    data = mosaics(fields)
    pictures = [data.image(i)[0] for i in range(len(fields))]
    batch = data.labelled(range(3))
    cells = 0
    for row in range(3):
        boxes, labels, regions = shown(batch, row)
        assert len(regions) >= 4
        for x1, y1, x2, y2 in regions.astype(int):
            n, x, y = found_in(batch.images[row][:, y1:y2, x1:x2], pictures)
            own = np.array(fields[n].annotated_regions[0])
            assert (own[:2] <= (x, y)).all()
            assert (own[2:] >= (x + x2 - x1, y + y2 - y1)).all()
            moved = fields[n].boxes + np.array([x1 - x, y1 - y] * 2)
            centre = (moved[:, :2] + moved[:, 2:]) / 2
            for box in moved[((centre >= (x1, y1)) & (centre < (x2, y2))).all(1)]:
                # Cut by the border of the view or of a tile, but never lost.
                inside = (boxes[:, :2] >= box[:2] - 1e-4) & (boxes[:, 2:] <= box[2:] + 1e-4)
                assert (inside.all(1) & (labels >= 0)).any()
                cells += 1
    assert cells > 5
    assert torch.equal(batch.index, torch.arange(3))


def test_regions_never_overlap_and_most_of_a_view_is_annotated(fields):
    batch = mosaics(fields).labelled(range(12))
    shares = []
    for row in range(12):
        _, _, regions = shown(batch, row)
        painted = np.zeros((SIDE, SIDE), int)
        for x1, y1, x2, y2 in regions.astype(int):
            painted[y1:y2, x1:x2] += 1
        assert painted.max() == 1
        shares.append(painted.mean())
    alone = PATCH**2 / SIDE**2
    assert np.mean(shares) > 2.5 * alone


def test_cells_on_the_edge_of_a_patch_are_seen_whole(fields):
    """The margin is half a cell: only the row's or the view's border cuts any."""
    wide = [with_cells(f, [(x - 3, y - 3, x + 5, y + 5)]) for f in fields for x, y in [corner(f)]]
    batch = mosaics(wide).labelled(range(12))
    for row in range(12):
        boxes, _, regions = shown(batch, row)
        x1, y1 = regions[0][:2]  # the first tile stands in the view's corner, uncut
        left, top = np.minimum(corner(wide[row]), 3)  # nothing is seen beyond the photograph
        assert boxes[0].tolist() == [x1 - left, y1 - top, x1 + 5, y1 + 5]


def test_a_view_depends_on_its_number_and_the_seed(fields):
    data = mosaics(fields)
    numbers = [0, 12, 24, 5]
    one, again = data.labelled(numbers), mosaics(fields).labelled(numbers[::-1])
    assert torch.equal(one.images, again.images.flip(0))
    assert torch.equal(one.targets.boxes, again.targets.boxes.flip(0))
    assert len(one.images.unique(dim=0)) == 4
    assert not torch.equal(one.images, mosaics(fields, seed=1).labelled(numbers).images)


def test_whole_fields_and_a_share_of_the_sparse_ones_are_seen_as_they_are(fields):
    plain = FieldDataset(fields, WBC, SIDE)
    half = mosaics(fields, share=0.5)
    same = [torch.equal(half.view(n).image, plain.view(n).image) for n in range(120)]
    assert 0.3 < np.mean(same) < 0.7
    whole = [dataclasses.replace(f, annotated_regions=None) for f in fields]
    mixed = mosaics([*whole[:3], *fields[3:]])
    for n in (0, 1, 2):
        assert torch.equal(mixed.view(n).image, plain.view(n).image)
        assert np.isinf(mixed.view(n).regions).all()
    assert [mixed.redrawn(i) for i in (0, 3)] == [False, True]
    assert not plain.redrawn(3)


def test_devices_are_not_mixed(fields):
    """A mosaic has the classes that one device labels, so it is of one device."""
    other = [dataclasses.replace(f, domain="other") for f in fields[:6]]
    data = mosaics([*fields[6:], *other])
    pictures = [data.image(i)[0] for i in range(12)]
    batch = data.labelled([0, 1, 6, 7])
    for row, own in enumerate((0, 0, 6, 6)):
        _, _, regions = shown(batch, row)
        for x1, y1, x2, y2 in regions.astype(int):
            n, _, _ = found_in(batch.images[row][:, y1:y2, x1:x2], pictures)
            assert own <= n < own + 6


def test_a_patch_too_small_to_show_is_passed_over(fields):
    tiny = [
        dataclasses.replace(with_cells(f, []), annotated_regions=((5.0, 5.0, 6.0, 6.0),))
        for f in fields[:11]
    ]
    alone, plain = mosaics(tiny), FieldDataset(tiny, WBC, SIDE)
    assert torch.equal(alone.labelled([0]).images, plain.labelled([0]).images)
    mixed = mosaics([*tiny, fields[11]])
    _, _, regions = shown(mixed.labelled([11]), 0)
    assert 1 <= len(regions) <= MOST_PATCHES


def test_cells_that_find_no_room_leave_their_tile_away(fields):
    """The padded length is fixed; a region whose cells are not listed would be a lie."""
    data = mosaics(fields)
    data.max_boxes = 8
    batch = data.labelled(range(12))
    for row in range(12):
        boxes, _, regions = shown(batch, row)
        assert len(boxes) <= 8
        assert len(regions) >= 1
    assert len(shown(batch, 0)[2]) < len(shown(mosaics(fields).labelled([0]), 0)[2])


def test_pictures_larger_than_the_view_give_their_patches_at_scale(fields):
    how = Preparation(
        SIDE, device(5.0, 5.0, (SIDE, SIDE)), 10.0
    )  # enlarged twice: a patch of 56 px and its margin
    batch = mosaics(fields, how=how).labelled(range(12))
    for row in range(12):
        _, _, regions = shown(batch, row)
        assert (regions >= 0).all()
        assert (regions <= SIDE).all()
        assert (regions[0, 2:] - regions[0, :2]).min() >= 50


def test_rows_are_filled_and_what_does_not_fit_is_cut_at_random():
    draw = np.random.default_rng(0)
    patches = iter([Patch(i, 0, 0, 0, 30, 20) for i in range(1, 99)])
    tiles = laid_out(64, Patch(0, 0, 0, 0, 30, 20), lambda: next(patches), draw)
    assert [t.patch.field for t in tiles] == list(range(len(tiles)))
    assert [(t.x, t.y) for t in tiles[:3]] == [(0, 0), (30, 0), (0, 20)]  # 4 px are no room
    assert all(t.x + t.patch.x2 - t.patch.x1 <= 64 for t in tiles)
    assert all(t.y + t.patch.y2 - t.patch.y1 <= 64 for t in tiles)
    cuts = {
        laid_out(64, Patch(0, 0, 0, 0, 200, 200), lambda: None, draw)[0].patch.x1 for _ in range(40)
    }
    assert len(cuts) > 10
    small = Patch(0, 0, 0, 0, 9, 9)
    assert len(laid_out(999, small, lambda: small, draw)) == MOST_PATCHES
