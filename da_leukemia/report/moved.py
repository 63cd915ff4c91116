"""Cells of the sample fields that adaptation found or lost."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from da_leukemia.report.depth import Depth
from da_leukemia.report.figures import colour
from da_leukemia.report.samples import Sample, overlap, samples_of


@dataclass(frozen=True)
class Moved:
    """A true cell that one run found and another missed, on the same field.

    Attributes:
        sample: the field as the run that found it saw it.
        truth: index of the cell among the sample's truths.
        gained: the adapted run found it, its twin missed it; else the other way round.
    """

    sample: Sample
    truth: int
    gained: bool


def moved(depth: Depth) -> Iterator[Moved]:
    """Yield the true cells of the sample fields that adaptation found or lost, gained ones first.

    Found: a detection from the score that samples are drawn from overlaps by IoU 0.5, whatever it
    is called; of single cells: it is called what the cell is.
    """
    pairs = []
    for result in depth.results:
        twin = depth.twins.get(result.run.seed)
        if twin is not None:
            theirs, mine = (
                samples_of(run, depth.row.test, depth.single_cells) for run in (twin, result)
            )
            others = {s.name: s for s in theirs}
            pairs += [(s, others[s.name]) for s in mine if s.name in others]
    for gained in (True, False):
        for sample, other in pairs:
            one, two = (sample, other) if gained else (other, sample)
            found, missed = (_found(s, depth.single_cells) for s in (one, two))
            if len(found) == len(missed):
                for i, (a, b) in enumerate(zip(found, missed, strict=True)):
                    if a and not b:
                        yield Moved(one, i, gained)


def _found(sample: Sample, named: bool) -> list[bool]:
    """Return of each true cell whether a shown detection lies on it, and is ``named`` right."""
    return [
        any(
            overlap(truth["box"], finding.box) >= 0.5
            and (not named or finding.type == truth["type"])
            for finding in sample.findings
        )
        for truth in sample.truths
    ]


SIDE = 132
"""Pixels of a crop."""


def crop(change: Moved) -> bytes:
    """Return a JPEG of a moved cell: the true box dashed and white, what found it coloured.

    Raises:
        OSError: the image cannot be read.
    """
    from PIL import Image, ImageDraw

    from da_leukemia.data.pixels import rgb_of

    truth = [float(v) for v in change.sample.truths[change.truth]["box"]]
    side = 2.0 * max(truth[2] - truth[0], truth[3] - truth[1], 8.0)
    left = (truth[0] + truth[2] - side) / 2
    top = (truth[1] + truth[3] - side) / 2
    with Image.open(change.sample.image) as file:
        region = (round(left), round(top), round(left + side), round(top + side))
        pixels = Image.fromarray(rgb_of(file))
        picture = pixels.crop(region).resize((SIDE, SIDE))
    pen, scale = ImageDraw.Draw(picture), SIDE / side

    def placed(box: Sequence[float]) -> list[float]:
        return [(v - o) * scale for v, o in zip(box, (left, top, left, top), strict=True)]

    best = max(change.sample.findings, key=lambda f: overlap(f.box, truth))
    pen.rectangle(placed(best.box), outline="#000000", width=4)
    pen.rectangle(placed(best.box), outline=colour(best.score, 1.0)[0], width=2)
    x1, y1, x2, y2 = placed(truth)
    for i in range(0, SIDE, 10):
        for a, b, line in ((x1, x2, (y1, y2)), (y1, y2, (x1, x2))):
            start, end = a + i, min(a + i + 5, b)
            if start < b:
                for at in line:
                    ends = (start, at, end, at) if line == (y1, y2) else (at, start, at, end)
                    pen.line(ends, fill="#ffffff")
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()
