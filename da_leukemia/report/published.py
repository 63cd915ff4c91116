"""Our numbers beside published ones: HTML, Markdown and CSV from the same cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.config.published import Published, places
from da_leukemia.files import write_csv
from da_leukemia.report.contents import Contents
from da_leukemia.report.headlines import metric_name
from da_leukemia.report.markup import escape, table
from da_leukemia.report.tables import DASH, markdown_rows
from da_leukemia.sweep.matrix import Row

COLUMNS = (
    *("table", "metric", "train", "test", "system"),
    *("ours", "value", "low", "high", "seeds", "fields"),
)
HOW_TO_READ = (
    "Ours: mean over seeds, in brackets the 95 % interval; a dash where there is no run yet. "
    "Theirs: empty where nothing was published or could be read."
)


@dataclass(frozen=True)
class Side:
    """One published metric beside ours.

    Attributes:
        header: titles of the columns.
        rows: cells as text, ours first.
    """

    metric: str
    header: list[str]
    rows: list[list[str]]


def sides(contents: Contents, published: Published) -> list[Side]:
    """Return a table for each published metric; rows of devices that nobody tests are left out."""
    found = []
    ours = [m for m in contents.matrix.methods if m not in contents.matrix.adapted]
    ours += [m for m in contents.matrix.methods if m in contents.matrix.adapted]
    for metric in _metrics(published):
        systems = _systems(published, metric)
        rows = []
        for name, (train, test) in _shown(contents, published).items():
            numbers = published.rows[name].numbers.get(metric, {})
            mine = (_cell(contents, method, train, test, metric) for method in ours)
            rows.append(
                [
                    train if train == test else f"{train} to {test}",
                    *(_ours(row, published) for row in mine),
                    *(_theirs(numbers.get(system), published) for system in systems),
                ]
            )
        header = ["trained on, tested on", *(f"ours: {m}" for m in ours)]
        header += [published.systems.get(s, s) for s in systems]
        found.append(Side(metric, header, rows))
    return found


def _metrics(published: Published) -> list[str]:
    return list(dict.fromkeys(m for row in published.rows.values() for m in row.numbers))


def _systems(published: Published, metric: str) -> list[str]:
    """Return who has a number of a metric: first those that the file lists, in its order."""
    known = {s for row in published.rows.values() for s in row.numbers.get(metric, {})}
    listed = [s for s in published.systems if s in known]
    return listed + sorted(known - set(listed))


def _shown(contents: Contents, published: Published) -> dict[str, tuple[str, str]]:
    tests = contents.experiment.tests or ()
    sources = contents.experiment.sources or ()
    return {
        name: (train, test)
        for name, (train, test) in places(published).items()
        if test in tests and train in sources
    }


def _cell(contents: Contents, method: str, train: str, test: str, metric: str) -> Row | None:
    return contents.matrix.view(method, metric).cells.get((train, test))


def _ours(row: Row | None, published: Published) -> str:
    if row is None:
        return DASH
    value = _theirs(row.value * published.scale, published)
    if row.low is None or row.high is None:
        return value
    low, high = (_theirs(v * published.scale, published) for v in (row.low, row.high))
    return f"{value} [{low}, {high}]"


def _theirs(number: float | None, published: Published) -> str:
    return "" if number is None else f"{number:.{published.digits}f}"


# --- forms -----------------------------------------------------------------------------------


def published_section(contents: Contents) -> str:
    """The section of the page; nothing where the experiment names no published table."""
    parts = []
    for name, published in contents.experiment.published_tables.items():
        parts.append(f"<h3>{escape(name)}</h3><p>Source: {escape(cited(published))}</p>")
        parts += [f"<p class='warn'>{escape(published.note)}</p>"] if published.note else []
        for side in sides(contents, published):
            parts.append(f"<p>{escape(title(side, published))}</p>")
            parts.append(table(side.header, side.rows, words=1))
    return f"<p>{escape(HOW_TO_READ)}</p>{''.join(parts)}" if parts else ""


def published_markdown(contents: Contents) -> list[str]:
    """The same as lines of Markdown."""
    lines: list[str] = []
    for name, published in contents.experiment.published_tables.items():
        lines += ["", f"### {name}", "", f"Source: {cited(published)}"]
        lines += ["", published.note] if published.note else []
        for side in sides(contents, published):
            lines += ["", title(side, published), "", *markdown_rows(side.header, side.rows)]
    return ["", "## Beside published numbers", "", HOW_TO_READ, *lines] if lines else []


def cited(published: Published) -> str:
    """Say where the published numbers stand."""
    return published.source.strip().rstrip(".") + "."


def title(side: Side, published: Published) -> str:
    """Name the metric of a table, with its scale."""
    unit = "" if published.scale == 1 else f", times {published.scale:g}"
    return f"{metric_name(side.metric)}{unit}"


def write_published(contents: Contents, path: Path) -> None:
    """Write a line for each number, theirs and ours on their scale; no file without a table."""
    tables = contents.experiment.published_tables
    if not tables:
        path.unlink(missing_ok=True)
        return
    named = ((name, _lines(contents, published)) for name, published in tables.items())
    write_csv(path, COLUMNS, ([name, *line] for name, lines in named for line in lines))


def _lines(contents: Contents, published: Published) -> Iterator[list[object]]:
    scale = published.scale

    def scaled(value: float | None) -> object:
        return "" if value is None else round(value * scale, published.digits + 2)

    for metric in _metrics(published):
        for name, (train, test) in _shown(contents, published).items():
            for method in contents.matrix.methods:
                row = _cell(contents, method, train, test, metric)
                values: list[object] = ["", "", "", "", ""]
                if row is not None:
                    values = [scaled(row.value), scaled(row.low), scaled(row.high)]
                    values += [row.seeds, row.fields]
                yield [metric, train, test, method, 1, *values]
            numbers = published.rows[name].numbers.get(metric, {})
            for system in _systems(published, metric):
                yield [metric, train, test, system, 0, numbers.get(system, ""), *[""] * 4]
