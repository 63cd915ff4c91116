"""Write settings.md, the list of all settings, from the classes that they are read into.

``make settings`` runs it. Defaults and bounds are those of the dataclasses. What a setting means is
said beside it or above it in a comment, or in the docstring of its class, under ``Attributes:``.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from da_leukemia.adaptation.settings import COMPONENTS
from da_leukemia.bounds import Bounds
from da_leukemia.config import Experiment

HEAD = """\
# All settings

Written by `make settings` from `da_leukemia/config/` and `da_leukemia/adaptation/families/`; change
the comment or docstring there.

A key is written with its dots on the command line (`trainer.steps=500`, `data.split.seed=1`,
`seeds=[0,1]`, `processes=null`), and in an experiment file as sections within each other
(`trainer: {steps: 500}`). Upper case (`NAME`) is a name of yours. The command line is read last.
Besides:

- `extends: FILE` (or a list) in an experiment file: files that are read before it.
- `trainer=smoke`, `detector=cells`, `augmentation=default` on the command line: a file of
  `configs/trainer/`, `configs/detector/`, ... is read into that section; `data=NAME` likewise.

A key that is not listed here, or a value that is not allowed, is refused before anything runs.
"""

COMPONENTS_HEAD = """\
## Components

What an entry of `components` of a method may hold beside its `name`:
`components: [{name: mean_teacher, threshold: 0.6}]`. The list is replaced as a whole, there are no
dotted keys into it. What each does and what was published: [adaptation.md](adaptation.md).
"""


_TEXT, _ANY = "a text", "any value"
_BAR = "\\|"
"""A bar within a table."""


def sections(schema: Any, at: str = "") -> Iterator[tuple[str, type]]:
    """Yield a section and all within it, each with what its keys begin with: ``data.split.``."""
    yield at, schema
    for setting, hint in _hints(schema):
        if is_dataclass(hint):
            yield from sections(hint, f"{at}{setting.name}.")
        elif is_dataclass(_named(hint)):
            yield from sections(_named(hint), f"{at}{setting.name}.NAME.")


def meanings(section: type) -> dict[str, str]:
    """Return what is said of each setting of a section, by its docstring or by comments."""
    told = inspect.getdoc(section) or ""
    entries = re.findall(
        r"^    (\w+): (.*(?:\n {8}.*)*)", told.partition("\nAttributes:\n")[2], re.M
    )
    found = {name: " ".join(text.split()) for name, text in entries} | _comments(section)
    return {name: text.removesuffix(".") for name, text in found.items()}


def page() -> str:
    """Return the text of settings.md."""
    places: dict[type, str] = {}
    for at, section in sections(Experiment):
        places.setdefault(section, at)
    titles = {section: at.removesuffix(".") or "experiment" for section, at in places.items()}
    chapters = [f"## {titles[s]}\n\n{_table(s, at, titles)}" for s, at in places.items()]
    components = [f"### {name}\n\n{_table(c, '', titles)}" for name, c in COMPONENTS.items()]
    contents = [
        f"Sections: {', '.join(_link(title) for title in titles.values())}.\n",
        f"[Components](#components): {', '.join(_link(name) for name in COMPONENTS)}.\n",
    ]
    return "\n".join([HEAD, *contents, *chapters, COMPONENTS_HEAD, *components])


def _hints(schema: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(schema)
    return [(setting, hints[setting.name]) for setting in fields(schema)]


def _named(hint: Any) -> Any:
    """Return what a dictionary holds under names; None for what is none."""
    return get_args(hint)[1] if get_origin(hint) is dict else None


def _comments(section: type) -> dict[str, str]:
    source = inspect.getsource(section)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    alone = {n for n, t in comments.items() if t.line.lstrip().startswith("#")}
    found = {}
    # mypy knows a statement, not that the source of a class begins with a ClassDef.
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while first - 1 in alone:
                first -= 1
            said = [comments[n].string.strip("# ") for n in range(first, last + 1) if n in comments]
            if said:
                found[node.target.id] = " ".join(said)
    return found


def _table(section: type, at: str, titles: dict[type, str]) -> str:
    said = meanings(section)
    lines = [
        _linked(inspect.getdoc(section) or "").partition("\nAttributes:\n")[0].strip() + "\n",
        "| key | default | allowed | meaning |",
        "|---|---|---|---|",
    ]
    for setting, hint in _hints(section):
        if not is_dataclass(hint):
            default, allowed = _written(_default(setting)), _allowed(setting, hint, titles)
            cells = (f"`{at}{setting.name}`", f"`{default}`", allowed, said.get(setting.name, ""))
            lines.append(f"| {' | '.join(_linked(c).replace('|', _BAR) for c in cells)} |")
    return "\n".join(lines) + "\n"


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _written(value: Any) -> str:
    """Return a value as it is written in a file."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)


def _allowed(setting: Field[Any], hint: Any, titles: dict[type, str]) -> str:
    if type(None) in get_args(hint):
        inner = next(a for a in get_args(hint) if a is not type(None))
        return f"{_allowed(setting, inner, titles)}, or `null`"
    if "choices" in setting.metadata:
        return ", ".join(f"`{choice}`" for choice in setting.metadata["choices"])
    if get_origin(hint) is list:
        one = _allowed(setting, get_args(hint)[0], titles)
        return "a list of texts" if one == _TEXT else f"a list, each {one}"
    if get_origin(hint) is dict:
        each = _allowed(setting, _named(hint), titles)
        return "a section" if each == _ANY else f"by name, each {each}"
    if hint in titles:
        return f"a section: {_link(titles[hint])}"
    if hint in (int, float):
        bounds: Bounds = setting.metadata.get("bounds", Bounds())
        what = bounds.what or ("a whole number" if hint is int else "a number")
        return replace(bounds, what=what).text(hint is int)
    return {bool: "`true`, `false`", str: _TEXT}.get(hint, _ANY)


def _link(title: str) -> str:
    """Return a link to a heading of the page, whose anchor GitHub makes so."""
    return f"[{title}](#{title.lower().replace('.', '')})"


def _linked(text: str) -> str:
    """Turn the names of documents into links."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
