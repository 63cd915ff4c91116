"""Look at a data set before training on it: what is there, and what is wrong with it.

`check` looks at every image file and decodes a sample, or all; it trains nothing and needs no GPU.
`render` prints the report for a terminal, ``CheckReport.to_dict`` is its JSON form.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from da_leukemia.data.attributes import attribute_counts, constant_attributes
from da_leukemia.data.cache import cache_folder
from da_leukemia.data.cells import FORMAT as CELLS
from da_leukemia.data.cells.duplicates import keep_together
from da_leukemia.data.cells.prints import prints_of
from da_leukemia.data.fields import FieldIndex, FieldOfView, Finding, FloatArray
from da_leukemia.data.integrity import Outside, whole
from da_leukemia.data.pixels import rgb_of
from da_leukemia.data.readers import (
    READERS,
    DomainSource,
    find_domains,
    images,
    leukemiaattri,
    list_domains,
    read_domain,
)
from da_leukemia.data.readers.assemble import note_unreadable
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.splits import leaks
from da_leukemia.errors import ConfigError, DataError, counted, did_you_mean, no_such_folder
from da_leukemia.labels import LEUKEMIAATTRI, LabelSpace

SAMPLE = 50
"""Images per domain that are decoded where not all are."""

FEW = 20
"""Cells of known value from which it is worth saying that an attribute never varies."""

DECODE = ("sample", "all")
"""Which images are decoded, for colour, sharpness and damage in the middle of a file."""


@dataclass(frozen=True)
class DomainReport:
    """What one domain holds.

    Attributes:
        domain: its name.
        format: a name in `READERS`.
        images: images with a field, readable or not.
        patients: patients or slides, 0 where the data does not say.
        fields: distinct fields (patient and name).
        diagnoses: images per diagnosis in the file names (LeukemiaAttri and its sparse part).
        released: images per released part.
        boxes: boxes per class name; "unknown type" for white cells that are not told apart.
        labelled_classes: names of the classes that are labelled here at all.
        attributes: per attribute the number of boxes per value name, and "missing".
        box_width: least, quartiles and largest width in pixels; empty without boxes.
        box_height: the same for the height.
        image_sizes: images per "width x height".
        mean_colour: mean red, green and blue (0..255) over the decoded images; empty without.
        sharpness: quartiles of the Laplacian variance of grey images over the decoded images.
        decoded: how many images were decoded whole.
        findings: everything that is wrong.
    """

    domain: str
    format: str
    images: int
    patients: int
    fields: int
    diagnoses: dict[str, int]
    released: dict[str, int]
    boxes: dict[str, int]
    labelled_classes: tuple[str, ...]
    attributes: dict[str, dict[str, int]]
    box_width: tuple[float, ...]
    box_height: tuple[float, ...]
    image_sizes: dict[str, int]
    mean_colour: tuple[float, ...]
    sharpness: tuple[float, ...]
    decoded: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds, by domain, and what concerns several domains.

    ``decode`` is the entry of `DECODE` that it was made with.
    """

    root: str
    label_space: str
    domains: tuple[DomainReport, ...]
    findings: tuple[Finding, ...]
    decode: str = "sample"

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """Findings of all domains and those between domains."""
        return (*(f for d in self.domains for f in d.findings), *self.findings)

    @property
    def exit_code(self) -> int:
        """1 if any finding is an error, else 0."""
        return int(any(f.severity == "error" for f in self.all_findings))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**asdict(self), "exit_code": self.exit_code}


def check(
    root: Path,
    fmt: str = "auto",
    space: LabelSpace = LEUKEMIAATTRI,
    *,
    decode: str = "sample",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every domain below ``root`` and report on it.

    Args:
        root: folder of the data set.
        fmt: a name in `READERS`, or "auto" to find out for each domain.
        space: label space to read into; the default tells most cell types apart.
        decode: "sample" for up to `SAMPLE` images of each domain, "all" for every image.
        workers: images decoded side by side; the report does not depend on it.
        progress: called with images decoded and to decode, over all domains.

    Returns:
        The report. A domain that cannot be read is a finding, not an exception.

    Raises:
        DataError: there is no such folder, or no domain in it.
        ConfigError: unknown format or ``decode``.
    """
    if decode not in DECODE:
        raise ConfigError(f"decode: unknown {decode!r}{did_you_mean(decode, DECODE)}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(no_such_folder(root))
    domains = find_domains(root) if fmt == "auto" else dict.fromkeys(list_domains(root, fmt), fmt)
    if not domains:
        known = ", ".join(READERS)
        raise DataError(
            f"{root}: no domain found (formats: {known}). Expected folders like H_100X_C2, or "
            "folders with an annotations.json, VOC xml files, YOLO labels, or images alone"
        )
    opened = [_open(domain, root, found, space, decode) for domain, found in domains.items()]
    total = sum(len(o.chosen) for o in opened)
    done = itertools.count(1)
    step = (lambda: progress(next(done), total)) if progress is not None else lambda: None
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes without the interpreter's lock
        reports = [_report(o, space, pool, step) for o in opened]
    found = leaks([o.index for o in opened])
    return CheckReport(str(root), space.name, tuple(reports), tuple(found), decode)


@dataclass(frozen=True)
class _Opened:
    """A domain whose labels are read and whose image files were looked at.

    ``looked`` are the fields whose file seems whole, ``chosen`` those of them to be decoded.
    """

    index: FieldIndex
    format: str
    log: FindingLog
    looked: list[tuple[FieldOfView, Outside]]
    chosen: list[FieldOfView]


def _open(domain: str, root: Path, fmt: str, space: LabelSpace, decode: str) -> _Opened:
    log = FindingLog()
    source = DomainSource(domain, root)
    try:
        index = read_domain(source, fmt, space)
        if fmt == CELLS:
            index = keep_together([index], [prints_of(index, cache_folder("auto"))])[0]
        known = index.findings
    except DataError as e:
        note_unreadable(e, log)
        index = images.read(source, space)  # what is wrong with the images is not hidden
        known = tuple(f for f in index.findings if f.kind == "unreadable_image")
    for finding in known:
        log.merge(finding)
    looked = whole(index.fields, log)
    fields = [f for f, _ in looked]
    if decode == "sample":
        spread = np.linspace(0, len(fields) - 1, min(SAMPLE, len(fields)))
        fields = [fields[i] for i in sorted({int(i) for i in spread})]
    return _Opened(index, fmt, log, looked, fields)


def _report(
    opened: _Opened, space: LabelSpace, pool: ThreadPoolExecutor, step: Callable[[], None]
) -> DomainReport:
    index, fmt, log = opened.index, opened.format, opened.log
    sizes = Counter(outside.size for _, outside in opened.looked)
    colour, sharpness, decoded = _appearance(opened.chosen, log, pool, step)
    if fmt != CELLS:  # whose copies are looked for by what they show
        _twins([f for f, _ in opened.looked], log)
    tally = attribute_counts(index.fields, space)
    for same in constant_attributes(np.where(tally.sum(1, keepdims=True) < FEW, 0, tally), space):
        log.add("attribute_constant", same)
    labels = np.concatenate([np.zeros(0, np.int64), *(f.labels for f in index.fields)])
    codes = np.concatenate(
        [np.zeros((0, len(space.attributes)), np.int64), *(f.attributes for f in index.fields)]
    )
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(f.boxes for f in index.fields)])
    counts = {name: int((labels == i).sum()) for i, name in enumerate(space.classes)}
    counts["unknown type"] = int((labels < 0).sum())
    names = [leukemiaattri.parse_name(f.image.stem) for f in index.fields]
    diagnoses = Counter(n.diagnosis or "not in name" for n in names if n is not None)
    labelled = sorted({c for f in index.fields for c in f.labelled_classes})
    return DomainReport(
        domain=index.domain,
        format=fmt,
        images=len(index.fields),
        patients=len({f.patient for f in index.fields if f.patient}),
        fields=len({f.key for f in index.fields}),
        diagnoses=dict(sorted(diagnoses.items())) if fmt in ("leukemiaattri", "sparse") else {},
        released=dict(sorted(Counter(f.released_split or "-" for f in index.fields).items())),
        boxes={name: count for name, count in counts.items() if count},
        labelled_classes=tuple(space.classes[c] for c in labelled),
        attributes={
            a.name: {
                **{value: int((codes[:, k] == v).sum()) for v, value in enumerate(a.values)},
                "missing": int((codes[:, k] < 0).sum()),
            }
            for k, a in enumerate(space.attributes)
            if (codes[:, k] >= 0).any()
        },
        box_width=_quartiles(boxes[:, 2] - boxes[:, 0]),
        box_height=_quartiles(boxes[:, 3] - boxes[:, 1]),
        image_sizes={f"{w} x {h}": n for (w, h), n in sizes.most_common()},
        mean_colour=colour,
        sharpness=sharpness,
        decoded=decoded,
        findings=log.findings(),
    )


def _appearance(
    fields: Sequence[FieldOfView],
    log: FindingLog,
    pool: ThreadPoolExecutor,
    step: Callable[[], None],
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Decode images; return mean colour, quartiles of sharpness, and how many were decoded."""
    colours, sharp = [], []
    for f, found in zip(fields, pool.map(_decode, [f.image for f in fields]), strict=True):
        step()
        if isinstance(found, str):
            log.add("unreadable_image", f"{f.domain}/{f.image.name}: {found}")
            continue
        colours.append(found[0])
        sharp += [found[1]] if found[1] is not None else []
    colour = np.mean(colours, axis=0) if colours else np.zeros(0)
    rounded = tuple(round(float(v), 1) for v in colour)
    return rounded, _quartiles(np.array(sharp, dtype=np.float32)), len(colours)


def _decode(path: Path) -> tuple[FloatArray, float | None] | str:
    """Return mean colour and sharpness (None of less than 3 pixels), or why it is damaged."""
    try:
        with Image.open(path) as image:
            pixels = rgb_of(image).astype(np.float32)
    except Exception as e:  # Pillow's plugins raise far more than OSError on damaged files
        return str(e)[:100] or type(e).__name__
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    colour: FloatArray = pixels.mean(axis=(0, 1), dtype=np.float64)
    return colour, laplacian_variance(grey) if min(grey.shape) >= 3 else None


def laplacian_variance(grey: FloatArray) -> float:
    """Return the variance of the 4-neighbour Laplacian of an ``(H, W)`` image in grey levels."""
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.var(around - 4 * inner))


def _twins(fields: Sequence[FieldOfView], log: FindingLog) -> None:
    """Report identical files within the domain; only files of one size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for f in fields:
        by_size[f.image.stat().st_size].append(f.image)
    for paths in by_size.values():
        seen: dict[bytes, Path] = {}
        for path in paths if len(paths) > 1 else ():
            content = hashlib.sha1(path.read_bytes(), usedforsecurity=False).digest()
            first = seen.setdefault(content, path)
            if first is not path:
                log.add("duplicate_image", f"{path.name} = {first.name}")


def _quartiles(values: FloatArray) -> tuple[float, ...]:
    if not len(values):
        return ()
    return tuple(round(float(v), 1) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))


def render(report: CheckReport) -> str:
    """Return the report as text for a terminal."""
    lines = [f"{report.root}: label space {report.label_space}"]
    for d in report.domains:
        lines += ["", *_render_domain(d)]
    if report.findings:
        lines += ["", "between domains", *_render_findings(report.findings)]
    if report.decode != "all" and any(d.decoded < d.images for d in report.domains):
        lines += ["", "Damage in the middle of a file shows where it is decoded: --decode all"]
    errors = sum(f.severity == "error" for f in report.all_findings)
    warnings = len(report.all_findings) - errors
    verdict = "not ready: put the errors right first" if errors else "ready"
    kinds = [
        f"{counted(n, 'kind')} of {what}" for n, what in ((errors, "error"), (warnings, "warning"))
    ]
    lines += ["", f"{', '.join(kinds)}: {verdict}"]
    return "\n".join(lines)


def _render_domain(d: DomainReport) -> list[str]:
    patients = counted(d.patients, "patient") if d.patients else "patients not told"
    rows = [
        ("diagnoses", _counts(d.diagnoses)),
        ("released", _counts({k: v for k, v in d.released.items() if k != "-"})),
        ("boxes", _counts(d.boxes) or "none"),
        ("labelled", ", ".join(d.labelled_classes) or "no class of this label space"),
        *((f"  {name}", _counts(values)) for name, values in d.attributes.items()),
        ("box width", _spread(d.box_width, "px")),
        ("box height", _spread(d.box_height, "px")),
        ("image sizes", _counts(dict(list(d.image_sizes.items())[:5]))),
        ("mean colour", "R {} G {} B {}".format(*d.mean_colour) if d.mean_colour else ""),
        ("sharpness", _spread(d.sharpness, "(Laplacian variance)")),
        ("decoded", f"{d.decoded} of {counted(d.images, 'image')}"),
    ]
    found = f"{counted(d.images, 'image')}, {counted(d.fields, 'field')}, {patients}"
    head = f"{d.domain}: {found} (format {d.format})"
    return [
        head,
        *(f"  {name:<24} {text}" for name, text in rows if text),
        *_render_findings(d.findings),
    ]


def _render_findings(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for f in findings:
        lines.append(f"  {f.severity.upper()} {f.kind} ({f.count}): {f.message}")
        lines += [f"      {example}" for example in f.examples]
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _spread(values: tuple[float, ...], unit: str) -> str:
    if not values:
        return ""
    low, q1, median, q3, high = values
    return f"median {median} (quartiles {q1}-{q3}, range {low}-{high}) {unit}"
