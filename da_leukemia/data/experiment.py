"""An experiment's data: every device read, and divided over all of them at once. Free of torch."""

from __future__ import annotations

from pathlib import Path

from da_leukemia.config import Data, Domain
from da_leukemia.data.cache import cache_folder, read_cached
from da_leukemia.data.cells import FORMAT, single_cells
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers import DomainSource
from da_leukemia.data.sparse import learned
from da_leukemia.data.splits import ClassesOf, Split, make_split, released_split
from da_leukemia.errors import DataError, no_such_folder
from da_leukemia.labels import get_label_space


def domain_source(data: Data, name: str) -> DomainSource:
    """Say where a device of an experiment is to be read from."""
    domain: Domain = data.domains[name]
    root = Path(data.root)
    if domain.format != "leukemiaattri" or domain.root:
        root = root / (domain.root or name)
    classes = None if domain.classes is None else tuple(domain.classes)
    return DomainSource(
        name,
        root,
        labels=domain.annotations,
        classes=classes,
        patient_pattern=domain.patient_pattern,
        patch_order=domain.patch_order,
        folders=None if domain.folders is None else tuple(domain.folders),
    )


def missing_root(data: Data) -> list[str]:
    """Say that the folder of the data is not there; nothing where it is."""
    root = Path(data.root)
    if root.is_dir():
        return []
    return [f"data.root: {no_such_folder(root)}; give it as data.root=PATH on the command line"]


def no_images(domain: str) -> str:
    """Say that a device is empty."""
    return f"{domain}: no images; is data.domains.{domain}.root right?"


def classes_of(data: Data) -> ClassesOf | None:
    """Return what a stratified split counts of a field; None where a split is not stratified.

    Nothing of devices whose labels are for testing alone: what is learned from them would depend on
    their labels. Of a single cell its own label counts, not those of its copies; of a field in part
    annotated, what lies in the part.
    """
    if not data.split.stratify:
        return None

    def classes_of_(field: FieldOfView) -> list[int]:
        domain = data.domains[field.domain]
        if domain.labels != "all":
            return []
        if domain.format == FORMAT or domain.crop is not None:
            return [int(k) for k in field.labels[:1]]
        return [int(k) for k in field.labels[learned(field)]]

    return classes_of_


def read_experiment_data(data: Data) -> tuple[dict[str, FieldIndex], Split]:
    """Read every device and divide them by patient over all of them at once.

    Raises:
        ConfigError: settings of the data that cannot be.
        DataError: a device or a label file that cannot be read, or no image on any device.
    """
    space = get_label_space(data.label_space)
    caches = cache_folder(data.cache_dir)
    indexes = {
        name: read_cached(domain_source(data, name), domain.format, space, caches)
        for name, domain in data.domains.items()
    }
    unread = [
        f"{name}: {f.message} ({f.count}): {'; '.join(f.examples)}"
        for name, index in indexes.items()
        for f in index.findings
        if f.kind == "unreadable_label_file"
    ]
    if unread:
        raise DataError(unread)
    if not any(len(index) for index in indexes.values()):
        raise DataError([no_images(name) for name in indexes])
    indexes = single_cells(data, indexes)
    values = list(indexes.values())
    settings = data.split
    if settings.kind == "released":
        split = released_split(
            values,
            validation=settings.validation,
            seed=settings.seed,
            classes_of=classes_of(data),
        )
    else:
        split = make_split(
            values,
            test=settings.test,
            validation=settings.validation,
            seed=settings.seed,
            classes_of=classes_of(data),
        )
    return indexes, split
