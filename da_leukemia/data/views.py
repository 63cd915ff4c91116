"""Weak and strong views of a batch, images and boxes together, on the batch's own device.

The strong view is the weak one with optics and colour on top, so both have the same geometry and a
teacher's boxes on one are right on the other. Every random number comes from the generator that
is handed in.
"""

from __future__ import annotations

import math

import kornia
import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.config import Augmentation
from da_leukemia.data.batches import VISIBLE, Targets


def generator_for(seed: int, step: int, purpose: int, device: torch.device) -> torch.Generator:
    """Return a generator that depends on nothing but its arguments, so that runs can resume.

    Args:
        seed: of the run.
        step: global step.
        purpose: a different number for each use, so that uses do not shift each other.
        device: where the numbers are drawn, so that none has to be copied there.
    """
    mixed = (seed * 1_000_003 + step) * 97 + purpose
    return torch.Generator(device).manual_seed(mixed % (2**63 - 1))


class Draw:
    """Draws from one generator, on its own device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers in ``[low, high)``."""
        numbers = torch.rand(*shape, generator=self.generator, device=self.device)
        return low + (high - low) * numbers

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, device=self.device)


def weak_geometry(batch: int, size: int, settings: Augmentation, draw: Draw) -> Tensor:
    """Draw flips, scale and shift.

    Returns:
        ``(B, 2, 2)``: per axis (x, y) a factor and an offset in pixels, ``new = factor * old +
        offset``; a flip has a negative factor.
    """
    low, high = (math.log(s) for s in settings.scale)
    scale = draw.uniform(batch, 1, low=low, high=high).exp().expand(batch, 2)
    sign = torch.where(draw.uniform(batch, 2) < settings.flip, -1.0, 1.0)
    factor = scale * sign
    shift = draw.uniform(batch, 2, low=-settings.translate, high=settings.translate) * size
    # About the image's centre, so that a flip maps 0..S to S..0 exactly (half-open pixels).
    offset = size / 2 - factor * size / 2 + shift
    return torch.stack([factor, offset], -1)


def warp_images(images: Tensor, fill: Tensor, geometry: Tensor) -> Tensor:
    """Apply `weak_geometry` to images ``(B, 3, S, S)``; outside is the fill colour ``(B, 3)``."""
    size = images.shape[-1]
    factor, offset = geometry[..., 0], geometry[..., 1]
    # affine_grid maps output to input in -1..1 coordinates; with align_corners=False those are
    # exactly the half-open pixel coordinates 2 x / S - 1.
    inverse = 1 / factor
    shift = inverse * (1 - 2 * offset / size) - 1
    theta = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
    theta[:, 0, 0], theta[:, 0, 2] = inverse[:, 0], shift[:, 0]
    theta[:, 1, 1], theta[:, 1, 2] = inverse[:, 1], shift[:, 1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    colour = fill[:, :, None, None]
    warped = F.grid_sample(images - colour, grid, mode="bilinear", align_corners=False)
    return warped + colour


def warp_targets(
    targets: Targets,
    geometry: Tensor,
    size: int,
    visible: float = VISIBLE,
    frame: Tensor | None = None,
) -> Targets:
    """Apply `weak_geometry` to boxes, clipped to the view, or to a part ``(B, 4)`` of it.

    A box that left the view is dropped; one of which less than ``visible`` is left becomes
    "ignore" (label -1). Annotated regions move along and are not clipped.
    """
    factor, offset = geometry[:, None, :, 0], geometry[:, None, :, 1]
    whole = _moved(targets.boxes, factor, offset)
    boxes = whole.clamp(0, size)
    if frame is not None:
        low, high = (side.repeat(1, 2).unsqueeze(1) for side in (frame[:, :2], frame[:, 2:]))
        boxes = torch.minimum(torch.maximum(boxes, low), high)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    share = area / (whole[..., 2:] - whole[..., :2]).prod(-1).clamp(min=1e-6)
    mask = targets.mask & (area > 0)
    labels = torch.where(share < visible, -1, targets.labels)
    regions = targets.regions
    if regions is not None:
        regions = _moved(regions, factor, offset)
    return Targets(boxes, labels, targets.attributes, mask, targets.classes, regions)


def _moved(boxes: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    a, b = boxes[..., :2] * factor + offset, boxes[..., 2:] * factor + offset
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], -1)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def strong_photometry(images: Tensor, settings: Augmentation, draw: Draw) -> Tensor:
    """Jitter brightness, contrast, saturation, hue; blur; add noise. Images in 0..1."""
    batch = len(images)

    def factor(spread: float) -> Tensor:
        return _per_image(draw.uniform(batch, low=1 - spread, high=1 + spread))

    images = images * factor(settings.brightness)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * factor(settings.contrast) + mean
    grey = kornia.color.rgb_to_grayscale(images)
    keep = (draw.uniform(batch) >= settings.grey).to(images.dtype)
    images = grey + (images - grey) * factor(settings.saturation) * _per_image(keep)
    images = images.clamp(0, 1)
    if settings.hue > 0:
        turn = draw.uniform(batch, low=-settings.hue, high=settings.hue) * 2 * math.pi
        images = _rotate_hue(images, turn)
    if settings.blur > 0:
        wanted = draw.uniform(batch) < settings.blur
        sigma = draw.uniform(batch, low=0.3, high=max(settings.blur_sigma, 0.31))
        radius = math.ceil(2 * settings.blur_sigma)
        blurred = kornia.filters.gaussian_blur2d(
            images, 2 * radius + 1, sigma[:, None].expand(batch, 2)
        )
        images = torch.where(_per_image(wanted), blurred, images)
    if settings.noise > 0:
        level = _per_image(draw.uniform(batch, high=settings.noise))
        images = images + draw.normal(*images.shape) * level
    return images.clamp(0, 1)


def _rotate_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the colours about the grey axis (Rodrigues' formula): linear, so it stays fast."""
    cosine, sine = turn.cos(), turn.sin()
    third = (1 - cosine) / 3
    root = sine / math.sqrt(3)
    row = torch.stack([cosine + third, third - root, third + root], -1)
    matrix = torch.stack([row, row.roll(1, -1), row.roll(2, -1)], 1)
    turned = torch.einsum("bij,bjhw->bihw", matrix.to(images.dtype), images)
    return turned.clamp(0, 1)
