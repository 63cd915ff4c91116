"""Fields larger than the network's view: windows, what they hold, and one record per field."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from da_leukemia.calibration import Calibration, Quantity
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.preparation import OVERLAP_UM, Preparation
from da_leukemia.errors import DataError
from da_leukemia.labels import WBC
from da_leukemia.models.base import Detections
from da_leukemia.tasks.joining import Join

SIZE = 128


def device(x, y, size=(640, 480)):
    return Calibration(
        fields=9, size=size, px_per_um_x=Quantity(x, x, x), px_per_um_y=Quantity(y, y, y)
    )


def scaled(x=4.0, y=4.0, px_per_um=2.0):
    return Preparation(SIZE, device(x, y), px_per_um)


def field_of(boxes, size, path="none.png"):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return FieldOfView(
        image=path,
        domain="d",
        patient="p",
        name="1",
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int64),
        attributes=np.full((len(boxes), len(WBC.attributes)), -1, np.int64),
        labelled_classes=(0,),
    )


def seen_perfectly(data, windows):
    """Return what a detector without a fault finds in windows: each cell, cut at the border."""
    rows = []
    for number in windows:
        index, window = data.windows[number]
        corner = np.array([window.x, window.y] * 2)
        boxes = data.fields[index].boxes * data.factors(index) - corner
        cut = boxes.clip(0, data.size)
        area = (cut[:, 2:] - cut[:, :2]).prod(1)
        rows.append(cut[area > 0])
    most = max(1, max(len(r) for r in rows))
    boxes, mask = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most, dtype=torch.bool)
    for i, row in enumerate(rows):
        boxes[i, : len(row)] = torch.from_numpy(row.astype(np.float32))
        mask[i, : len(row)] = True
    count = len(rows), most
    return Detections(
        boxes,
        torch.rand(count),
        torch.zeros(count, dtype=torch.int64),
        mask,
        torch.zeros(*count, 0),
    )


def joined(data, batch=3):
    join = Join(data, 100)
    for first in range(0, len(data.windows), batch):
        numbers = list(range(first, min(first + batch, len(data.windows))))
        join.add(seen_perfectly(data, numbers), numbers)
    return join.finish()


@pytest.mark.parametrize("size", [(640, 480), (1440, 900), (300, 2000), (100, 60), (4000, 3000)])
def test_windows_cover_the_field_and_lie_inside_the_picture(size):
    how = scaled()
    across, down = how.canvas(*size)
    seen, counts = np.zeros((down, across), int), np.zeros((down, across), int)
    for x, y, (left, top, right, bottom) in how.windows(*size):
        assert 0 <= x <= across - SIZE
        assert 0 <= y <= down - SIZE
        seen[y : y + SIZE, x : x + SIZE] += 1
        columns, rows = np.arange(across) + 0.5, np.arange(down) + 0.5
        inside = ((columns >= left) & (columns < right), (rows >= top) & (rows < bottom))
        counts += np.outer(inside[1], inside[0])
    assert seen.min() == 1
    assert counts.min() == 1
    assert counts.max() <= 4


def test_an_image_without_a_known_scale_is_one_whole_window():
    for how in (Preparation(SIZE), Preparation(SIZE, Calibration(9, (640, 480)), 2.0)):
        assert not how.scaled
        assert len(how.windows(1440, 900)) == 1
        assert how.canvas(1440, 900) == (SIZE, SIZE)
        assert how.placement(1440, 900).x == SIZE / 1440


def test_a_scale_that_cannot_be_is_said(tmp_path):
    with pytest.raises(DataError, match="view_um"):
        FieldDataset([field_of([], (4000, 3000))], WBC, scaled(x=0.5, y=0.5, px_per_um=4.0))


cells = st.lists(
    st.tuples(
        st.floats(0, 620), st.floats(0, 460), st.floats(12, 4 * 20.0), st.floats(12, 4 * 20.0)
    ),
    max_size=6,
)


def apart(given):
    """Return boxes in a field of 640 x 480 that do not overlap."""
    boxes = []
    for x, y, w, h in given:
        new = [x, y, min(x + w, 640), min(y + h, 480)]
        if all(new[2] <= o[0] or o[2] <= new[0] or new[3] <= o[1] or o[3] <= new[1] for o in boxes):
            boxes.append(new)
    return boxes


@settings(max_examples=200, deadline=None)
@given(cells, st.sampled_from([(4.0, 4.0), (3.0, 5.3), (5.3, 3.0)]))
def test_every_cell_is_found_once_and_whole_wherever_it_lies(given, px_per_um):
    boxes = apart(
        [(x, y, min(w, 20 * px_per_um[0]), min(h, 20 * px_per_um[1])) for x, y, w, h in given]
    )
    data = FieldDataset([field_of(boxes, (640, 480))], WBC, scaled(*px_per_um))
    assert len(data.windows) > 4
    (record,) = joined(data)
    want = np.asarray(sorted(map(tuple, data.fields[0].boxes)), np.float32).reshape(-1, 4)
    got = np.asarray(sorted(map(tuple, record.boxes.round(3))), np.float32).reshape(-1, 4)
    assert len(got) == len(want)
    np.testing.assert_allclose(np.sort(got, 0), np.sort(want, 0), atol=0.01)


def test_of_two_finds_of_a_cell_the_better_stays_and_neighbours_and_other_types_too():
    how = scaled()
    data = FieldDataset([field_of([], (380, 256))], WBC, how)  # 190 x 128 px: two windows
    (_, first), (_, second) = data.windows
    seam = (second.x + SIZE) / 2
    cell = np.array([seam - 15, 50, seam + 15, 80])
    shaky = cell + np.array([1.5, -1, 2, 1])
    neighbour = cell + np.array([0, 32, 0, 32])
    found = Detections(
        torch.tensor(
            np.stack([[cell, neighbour], [shaky, cell]])
            - np.array([[[0] * 4], [[second.x, 0] * 2]])
        ).float(),
        torch.tensor([[0.7, 0.6], [0.9, 0.5]]),
        torch.tensor([[0, 0], [0, 1]]),
        torch.ones(2, 2, dtype=torch.bool),
        torch.zeros(2, 2, 0),
    )
    join = Join(data, 100)
    join.add(found, [0, 1])
    (record,) = join.finish()
    assert first.x == 0
    assert record.scores.tolist() == pytest.approx([0.9, 0.6, 0.5])
    np.testing.assert_allclose(record.boxes[0], shaky * 2, atol=1e-3)


def test_a_field_keeps_its_best_detections_and_no_window_is_forgotten():
    data = FieldDataset(
        [field_of([[i * 60, 100, i * 60 + 50, 150] for i in range(10)], (640, 480))], WBC, scaled()
    )
    join = Join(data, 3)
    numbers = list(range(len(data.windows)))
    with pytest.raises(ValueError, match="were given"):
        join.finish()
    with pytest.raises(ValueError, match="window 1 came where 0"):
        join.add(seen_perfectly(data, [1]), [1])
    join.add(seen_perfectly(data, numbers), numbers)
    assert len(join.finish()[0].boxes) == 3


# --- training windows --------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path):
    """A field of 640 x 480 with dark cells on white, seen at half its size: 320 x 240."""
    boxes = [(20, 20, 60, 64), (300, 200, 350, 240), (596, 440, 640, 480)]
    image = np.full((480, 640, 3), 230, np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = (60, 20, 90)
    Image.fromarray(image).save(tmp_path / "f.png")
    return FieldDataset([field_of(boxes, (640, 480), tmp_path / "f.png")], WBC, scaled(), seed=3)


def test_boxes_of_a_window_enclose_their_cells(large):
    held = 0
    for number in range(60):
        batch = large.labelled([number])
        assert batch.images.shape == (1, 3, SIZE, SIZE)
        dark = np.asarray(batch.images[0, 0] < 145)
        inside = np.zeros_like(dark)
        for box in batch.targets.boxes[0][batch.targets.mask[0]]:
            x0, y0, x1, y1 = (round(float(v)) for v in box)
            inside[y0:y1, x0:x1] = True
            assert dark[y0:y1, x0:x1].mean() > 0.8
            held += 1
        assert (dark & ~inside).sum() <= dark.sum() * 0.1
    assert held > 45  # three quarters of the windows are put on a cell


def test_a_cell_at_the_border_of_a_window_is_neither_cell_nor_ground(large):
    seen = {True: 0, False: 0}
    for number in range(200):
        targets = large.labelled([number]).targets
        for box, label in zip(targets.boxes[0], targets.labels[0], strict=True):
            size = box[2:] - box[:2]
            if size.prod() > 0:
                known = bool(label >= 0)
                seen[known] += 1
                # the smallest cell has 22 x 20 px here
                assert known or float(size.prod()) < 0.3 * 26 * 26
    assert seen[True] > 100
    assert seen[False] > 0


def test_windows_depend_on_seed_and_number_alone(large):
    again = FieldDataset(large.fields, WBC, large.how(large.fields[0]), seed=3)
    other = FieldDataset(large.fields, WBC, large.how(large.fields[0]), seed=4)
    numbers = list(range(20))
    assert torch.equal(large.labelled(numbers).images, again.labelled(numbers[::-1]).images.flip(0))
    assert not torch.equal(large.labelled(numbers).images, other.labelled(numbers).images)
    assert len(large.labelled(numbers).images.unique(dim=0)) > 10


def test_windows_of_a_target_do_not_depend_on_its_labels(large):
    bare = FieldDataset(
        [field_of([], (640, 480), large.fields[0].image)], WBC, large.how(large.fields[0]), seed=3
    )
    numbers = list(range(20))
    assert torch.equal(large.unlabelled(numbers).images, bare.unlabelled(numbers).images)


def test_the_overlap_holds_the_largest_cell():
    how = scaled(px_per_um=2.0)
    xs = sorted({w.x for w in how.windows(1440, 900)})
    assert min(a + SIZE - b for a, b in itertools.pairwise(xs)) >= OVERLAP_UM * 2.0 - 1


def test_attributes_of_a_true_box_are_read_in_a_window_that_holds_all_of_it():
    """Each window answers with its own number, so that the record tells which one was asked."""
    rng = np.random.default_rng(1)
    fields = []
    for size in ((640, 480), (200, 900), (100, 60)):
        corner = rng.uniform(0, np.array(size) - 50, (30, 2))
        boxes = np.hstack([corner, corner + rng.uniform(20, 50, (30, 2))])
        fields.append(field_of(boxes, size))
    data = FieldDataset(fields, WBC, scaled())
    join = Join(data, 100)
    for first in range(0, len(data.windows), 4):
        numbers = list(range(first, min(first + 4, len(data.windows))))
        asked = torch.tensor(numbers, dtype=torch.float32)[:, None, None]
        asked = asked.expand(-1, data.max_boxes, 2)
        assert data.true_boxes(numbers).shape == (len(numbers), data.max_boxes, 4)
        join.add(seen_perfectly(data, numbers), numbers, asked)
    for index, record in enumerate(join.finish()):
        assert record.true_attribute_probs.shape == (30, 2)
        for box, (number, _) in zip(record.true_boxes, record.true_attribute_probs, strict=True):
            owner, window = data.windows[int(number)]
            assert owner == index
            place = box * data.factors(index) - np.array([window.x, window.y] * 2)
            assert (place >= 0).all()
            assert (place <= SIZE).all()
