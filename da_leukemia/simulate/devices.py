"""The twelve ways of photographing one field, and the optics that separate them.

`device_of` mixes two of them, so that the effect of each optical factor can be seen alone.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d

from da_leukemia.simulate.domains import FACTORS, parse_domain
from da_leukemia.simulate.scene import SIDE, Scene
from da_leukemia.simulate.shapes import HEIGHT, WIDTH, Array

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Device:
    """A microscope, an objective and a camera, as optical factors.

    Attributes:
        name: domain name, ``{H,L}_{100X,40X,10X}_{C1,C2}``.
        blur: point spread (sigma) in pixels of the 800x448 frame.
        sampling: frame pixels per camera pixel; the objective's magnification as sharpness.
        fringe: shift of red against blue, in frame pixels, growing from the centre line.
        gain: response of R, G, B to the lamp; 1 is the reference device.
        saturation: 1 keeps colours, below fades, above strengthens.
        gamma: exponent of the tone curve, applied to the camera's 0..1 range.
        flare: share of stray light that veils everything.
        vignette: loss of light at the corners.
        gradient: difference of light from left to right; warm on one side, cool on the other.
        noise: grey levels (sigma) per camera pixel.
        sharpen: strength of the camera's unsharp mask.
        jpeg: quality of the compression cycle; 0 for none.
        drift: how much white balance and exposure change from patient to patient.
        balance_of: device whose white balance of each patient is used; "" for its own.
        lamp_of: device whose lamp direction of each patient is used; "" for its own.
        noise_of: device whose noise is drawn in each field (by the writer); "" for its own.
        sensor: ``width, height`` of a photograph, px; always the whole field.
    """

    name: str
    blur: float
    sampling: float
    fringe: float
    gain: Triple
    saturation: float
    gamma: float
    flare: float
    vignette: float
    gradient: float
    noise: float
    sharpen: float
    jpeg: int
    drift: float
    balance_of: str = ""
    lamp_of: str = ""
    noise_of: str = ""
    sensor: tuple[int, int] = (SIDE, SIDE)


# fmt: off
_TABLE: tuple[Device, ...] = (
    # name, blur, sampling, fringe, gain, saturation, gamma,
    # flare, vignette, gradient, noise, sharpen, jpeg, drift
    Device("H_100X_C2", 0.62, 1.0, 0.15, (1.0, 1.0, 1.0), 1.0, 1.0,
           0.0, 0.0, 0.0, 0.5, 0.85, 0, 0.010),
    Device("H_40X_C2", 1.3, 1.8, 0.25, (1.02, 1.03, 1.0), 1.0, 0.97,
           0.03, 0.02, 0.02, 0.5, 0.2, 0, 0.015),
    Device("H_10X_C2", 2.1, 3.2, 0.35, (1.06, 1.07, 1.03), 0.95, 0.95,
           0.06, 0.03, 0.02, 0.55, 0.15, 0, 0.015),
    Device("H_100X_C1", 1.6, 1.0, 0.35, (1.18, 1.03, 1.30), 1.45, 0.64,
           0.06, 0.42, 0.10, 0.8, 1.3, 64, 0.030),
    Device("H_40X_C1", 2.0, 1.8, 0.45, (1.18, 1.05, 1.28), 1.40, 0.66,
           0.08, 0.42, 0.10, 0.9, 1.2, 62, 0.030),
    Device("H_10X_C1", 2.5, 3.2, 0.50, (1.18, 1.06, 1.26), 1.35, 0.68,
           0.11, 0.44, 0.10, 1.0, 1.2, 60, 0.030),
    Device("L_100X_C2", 2.4, 1.2, 0.90, (1.09, 0.99, 0.78), 0.80, 1.08,
           0.12, 0.16, 0.22, 0.8, 0.0, 0, 0.050),
    Device("L_40X_C2", 2.8, 2.1, 1.00, (1.09, 1.00, 0.78), 0.78, 1.06,
           0.15, 0.18, 0.22, 0.85, 0.0, 0, 0.050),
    Device("L_10X_C2", 3.3, 3.6, 1.10, (1.08, 1.00, 0.78), 0.76, 1.05,
           0.19, 0.20, 0.20, 0.9, 0.0, 0, 0.050),
    Device("L_100X_C1", 2.3, 1.2, 1.0, (0.92, 1.04, 1.26), 1.05, 0.8,
           0.12, 0.38, 0.2, 1.1, 0.8, 60, 0.040),
    Device("L_40X_C1", 2.6, 2.1, 1.1, (0.94, 1.04, 1.24), 1.0, 0.8,
           0.15, 0.4, 0.2, 1.2, 0.8, 58, 0.040),
    Device("L_10X_C1", 3.1, 3.6, 1.2, (0.96, 1.05, 1.22), 0.95, 0.82,
           0.18, 0.42, 0.18, 1.3, 0.8, 55, 0.040),
)
# fmt: on

DEVICES: dict[str, Device] = {
    d.name: replace(d, balance_of=d.name, lamp_of=d.name, noise_of=d.name) for d in _TABLE
}


def device_of(domain: str) -> Device:
    """Return the device of a domain name, with the factors it has from another one.

    What varies with patient and field comes along with a factor: the patient's white balance with
    colour, the direction of the lamp with illumination, the grain of the field with noise. So a
    device with some factors differs from its base in these alone, and one with all factors takes
    the very photographs of the other.

    Raises:
        ConfigError: see `parse_domain`.
    """
    name = parse_domain(domain)
    base = DEVICES[name.base]
    if name.sensor:
        base = replace(base, sensor=name.sensor)
    if not name.factors:
        return base
    other = DEVICES[name.other]
    taken = {key: getattr(other, key) for factor in name.factors for key in FACTORS[factor]}
    return replace(base, name=domain, **taken)


def photograph(scene: Scene, device: Device, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Photograph a scene through a device.

    Args:
        scene: the field of view.
        device: optics and camera.
        rng: generator of this exposure's noise.

    Returns:
        ``(640, 640, 3)`` RGB, squeezed from 16:9. Geometry does not depend on the device.
    """
    balance, _ = _habits(scene, device.balance_of or device.name, device.drift)
    _, tilt = _habits(scene, device.lamp_of or device.name, device.drift)

    columns, rows = round(WIDTH / device.sampling), round(HEIGHT / device.sampling)
    light = _lens(scene.transmittance, device, columns, rows)
    light += np.float32(device.flare) * (1 - light)
    lamp = scene.background * np.asarray(device.gain) * balance / 255
    x = np.linspace(-1, 1, columns, dtype=np.float32)
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    if device.vignette or device.gradient:
        shade = 1 - np.float32(device.vignette) * ((x - 0.1 * tilt) ** 2 + y**2) / 2
        warm = np.array([0.5, 0.25, -0.25], dtype=np.float32)[:, None, None]
        light *= shade * (1 + warm * np.float32(device.gradient * tilt) * (x + 0.4 * y))
    light *= lamp.astype(np.float32)[:, None, None]
    if device.saturation != 1:
        grey = light.mean(axis=0)
        light = grey + np.float32(device.saturation) * (light - grey)
    if device.gamma != 1:
        light = np.clip(light, 0, None) ** np.float32(device.gamma)
    light *= 255
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    grain += np.float32(_SHARED) * grain.mean(axis=0)
    light += np.float32(device.noise) * grain
    if device.sharpen:
        light += np.float32(device.sharpen) * (light - _gauss(light, 1.4))
    pixels = (np.clip(light, 0, 255) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if device.jpeg:
        memory = io.BytesIO()
        image.save(memory, "JPEG", quality=device.jpeg)
        image = Image.open(memory)
    return np.asarray(image.resize(device.sensor, Image.Resampling.BICUBIC))


_SHARED = 1.35
"""Share of the mean noise that all colours get: they then correlate by 0.6, as in real fields."""


def _habits(scene: Scene, device: str, drift: float) -> tuple[NDArray[np.float64], float]:
    """Return white balance (R, G, B) and lamp direction of a slide in a device."""
    # They belong to slide and device, so they must not change from field to field.
    rng = np.random.default_rng([scene.seed, scene.patient, *device.encode()])
    balance = np.exp(rng.normal(0, drift, 3) + rng.normal(0, drift))
    return balance, float(rng.choice([-1.0, 1.0])) * rng.uniform(0.6, 1.2)


def _kernel(sigma: float, shift: float = 0.0) -> NDArray[np.float64]:
    reach = int(np.ceil(3 * sigma + abs(shift)))
    taps = np.exp(-0.5 * ((np.arange(-reach, reach + 1) - shift) / sigma) ** 2)
    return np.asarray(taps / taps.sum())


def _gauss(image: Array, sigma: float) -> Array:
    kernel = _kernel(sigma)
    out: Array = correlate1d(correlate1d(image, kernel, axis=-1), kernel, axis=-2)
    return out


def _lens(transmittance: Array, device: Device, columns: int, rows: int) -> Array:
    """Blur, split the colours and sample on the camera's pixels."""
    out = np.empty((3, rows, columns), dtype=np.float32)
    for channel, (plane, side) in enumerate(zip(transmittance, (-0.5, 0.0, 0.5), strict=True)):
        # Cheap glass focuses blue and red less well than green.
        sigma = device.blur * (1 + 0.15 * abs(side) * device.fringe)
        shift = side * device.fringe
        seen = correlate1d(plane, _kernel(sigma, shift), axis=1, mode="nearest")
        seen = correlate1d(seen, _kernel(sigma, 0.6 * shift), axis=0, mode="nearest")
        if (rows, columns) != seen.shape:
            frame = Image.fromarray(seen).resize((columns, rows), Image.Resampling.BOX)
            seen = np.asarray(frame, dtype=np.float32)
        out[channel] = seen
    return out
