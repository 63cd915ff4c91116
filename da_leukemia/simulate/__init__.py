"""Procedural blood smears photographed through simulated devices.

The numerical parts (scipy) are imported when first used, so that importing this is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia.errors import ConfigError, did_you_mean
from da_leukemia.simulate.domains import (
    DOMAINS,
    EMPTY_DOMAIN,
    FACTORS,
    PATCH_ORDERS,
    mixed,
    parse_domain,
)

if TYPE_CHECKING:
    from da_leukemia.simulate.devices import DEVICES, Device, device_of, photograph
    from da_leukemia.simulate.scene import Scene, render_field

SIMULATOR_VERSION: int = 5
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
    sparse: float | None = None,
    patch_order: str = "x1y1x2y2",
    defects: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render smears and write them in the release's own folder tree.

    Args:
        out: folder to make; one that holds the same finished simulation is left as it is.
        domains: which devices photograph every field: names in ``DOMAINS``, or one of them with
            some ``FACTORS`` of another, as ``mixed`` writes it: ``H_100X_C2~blur~L_100X_C2``, each
            also with another sensor: ``H_100X_C2@400x280``.
        patients: number of patients; every third is a test patient in all domains.
        fields_per_patient: fields of view of each patient.
        seed: everything follows from it.
        sparse: share of each training field that is annotated, as in Sparse-LeukemiaAttri (0.2):
            16-column text labels alone, see docs/simulator.md. None for whole fields.
        patch_order: how sparse rows write the patch, "x1y1x2y2" or "x1x2y1y2".
        defects: put the release's defects in and count them in ``simulation.json``.
        workers: processes; the result does not depend on it.
        progress: called with fields done and fields in all.

    Returns:
        ``out``.

    Raises:
        ConfigError: an unknown domain, a count below one, settings that exclude each other, or
            ``out`` holds something else.
    """
    problems = _domain_problems(domains)
    counts = {"patients": patients, "fields_per_patient": fields_per_patient, "workers": workers}
    problems += [
        f"simulate.{key}: must be at least 1, not {n}" for key, n in counts.items() if n < 1
    ]
    if seed < 0:
        problems.append(f"simulate.seed: must not be negative, not {seed}")
    problems += _variant_problems(domains, counts, sparse, patch_order, defects)
    if problems:
        raise ConfigError(problems)
    from da_leukemia.simulate.writer import write_simulation

    settings: dict[str, Any] = {
        "domains": sorted(domains),
        "patients": patients,
        "fields_per_patient": fields_per_patient,
        "seed": seed,
        "simulator_version": SIMULATOR_VERSION,
    }
    # Only where asked for, so that folders made before these settings existed are still taken.
    if sparse is not None:
        settings.update(sparse=float(sparse), patch_order=patch_order)
    if defects:
        settings.update(defects=True)
    return write_simulation(Path(out), settings, workers=workers, progress=progress)


def _domain_problems(domains: Sequence[str]) -> list[str]:
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
    return problems


def _variant_problems(
    domains: Sequence[str],
    counts: dict[str, int],
    sparse: float | None,
    patch_order: str,
    defects: bool,
) -> list[str]:
    problems = []
    if (sparse is not None or defects) and any("@" in name for name in domains):
        problems.append("simulate.domains: sparse and defects are of the release's 640 x 640 alone")
    if sparse is not None and not 0 < sparse <= 1:
        problems.append(f"simulate.sparse: a share of the field above 0 and up to 1, not {sparse}")
    if patch_order not in PATCH_ORDERS:
        hint = did_you_mean(patch_order, PATCH_ORDERS)
        problems.append(f"simulate.patch_order: unknown {patch_order!r}{hint}")
    elif sparse is None and patch_order != PATCH_ORDERS[0]:
        problems.append("simulate.patch_order: there is a patch only with sparse")
    if not defects:
        return problems
    if sparse is not None:
        problems.append("simulate.defects: known of the whole release only; leave out sparse")
    full = [name for name in domains if name != EMPTY_DOMAIN]
    if len(full) < 2:
        problems.append(
            f"simulate.defects: name two domains besides {EMPTY_DOMAIN}, which is left empty; a "
            "patient is shared between them"
        )
    problems += [
        f"simulate.defects: needs {key} of 3 or more, not {counts[key]}"
        for key in ("patients", "fields_per_patient")
        if 1 <= counts[key] < 3
    ]
    return problems
