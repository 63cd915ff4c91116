"""The report's tables in LaTeX, with ``booktabs``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from da_leukemia.report import factors, ranks
from da_leukemia.report.contents import Contents
from da_leukemia.report.headlines import metric_name, metric_within
from da_leukemia.report.published import cited, sides, title
from da_leukemia.report.tables import SUMMARY_HEADER, summary_cells, view_rows
from da_leukemia.sweep.matrix import Row
from da_leukemia.sweep.names import FAIR

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_TEX.get(c, c) for c in text)


def latex(contents: Contents) -> str:
    """Return a table for each of matrix, gap, ranks, factors and published metrics."""
    gap, costs = contents.gap, contents.costs
    name = tex(contents.experiment.name)
    metric, within = (tex(of(contents.matrix.headline)) for of in (metric_name, metric_within))
    if not contents.matrix.rows:
        return f"% {name}: there is no result yet\n"
    parts = [rf"% {name}. In the preamble: \usepackage{{booktabs}}", *_tex_matrix(contents)]
    if gap.summaries:
        caption = (
            rf"Share of the {within} gap between \texttt{{{tex(FAIR)}}} and the oracle "
            r"that adaptation closes."
        )
        header = [h.capitalize() for h in SUMMARY_HEADER]
        rows = [summary_cells(s) for s in gap.summaries]
        columns = f"l{'c' * (len(SUMMARY_HEADER) - 2)}l"
        parts += ["", *_tex_table(contents, "gap", caption, columns, header, rows)]
    if contents.ranks is not None:
        caption = tex(
            f"Average ranks by {metric_within(contents.matrix.headline)}. "
            + " ".join(contents.ranks.notes)
        )
        rows = ranks.rank_rows(contents.ranks)
        header = [h.capitalize() for h in ranks.RANKS_HEADER]
        parts += ["", *_tex_table(contents, "ranks", caption, "lc", header, rows)]
    if costs:
        caption = (
            rf"{metric} lost by a change of one optical factor, alone and when all others have "
            r"changed already, with 95\,\% bootstrap intervals."
        )
        rows = factors.factor_rows(costs)
        header = [h.capitalize() for h in factors.FACTORS_HEADER]
        parts += ["", *_tex_table(contents, "factors", caption, "lllcc", header, rows)]
    for table in _published(contents):
        parts += ["", *table]
    return "\n".join(parts) + "\n"


def _published(contents: Contents) -> Iterator[list[str]]:
    """Yield our numbers beside published ones, a table for each metric."""
    for name, published in contents.experiment.published_tables.items():
        for side in sides(contents, published):
            if not side.rows:
                continue
            caption = (
                rf"{tex(title(side, published))}, beside published numbers. Ours: mean over seeds, "
                r"in brackets the 95\,\% bootstrap interval; a dash where there is no run. "
                rf"Published: {tex(cited(published))}"
            )
            caption += f" {tex(published.note.strip())}" if published.note else ""
            columns = f"l{'c' * (len(side.header) - 1)}"
            header = [h[:1].upper() + h[1:] for h in side.header]
            label = f"{name}-{side.metric}"
            yield _tex_table(contents, label, caption, columns, header, side.rows)


def _tex_table(
    contents: Contents,
    label: str,
    caption: str,
    columns: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> list[str]:
    return [
        *(r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"),
        rf"\label{{tab:{contents.experiment.name}-{label}}}",
        *(rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tex_line(header), r"\midrule"),
        *(_tex_line(row) for row in rows),
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]


def _tex_matrix(contents: Contents) -> list[str]:
    matrix = contents.matrix
    metric = tex(metric_name(matrix.headline))
    lines = [
        *(r"\begin{table}", r"\centering"),
        rf"\caption{{{metric} with 95\,\% bootstrap intervals. Rows: trained on; columns: tested "
        rf"on. In brackets: \texttt{{{tex(FAIR)}}}.}}",
        rf"\label{{tab:{contents.experiment.name}-matrix}}",
    ]
    views = [v for v in (matrix.view(m, matrix.headline) for m in matrix.methods) if v.cells]
    tests = views[0].tests if views else ()
    lines += [rf"\begin{{tabular}}{{ll{'c' * len(tests)}}}", r"\toprule"]
    lines += [_tex_line(["Method", "Trained on", *tests])]
    for view in views:
        lines.append(r"\midrule")
        for i, (source, *cells) in enumerate(view_rows(view, _tex_cell)):
            label = tex(view.method) if i == 0 else ""
            lines.append(" & ".join([label, tex(source), *cells]) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _tex_cell(row: Row, borrowed: bool) -> str:
    value = f"({row.value:.3f})" if borrowed else f"{row.value:.3f}"
    return value if row.low is None else f"{value} {{\\tiny [{row.low:.2f}, {row.high:.2f}]}}"


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(tex(cell) for cell in cells) + r" \\"
