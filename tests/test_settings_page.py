"""docs/settings.md lists every setting as the code has it, each with what it means."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from da_leukemia.adaptation.settings import COMPONENTS
from da_leukemia.bounds import number
from da_leukemia.config import Experiment

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "settings.md").read_text(encoding="utf-8")
WRITER = runpy.run_path(str(DOCS / "settings.py"))


@dataclass
class Told:
    """Of a microscope.

    Attributes:
        lamp: how bright,
            in lumens.
        lens: of the objective.
    """

    lamp: float = number(5.0, least=0)
    lens: str = "air"
    # how long
    # the shutter is open
    exposure: float = 1.0  # in ms
    stage: str = "fixed"  # its holders
    # of nothing that follows directly

    silent: bool = False


def schemas(schema: type) -> set[type]:
    """Every class of settings within one, however deep."""
    found = {schema}
    for hint in get_type_hints(schema).values():
        inner = [hint, *get_args(hint)]
        found |= {s for kind in inner if is_dataclass(kind) for s in schemas(kind)}
    return found


SCHEMAS = sorted(schemas(Experiment) | set(COMPONENTS.values()), key=lambda s: s.__name__)


def test_the_page_is_what_the_settings_say():
    assert WRITER["page"]() == PAGE, "a setting changed: run `make settings`"


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: s.__name__)
def test_every_setting_says_what_it_means(schema):
    said = WRITER["meanings"](schema)
    hints = get_type_hints(schema)
    bare = [
        f.name for f in fields(schema) if not is_dataclass(hints[f.name]) and not said.get(f.name)
    ]
    assert not bare, "say what these mean in a comment beside them, then run `make settings`"
    assert schema.__doc__
    assert not schema.__doc__.startswith(f"{schema.__name__}("), "give the section a docstring"


def test_every_setting_is_on_the_page():
    keys = re.findall(r"^\| `([\w.]+)` \|", PAGE, re.M)
    listed = [key.rpartition(".")[2] for key in keys]
    wanted = [
        f.name
        for schema in SCHEMAS
        for f in fields(schema)
        if not is_dataclass(get_type_hints(schema)[f.name])
    ]
    assert sorted(listed) == sorted(wanted)
    assert {"data.split.allow_leaks", "data.domains.NAME.crop", "trainer.validate_every"} <= {*keys}


def test_rows_have_the_default_the_bounds_and_the_meaning():
    for row in (
        "| `trainer.warmup` | `0.05` | a number from 0 to 1 | share of",
        "| `trainer.learning_rate` | `0.001` | a number above 0 and up to 10 | of AdamW",
        "| `data.memory_cache_gb` | `4.0` | a number of at least 0 | GB of memory",
        "| `data.domains.NAME.crop` | `null` | a margin as a share of the box from 0 to 2, or `n",
        "| `detector.strides` | `[8, 16, 32]` | a list, each a whole number of at least 1 | of the",
        "| `executor` | `local` | `local`, `slurm`, `ray` | what runs the jobs, see [clusters.md]",
        "| `adaptations.NAME.learning_rate_factor` | `1.0` | a number above 0 | of `trainer",
        "| `condition` | `none` | `none`, `outer`, `random` | ",
    ):
        assert f"\n{row}" in PAGE


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.+)$", PAGE, re.M)
    anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert len({*anchors}) == len(anchors)
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = target.partition("#")
        assert not file or (DOCS / file).is_file(), target
        assert not anchor or anchor in anchors, target


def test_meanings_are_found_in_docstrings_and_comments():
    assert WRITER["meanings"](Told) == {
        "lamp": "how bright, in lumens",
        "lens": "of the objective",
        "exposure": "how long the shutter is open in ms",
        "stage": "its holders",
    }


def test_the_page_is_written_without_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(DOCS / "settings.py")], check=True)
