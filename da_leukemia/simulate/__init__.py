"""Procedural blood smears photographed through simulated devices.

The numerical parts (scipy) are imported when first used, so that importing this is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia.errors import ConfigError
from da_leukemia.simulate.domains import DOMAINS, FACTORS, mixed, parse_domain

if TYPE_CHECKING:
    from da_leukemia.simulate.devices import DEVICES, Device, device_of, photograph
    from da_leukemia.simulate.scene import Scene, render_field

SIMULATOR_VERSION: int = 4
"""Raised whenever the same settings give other pixels or labels."""

_LAZY = {
    "DEVICES": "devices",
    "Device": "devices",
    "device_of": "devices",
    "photograph": "devices",
    "Scene": "scene",
    "render_field": "scene",
}

__all__ = [
    "DEVICES",
    "DOMAINS",
    "FACTORS",
    "SIMULATOR_VERSION",
    "Device",
    "Scene",
    "device_of",
    "mixed",
    "photograph",
    "render_field",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(name)


def simulate(
    out: Path,
    *,
    domains: Sequence[str],
    patients: int,
    fields_per_patient: int,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render smears and write them in the release's own folder tree.

    Args:
        out: folder to make; one that holds the same finished simulation is left as it is.
        domains: which devices photograph every field: names in ``DOMAINS``, or one of them with
            some ``FACTORS`` of another, as ``mixed`` writes it: ``H_100X_C2~blur~L_100X_C2``.
        patients: number of patients; every third is a test patient in all domains.
        fields_per_patient: fields of view of each patient.
        seed: everything follows from it.
        workers: processes; the result does not depend on it.
        progress: called with fields done and fields in all.

    Returns:
        ``out``.

    Raises:
        ConfigError: an unknown domain, a count below one, or ``out`` holds something else.
    """
    problems = []
    for name in domains:
        try:
            parse_domain(name)
        except ConfigError as error:
            problems += [f"simulate.domains: {problem}" for problem in error.problems]
    if not domains:
        problems.append("simulate.domains: name at least one domain")
    if len(set(domains)) != len(domains):
        problems.append("simulate.domains: a domain is named twice")
    counts = {"patients": patients, "fields_per_patient": fields_per_patient, "workers": workers}
    problems += [
        f"simulate.{key}: must be at least 1, not {n}" for key, n in counts.items() if n < 1
    ]
    if seed < 0:
        problems.append(f"simulate.seed: must not be negative, not {seed}")
    if problems:
        raise ConfigError(problems)
    from da_leukemia.simulate.writer import write_simulation

    settings = {
        "domains": sorted(domains),
        "patients": patients,
        "fields_per_patient": fields_per_patient,
        "seed": seed,
        "simulator_version": SIMULATOR_VERSION,
    }
    return write_simulation(Path(out), settings, workers=workers, progress=progress)
