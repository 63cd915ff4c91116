"""Pasted cells: exact boxes, rare types first, nothing covered, only what the device labels."""

from __future__ import annotations

import pytest
import torch

from da_leukemia.adaptation.cut_paste import CutPaste
from da_leukemia.adaptation.settings import CutPaste as Settings
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw

SIZE = 64
GROUND = 0.8


def draw(seed=0):
    return Draw(torch.Generator().manual_seed(seed))


def scene(cells, batch=2, classes=2, width=4):
    """Images with square cells ``(image, x, y, side, label)``, each of its own grey."""
    images = torch.full((batch, 3, SIZE, SIZE), GROUND)
    targets = Targets(
        torch.zeros(batch, width, 4),
        torch.full((batch, width), -1),
        torch.full((batch, width, 1), -1),
        torch.zeros(batch, width, dtype=torch.bool),
        torch.ones(batch, classes, dtype=torch.bool),
    )
    for i, (image, x, y, side, label) in enumerate(cells):
        free = int(targets.mask[image].sum())
        images[image, :, y : y + side, x : x + side] = 0.1 * (label + 1)
        targets.boxes[image, free] = torch.tensor([x, y, x + side, y + side], dtype=torch.float)
        targets.labels[image, free] = label
        targets.attributes[image, free] = i
        targets.mask[image, free] = True
    return images, targets


def pasted(targets, width=4):
    """Places of the pasted cells: (image, slot)."""
    return [(i, j) for i, j in targets.mask.nonzero().tolist() if j >= width]


def component(**settings):
    return CutPaste(Settings(**{"probability": 1.0} | settings), 2)


def test_a_box_holds_the_pixels_of_its_cell():
    images, targets = scene([(0, 5, 9, 11, 0), (1, 30, 40, 13, 1)])
    seen = 0
    for seed in range(20):
        found, after = component().rework(images, targets, draw(seed))
        for i, j in pasted(after):
            x1, y1, x2, y2 = (int(v) for v in after.boxes[i, j])
            grey = 0.1 * (int(after.labels[i, j]) + 1)
            x, y = (x1 + x2) // 2, (y1 + y2) // 2
            assert torch.allclose(found[i, :, y - 2 : y + 2, x - 2 : x + 2], torch.tensor(grey))
            # The edge of the square cell is where the box says.
            row = found[i, 0, y]
            assert row[x1] == pytest.approx(grey, abs=0.05)
            assert row[x2 - 1] == pytest.approx(grey, abs=0.05)
            assert row[x1 - 1] > grey + 0.1 if x1 else True
            seen += 1
    assert seen > 20


def test_labels_and_attributes_are_those_of_the_donor():
    images, targets = scene([(0, 5, 9, 11, 1)])
    _, after = component().rework(images, targets, draw(3))
    assert pasted(after)
    for i, j in pasted(after):
        assert after.labels[i, j] == 1
        assert after.attributes[i, j] == 0
        side = after.boxes[i, j, 2:] - after.boxes[i, j, :2]
        assert side.tolist() == [11, 11]
    # What was there is still there.
    assert torch.equal(after.boxes[:, :4], targets.boxes)
    assert torch.equal(after.mask[:, :4], targets.mask)


def test_no_cell_is_covered():
    cells = [(0, 0, 0, 20, 0), (0, 30, 30, 30, 1), (1, 10, 10, 40, 0)]
    images, targets = scene(cells)
    for seed in range(20):
        found, after = component(cells=2).rework(images, targets, draw(seed))
        boxes = [after.boxes[i][after.mask[i]] for i in range(2)]
        for several in boxes:
            low = torch.maximum(several[:, None, :2], several[None, :, :2])
            high = torch.minimum(several[:, None, 2:], several[None, :, 2:])
            common = (high - low).clamp(min=0).prod(-1)
            area = (several[:, 2:] - several[:, :2]).prod(-1)
            common.fill_diagonal_(0)
            assert (common <= 0.1 * torch.minimum(area[:, None], area[None])).all()
        assert torch.isfinite(found).all()


def test_rare_types_are_pasted_more_often():
    cells = [(0, 1, 1, 9, 0), (0, 20, 1, 9, 0), (0, 1, 20, 9, 0), (1, 1, 1, 9, 1)]
    images, targets = scene(cells)

    def share(balance):
        labels = []
        one = component(balance=balance)
        for seed in range(150):
            _, after = one.rework(images, targets, draw(seed))
            labels += [int(after.labels[i, j]) for i, j in pasted(after)]
        return sum(labels) / len(labels)

    assert share(0.0) == pytest.approx(0.25, abs=0.08)
    assert share(1.0) == pytest.approx(0.5, abs=0.08)


def test_only_what_a_device_labels_is_pasted_into_its_fields():
    images, targets = scene([(0, 5, 9, 11, 0)])
    targets.classes[1, 0] = False
    for seed in range(10):
        found, after = component().rework(images, targets, draw(seed))
        assert all(i == 0 for i, _ in pasted(after))
        assert torch.equal(found[1], images[1])


def test_cells_that_the_border_cuts_or_without_a_type_are_no_donors():
    images, targets = scene([(0, 0, 5, 10, 0), (1, 20, 20, 10, 0)])
    targets.labels[1, 0] = -1
    found, after = component().rework(images, targets, draw())
    assert not pasted(after)
    assert torch.equal(found, images)


def test_a_batch_without_a_cell_is_left_alone():
    images, targets = scene([])
    found, after = component(cells=3).rework(images, targets, draw())
    assert torch.equal(found, images)
    assert not after.mask.any()
    assert after.labels.shape[1] == 7


def test_the_probability_is_the_share_of_images():
    images, targets = scene([(0, 5, 9, 6, 0)], batch=8)
    one = component(probability=0.3, cells=1)
    tries = [len(pasted(one.rework(images, targets, draw(s))[1])) for s in range(60)]
    assert sum(tries) / (60 * 8) == pytest.approx(0.3, abs=0.06)


def test_where_somebody_looked_does_not_change():
    images, targets = scene([(0, 5, 9, 11, 1)])
    assert component().rework(images, targets, draw(3))[1].regions is None
    targets.regions = torch.tensor([[[0.0, 0, 30, 30]], [[5.0, 5, 20, 20]]])
    _, after = component(cells=2).rework(images, targets, draw(3))
    assert torch.equal(after.regions, targets.regions)
