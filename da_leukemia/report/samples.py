"""Sample fields with what is true and what was found drawn on them."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from da_leukemia.config import devices_of
from da_leukemia.evaluation.slides import COUNTED_SCORE, counted_from
from da_leukemia.report.figures import colour
from da_leukemia.report.headlines import reference_method
from da_leukemia.sweep.results import Result

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    from da_leukemia.report.contents import Contents

WIDTH = 720
"""Pixels; smaller fields are enlarged so that the tags stay legible."""

CELL_WIDTH = 128
"""Pixels of a single cell, at most; none is enlarged."""

NO_BREAK = "\N{NO-BREAK SPACE}"

MIN_SCORE = COUNTED_SCORE
MOST = 12
"""Cells shown on one field."""

Box = tuple[float, float, float, float]

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """A detection as it is shown, with the cell that it found.

    Attributes:
        number: tag on the picture.
        truth: the cell it found (IoU >= 0.5, best score first), None for a false alarm.
        others: type and score of weaker detections of the same cell (IoU >= 0.5).
    """

    number: int
    box: Box
    score: float
    type: str
    attributes: Mapping[str, tuple[str, float]]
    truth: Mapping[str, Any] | None
    others: Sequence[tuple[str, float]] = ()

    @property
    def title(self) -> str:
        """Type and score, then what else the cell may be: ``blast 0.81 or lymphoid 0.40``."""
        named = [(self.type, self.score), *self.others]
        return " or ".join(f"{kind} {score:.2f}" for kind, score in named)


@dataclass(frozen=True)
class Sample:
    """One field as one detector saw it."""

    name: str
    image: Path
    truths: Sequence[Mapping[str, Any]]
    findings: Sequence[Finding]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two xyxy boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def read_samples(path: Path, single_cells: bool = False) -> list[Sample]:
    """Read ``samples/DOMAIN.json`` of a job; no sample if it or its images are gone.

    Args:
        path: the file.
        single_cells: each sample is one cell, whose only finding is the likeliest type; otherwise
            a finding scores at least `MIN_SCORE`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        samples = [sample_of(entry, single_cells) for entry in content]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [s for s in samples if s.image.is_file()]


def sample_of(
    entry: Mapping[str, Any],
    single_cells: bool = False,
    most: int | None = MOST,
    least: float | None = None,
) -> Sample:
    """Return what `tasks.samples.spell_field` spelt out as a sample.

    Args:
        entry: of the field.
        single_cells: see `read_samples`.
        most: cells of the sample, None for all.
        least: score from which a finding counts; by default as in the report.
    """
    return Sample(
        str(entry.get("name") or Path(entry["image"]).name),
        Path(entry["image"]),
        entry["truths"],
        list(_findings(entry, single_cells, most, least)),
    )


def _findings(
    entry: Mapping[str, Any], single_cells: bool, most: int | None, least: float | None
) -> Iterator[Finding]:
    free = list(entry["truths"])
    shown = sorted(entry["detections"], key=lambda d: -float(d["score"]))
    least = counted_from(single_cells) if least is None else least
    shown = [d for d in shown if float(d["score"]) >= least][: 1 if single_cells else None]
    cells: list[list[Mapping[str, Any]]] = []
    for found in shown:
        same = (c for c in cells if overlap(c[0]["box"], found["box"]) >= 0.5)
        if (cell := next(same, None)) is not None:
            cell.append(found)
        else:
            cells.append([found])
    for number, (found, *others) in enumerate(cells[:most], start=1):
        best = max(free, key=lambda t: overlap(t["box"], found["box"]), default=None)
        if best is not None and overlap(best["box"], found["box"]) >= 0.5:
            free.remove(best)
        else:
            best = None
        x1, y1, x2, y2 = (float(v) for v in found["box"])
        yield Finding(
            number,
            (x1, y1, x2, y2),
            float(found["score"]),
            str(found["type"]),
            {k: (str(v[0]), float(v[1])) for k, v in (found.get("attributes") or {}).items()},
            best,
            _others(found, others),
        )


def _others(
    found: Mapping[str, Any], weaker: Sequence[Mapping[str, Any]]
) -> list[tuple[str, float]]:
    """Return the best score of each other type, best first."""
    best = {str(o["type"]): float(o["score"]) for o in reversed(weaker)}
    best.pop(str(found["type"]), None)
    return sorted(best.items(), key=lambda o: -o[1])


def samples_of(result: Result, test: str, single_cells: bool = False) -> list[Sample]:
    """Return the samples that a run left of a device (see `read_samples`)."""
    if result.folder is None:
        return []
    return read_samples(result.folder / "samples" / f"{test}.json", single_cells)


def first_sample(result: Result, test: str) -> Sample | None:
    """Return the first sample field that a run left of a device."""
    return next(iter(samples_of(result, test)), None)


def choose(
    contents: Contents, look: Callable[[Result, str], T | None]
) -> list[tuple[str, list[tuple[Result, T]]]]:
    """Return for every tested device what two runs left of it: without and with adaptation.

    With adaptation is the method that closes most of the gap; where no gap is known the first that
    adapts, and where none does the first other method. Devices without labels follow.

    The detector was trained on another device wherever there is one: the first in the order of
    the experiment, not the one that makes the best picture.

    Args:
        contents: what is reported.
        look: returns what is wanted of a run on a device, None where it left nothing.
    """
    matrix, best = contents.matrix, contents.gap.best
    reference = reference_method(matrix)
    others = [m for m in contents.shown if m != reference]
    others.sort(key=lambda m: m not in matrix.adapted)  # stable: else as in the experiment
    second = best.method if best else next(iter(others), None)
    methods = dict.fromkeys(m for m in (reference, second) if m)
    chosen = []
    blind = dict.fromkeys(run.device for run in matrix.unscored)
    for test in (*(contents.experiment.tests or ()), *blind):
        by_source: dict[str, dict[str, tuple[Result, T]]] = {}
        for method in methods:
            for result in contents.results:
                run = result.run
                seen = by_source.setdefault(run.source, {})
                if run.method != method or run.target not in ("", test) or method in seen:
                    continue
                if not result.looked_at(test):
                    continue
                if (left := look(result, test)) is not None:
                    seen[method] = (result, left)
        known = {source: found for source, found in by_source.items() if found}
        if known:
            source = min(known, key=lambda s: (test in devices_of(s), -len(known[s])))
            chosen.append((test, list(known[source].values())))
    return chosen


def draw(sample: Sample, legend: bool = False) -> bytes:
    """Return a JPEG: true boxes dashed and white, detections coloured by score and numbered.

    Args:
        sample: what to draw.
        legend: write the attributes of every detection below the field, for where no text can
            stand beside the picture.

    Raises:
        OSError: the image cannot be read.
    """
    from PIL import Image, ImageDraw

    from da_leukemia.data.pixels import rgb_of

    with Image.open(sample.image) as file:
        picture = Image.fromarray(rgb_of(file))
    scale = WIDTH / picture.width
    picture = picture.resize((WIDTH, max(1, round(picture.height * scale))))
    pen = ImageDraw.Draw(picture)
    font = _font(15)
    for truth in sample.truths:
        _dashed(pen, [v * scale for v in truth["box"]])
    for finding in sample.findings:
        box = [v * scale for v in finding.box]
        pen.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline="#000000", width=1)
        pen.rectangle(_ordered(box), outline=colour(finding.score, 1.0)[0], width=3)
    taken: list[Box] = []
    for finding in sample.findings:  # after all boxes, so that none is drawn over a tag
        paper, ink = colour(finding.score, 1.0)
        box = [v * scale for v in finding.box]
        text = f"{finding.number} {finding.type} {finding.score:.2f}"
        place = _tag_place(pen, font, text, box, picture.size, taken)
        taken.append(place)
        pen.rectangle(place, fill=paper, outline="#000000")
        pen.text((place[0] + 4, place[1] + 2), text, fill=ink, font=font)
    if legend:
        picture = _with_legend(picture, sample.findings)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()


def portrait(sample: Sample) -> bytes:
    """Return a JPEG of a single cell, at most `CELL_WIDTH` wide and high.

    Raises:
        OSError: the image cannot be read.
    """
    from PIL import Image

    from da_leukemia.data.pixels import rgb_of

    with Image.open(sample.image) as file:
        picture = Image.fromarray(rgb_of(file))
    picture.thumbnail((CELL_WIDTH, CELL_WIDTH))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85, optimize=True)
    return out.getvalue()


def _with_legend(picture: Image, findings: Sequence[Finding]) -> Image:
    from PIL import Image, ImageDraw

    lines = []
    for f in findings:
        values = [
            f"{name.replace('_', ' ')} {value}{NO_BREAK}{100 * sure:.0f}{NO_BREAK}%"
            for name, (value, sure) in f.attributes.items()
        ]
        lines += textwrap.wrap(
            f"{f.number} {f.title}{': ' if values else ''}{', '.join(values)}",
            width=100,
            subsequent_indent="    ",
        )
    font, line = _font(13), 18
    whole = Image.new("RGB", (picture.width, picture.height + line * len(lines) + 12), "#ffffff")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for i, text in enumerate(lines):
        pen.text((8, picture.height + 6 + i * line), text, fill="#111111", font=font)
    return whole


def _ordered(box: Sequence[float]) -> list[float]:
    return [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]


def _font(size: int) -> FreeTypeFont | Any:
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:
        return ImageFont.load_default(size)


def _tag_place(
    pen: ImageDraw,
    font: Any,
    text: str,
    box: Sequence[float],
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Box:
    """Put a tag above, below or inside its box, wherever it covers no other tag."""
    wide, high = pen.textlength(text, font=font) + 8, 21.0
    left = min(max(box[0], 0.0), max(0.0, size[0] - wide - 1))
    tops = [box[1] - high, box[3], box[1], box[3] - high, box[1] - 2 * high, box[3] + high]
    places = [(left, y, left + wide, y + high) for y in tops if 0 <= y <= size[1] - high - 1]
    for place in places:
        if all(overlap(place, other) == 0 for other in taken):
            return place
    return places[0] if places else (left, 0.0, left + wide, high)


def _dashed(pen: ImageDraw, box: Sequence[float], dash: float = 7.0) -> None:
    x1, y1, x2, y2 = box
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for (ax, ay), (bx, by) in pairwise(corners):
        length = max(abs(bx - ax), abs(by - ay))
        steps = max(1, int(length // dash))
        for i in range(steps):
            a, b = i / steps, min(1.0, (i + 0.6) / steps)
            line = [ax + (bx - ax) * a, ay + (by - ay) * a, ax + (bx - ax) * b, ay + (by - ay) * b]
            pen.line(line, fill="#000000", width=5)
            pen.line(line, fill="#ffffff", width=3)
