"""Small pieces of HTML, escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def escape(text: object) -> str:
    """Escape text for an element or a quoted attribute."""
    return html.escape(str(text))


def breakable(text: str) -> str:
    """Escape a name and let it break after underscores."""
    return escape(text).replace("_", "_<wbr>")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int, best: int = -1) -> str:
    """Return a table whose first ``words`` columns are text and the others numbers."""
    kinds = ["" if i < words else ' class="n"' for i in range(len(header))]
    named = zip(kinds, header, strict=True)
    head = "".join(f"<th{kind} scope='col'>{escape(title)}</th>" for kind, title in named)
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kinds, row, strict=True))
        lines.append(f"<tr{' class=best' if i == best else ''}>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="list"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
