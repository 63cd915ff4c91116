"""M5 malaria (CVPR 2022, arXiv 2111.13656): two microscopes, three magnifications, VOC labels.

``Images/{HCM,LCM}/{1000x,400x,100x}`` with xml files beside the images, below ``train``, ``val``
and ``test`` where there are such folders, or in the same tree below ``Annotations``; a device
without any is read as unlabelled. Domains are ``HCM_1000x``, ``LCM_100x``, ... The label space is
``m5``; in spaces of white cells parasites are background.

A field was photographed through all six devices under one name, after words for the microscope
and the magnification are taken off. Files carry no patient, so the field stands for it: the same
cells never lie on both sides of a split. Two fields of one patient may (`patient_is_field`);
`patient_pattern` puts that right where names allow.
"""

from __future__ import annotations

import re
from pathlib import Path

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import assemble, bare_fields
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import child, images_in, subfolders
from da_leukemia.data.readers.voc import label_folders, read_fields, xml_in
from da_leukemia.errors import DataError, did_you_mean
from da_leukemia.labels import LabelSpace

MICROSCOPES = {"HCM": "high-cost microscope", "LCM": "low-cost microscope"}
_MAGNIFICATION = re.compile(r"(?:1000|400|100)x", re.IGNORECASE)
_DEVICE_WORDS = re.compile(r"(?:^|[-_ ])(?:[hl]cm|(?:1000|400|100)x)(?=$|[-_ ])", re.IGNORECASE)


def list_domains(root: Path) -> list[str]:
    """Return ``{microscope}_{magnification}`` of the folders below ``Images``, sorted."""
    return sorted(_folders(root))


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one of the six devices.

    Raises:
        DataError: there is no such folder.
    """
    root = source.root
    folders = {name.lower(): path for name, path in _folders(root).items()}
    folder = folders.get(source.domain.lower())
    if folder is None:
        raise DataError(
            f"{root / 'Images'}: no folder of {source.domain!r} (MICROSCOPE_MAGNIFICATION, such as "
            f"HCM_1000x){did_you_mean(source.domain, _folders(root))}; "
            f"data.domains.{source.domain}.root is the folder that holds Images"
        )
    log = FindingLog()
    places = [folder, *_below(folder)]
    relative = folder.relative_to(root).parts[1:]
    apart = child(root, "Annotations", *relative)
    if apart is not None:
        places += [apart, *_below(apart)]
    labels: dict[Path, str] = {}
    for place in places:
        for part, found in label_folders(place):
            for path in xml_in(found):
                labels.setdefault(path, part)
    images = [p for place in places for p in images_in(place)]
    if labels:
        raw = read_fields(root, [(part, path) for path, part in labels.items()], images, log)
    else:
        raw = list(bare_fields(images, root, log))
    known = source.patient_regex()
    for item in raw:
        item.name = field_name(item.image.stem)
        item.patient = item.name
        if known is None or not known.search(item.image.name):
            log.add("patient_is_field", item.shown)
    return assemble(source, space, root, raw, log, labelled=bool(labels))


def field_name(stem: str) -> str:
    """Return the name of the field that the photographs of all devices share."""
    return _DEVICE_WORDS.sub("", stem).strip("-_ ") or stem


def _folders(root: Path) -> dict[str, Path]:
    images = child(root, "Images")
    if images is None:
        return {}
    return {
        f"{scope.name.upper()}_{power.name.lower()}": power
        for scope in subfolders(images)
        if scope.name.upper() in MICROSCOPES
        for power in subfolders(scope)
        if _MAGNIFICATION.fullmatch(power.name)
    }


def _below(folder: Path) -> list[Path]:
    return [p for inner in subfolders(folder) for p in (inner, *_below(inner))]
