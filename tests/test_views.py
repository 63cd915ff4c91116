"""Views: boxes move with the pixels, and two views of one image share their geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from da_leukemia.config import Augmentation
from da_leukemia.data.batches import LabelledBatch, Targets
from da_leukemia.data.views import (
    Draw,
    generator_for,
    strong_photometry,
    warp_images,
    warp_targets,
    weak_geometry,
)
from da_leukemia.models.one_stage import OneStageDetector
from da_leukemia.tasks.detection import DetectionTask

SIZE = 64
CPU = torch.device("cpu")
BOX = (10.0, 22.0, 26.0, 40.0)


def draw(step=0, seed=0):
    return Draw(generator_for(seed, step, 0, CPU))


def targets_of(*boxes, labels=None, sizes=3, padded=4):
    """One image's targets; the attributes of box ``i`` are all ``i``."""
    count = len(boxes)
    out = Targets(
        torch.zeros(1, padded, 4),
        torch.full((1, padded), -1),
        torch.full((1, padded, sizes), -1),
        torch.zeros(1, padded, dtype=torch.bool),
        torch.ones(1, 5, dtype=torch.bool),
    )
    out.boxes[0, :count] = torch.tensor(boxes)
    out.labels[0, :count] = torch.tensor(labels or list(range(count)))
    out.attributes[0, :count] = torch.arange(count)[:, None].expand(count, sizes)
    out.mask[0, :count] = True
    return out


def drawn(box=BOX):
    """A white rectangle on black."""
    image = torch.zeros(1, 3, SIZE, SIZE)
    x1, y1, x2, y2 = (int(v) for v in box)
    image[:, :, y1:y2, x1:x2] = 1
    return image


def geometry_of(fx=1.0, fy=1.0, dx=0.0, dy=0.0):
    """Factors about the centre and shifts, in the form of `weak_geometry`."""
    factor, shift = torch.tensor([fx, fy]), torch.tensor([dx, dy])
    return torch.stack([factor, SIZE / 2 - factor * SIZE / 2 + shift], -1)[None]


def measured(image):
    """Edges of the white rectangle to a fraction of a pixel, from its summed profiles."""
    plane = image[0, 0]
    columns, rows = plane.amax(0), plane.amax(1)

    def edges(profile):
        lit = (profile > 0.5).nonzero().squeeze(1)
        middle = int(lit[len(lit) // 2])
        return middle - float(profile[:middle].sum()), middle + float(profile[middle:].sum())

    (x1, x2), (y1, y2) = edges(columns), edges(rows)
    return np.array([x1, y1, x2, y2])


@pytest.mark.parametrize(("fx", "fy"), [(-1, 1), (1, -1), (-1, -1), (1, 1)])
def test_a_flip_moves_boxes_exactly_as_the_drawn_rectangle(fx, fy):
    geometry = geometry_of(fx, fy)
    image = warp_images(drawn(), torch.zeros(1, 3), geometry)
    box = warp_targets(targets_of(BOX), geometry, SIZE).boxes[0, 0]
    torch.testing.assert_close(image, drawn(box.tolist()), atol=1e-5, rtol=0)
    assert torch.equal(box, box.round())
    assert (box[2] - box[0], box[3] - box[1]) == (16, 18)


def test_a_shift_by_whole_pixels_is_exact():
    geometry = geometry_of(dx=7, dy=-5)
    image = warp_images(drawn(), torch.zeros(1, 3), geometry)
    box = warp_targets(targets_of(BOX), geometry, SIZE).boxes[0, 0]
    assert box.tolist() == [17, 17, 33, 35]
    torch.testing.assert_close(image, drawn(box.tolist()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [0.6, 0.75, 1.1, 1.33])
@pytest.mark.parametrize("sign", [1, -1])
def test_scale_and_shift_move_boxes_with_the_rectangle_to_half_a_pixel(factor, sign):
    geometry = geometry_of(sign * factor, factor, dx=2.3, dy=-1.7)
    image = warp_images(drawn(), torch.zeros(1, 3), geometry)
    box = warp_targets(targets_of(BOX), geometry, SIZE).boxes[0, 0].numpy()
    assert np.abs(measured(image) - box).max() < 0.5
    assert box[2] - box[0] == pytest.approx(16 * factor, abs=1e-4)


def test_drawn_geometry_moves_boxes_with_the_rectangle():
    settings = Augmentation(scale=[0.8, 1.2], translate=0.1)
    for step in range(20):
        geometry = weak_geometry(1, SIZE, settings, draw(step))
        image = warp_images(drawn(), torch.zeros(1, 3), geometry)
        box = warp_targets(targets_of(BOX), geometry, SIZE).boxes[0, 0].numpy()
        assert np.abs(measured(image) - box).max() < 0.5


def test_outside_the_image_is_its_own_fill_colour():
    fill = torch.tensor([[0.2, 0.5, 0.9], [0.7, 0.1, 0.3]])
    geometry = geometry_of(0.5, 0.5).expand(2, 2, 2)
    out = warp_images(torch.zeros(2, 3, SIZE, SIZE), fill, geometry)
    for image, colour in zip(out, fill, strict=True):
        torch.testing.assert_close(image[:, 0, 0], colour)
        torch.testing.assert_close(image[:, -1, -1], colour)
        torch.testing.assert_close(image[:, SIZE // 2, SIZE // 2], torch.zeros(3))


def test_scales_flips_and_shifts_are_drawn_from_their_ranges():
    settings = Augmentation(flip=0.5, scale=[0.5, 2.0], translate=0.25)
    geometry = weak_geometry(4000, SIZE, settings, draw())
    factor = geometry[..., 0]
    shift = geometry[..., 1] - (SIZE / 2 - factor * SIZE / 2)
    assert factor.abs().min() >= 0.5
    assert factor.abs().max() <= 2.0
    assert torch.equal(factor[:, 0].abs(), factor[:, 1].abs())  # cells keep their aspect
    assert (factor < 0).float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert float(factor.abs().log().mean()) == pytest.approx(0, abs=0.05)  # as often up as down
    assert float(shift.abs().max()) == pytest.approx(0.25 * SIZE, rel=0.02)
    assert (weak_geometry(100, SIZE, Augmentation(flip=0.0), draw())[..., 0] > 0).all()


# --- boxes at the border -----------------------------------------------------------------------


def test_a_box_that_leaves_is_dropped_and_one_nearly_gone_is_neither_cell_nor_background():
    inside, half, sliver, gone = (
        (20.0, 20.0, 40.0, 40.0),
        (40.0, 20.0, 60.0, 40.0),
        (45.0, 20.0, 65.0, 40.0),
        (50.0, 20.0, 64.0, 40.0),
    )
    moved = warp_targets(targets_of(inside, half, sliver, gone), geometry_of(dx=15), SIZE)
    assert moved.mask[0].tolist() == [True, True, True, False]
    assert moved.labels[0].tolist()[:3] == [0, 1, -1]  # 20, 9 and 4 of 20 columns are left
    assert moved.boxes[0, 1].tolist() == [55, 20, 64, 40]
    assert moved.boxes[0, 2].tolist() == [60, 20, 64, 40]


def test_labels_and_attributes_stay_with_their_boxes():
    boxes = [(4.0, 4.0, 12.0, 12.0), (50.0, 4.0, 60.0, 12.0), (30.0, 40.0, 44.0, 60.0)]
    before = targets_of(*boxes, labels=[3, 1, 2])
    after = warp_targets(before, geometry_of(-1, 1, dx=-16), SIZE)
    # Mirrored and moved to the left, where the second box is lost over the border.
    assert after.boxes[0, 0].tolist() == [36, 4, 44, 12]
    assert after.mask[0].tolist() == [True, False, True, False]
    assert (after.labels[0, 0], after.labels[0, 2]) == (3, 2)
    assert after.attributes[0, 0].unique().tolist() == [0]
    assert after.attributes[0, 2].unique().tolist() == [2]
    assert torch.equal(after.classes, before.classes)


def test_padding_stays_padding():
    after = warp_targets(targets_of(BOX), geometry_of(1.3, 1.3, dx=3), SIZE)
    assert after.mask[0].tolist() == [True, False, False, False]
    assert after.labels[0, 1:].tolist() == [-1, -1, -1]


# --- two views, one geometry -------------------------------------------------------------------


def textured(batch=3):
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def task_with(settings):
    from da_leukemia.config import Trainer
    from da_leukemia.models.backbone import Backbone

    detector = OneStageDetector(Backbone("mobilenetv3_small_050", (8, 16, 32)), 1, channels=8)
    return DetectionTask(detector, trainer=Trainer(), augmentation=settings, ema=False)


def batch_of(images):
    empty = torch.zeros(len(images), 4, 4)
    targets = Targets(
        empty,
        torch.full(empty.shape[:2], -1),
        torch.full((*empty.shape[:2], 0), -1),
        torch.zeros(empty.shape[:2], dtype=torch.bool),
        torch.ones(len(images), 1, dtype=torch.bool),
    )
    fill = torch.zeros(len(images), 3, dtype=torch.uint8)
    return LabelledBatch((images * 255).byte(), fill, torch.arange(len(images)), targets)


def test_the_strong_view_has_the_geometry_of_the_weak_one():
    plain = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, blur=0, noise=0)
    batch = batch_of(textured())
    _, weak, strong = task_with(plain)._views(batch, draw(3), True)
    torch.testing.assert_close(strong, weak, atol=1e-5, rtol=0)  # no optics: the same picture
    geometry, weak, strong = task_with(Augmentation())._views(batch, draw(3), True)
    assert (strong - weak).abs().mean() > 0.02
    again, weak_alone, same = task_with(Augmentation())._views(batch, draw(3), False)
    assert torch.equal(geometry, again)
    assert torch.equal(weak, weak_alone)
    assert same is weak_alone
    # Where the weak view has ink, the strong one has it too.
    for one, other in zip(weak.mean(1), strong.mean(1), strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.6


def test_the_same_generator_gives_the_same_views_and_another_step_others():
    task, batch = task_with(Augmentation()), batch_of(textured())
    first, again, other = (task._views(batch, draw(s), True) for s in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    torch.manual_seed(1)  # the global generator has no say
    assert torch.equal(task._views(batch, draw(4), True)[2], first[2])


def test_seed_step_and_purpose_each_change_the_numbers():
    def numbers(*arguments):
        return tuple(torch.rand(4, generator=generator_for(*arguments, CPU)).tolist())

    grid = {numbers(a, b, c) for a in range(3) for b in range(30) for c in range(3)}
    assert len(grid) == 270


# --- photometry --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        Augmentation(),
        Augmentation(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, noise=0.5, grey=0.5),
        Augmentation(blur=1.0, blur_sigma=3.0),
        Augmentation(blur=0, noise=0, hue=0),
    ],
)
def test_photometry_keeps_range_shape_and_type(settings):
    images = textured(4)
    before = images.clone()
    out = strong_photometry(images, settings, draw())
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert out.isfinite().all()
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(images, before)  # the weak view is still needed


def test_grey_takes_the_colour_away_and_hue_turns_it():
    still = {"brightness": 0, "contrast": 0, "saturation": 0, "blur": 0, "noise": 0}
    images = textured() * 0.5 + 0.25
    grey = strong_photometry(images, Augmentation(grey=1.0, hue=0, **still), draw())
    torch.testing.assert_close(grey[:, 0], grey[:, 1], atol=1e-5, rtol=0)
    turned = strong_photometry(images, Augmentation(hue=0.1, **still), draw())
    assert (turned - images).abs().max() > 0.02
    torch.testing.assert_close(turned.mean(1), images.mean(1), atol=1e-5, rtol=0)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    unchanged = strong_photometry(red, Augmentation(hue=0, **still), draw())
    torch.testing.assert_close(unchanged, red)


def test_blur_smooths_and_noise_roughens():
    still = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    edge = drawn().repeat(8, 1, 1, 1) * 0.5 + 0.25

    def roughness(images):
        return float((images[..., 1:] - images[..., :-1]).square().mean())

    blurred = strong_photometry(edge, Augmentation(blur=1.0, noise=0, **still), draw())
    noisy = strong_photometry(edge, Augmentation(blur=0, noise=0.1, **still), draw())
    assert roughness(blurred) < 0.9 * roughness(edge)
    assert roughness(noisy) > 1.02 * roughness(edge)
    torch.testing.assert_close(blurred.mean(), edge.mean(), atol=2e-3, rtol=0)
