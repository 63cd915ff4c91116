"""Every file that is shipped, and every command and setting that the README shows, is used here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from da_leukemia.cli import main
from da_leukemia.config import load_experiment, load_method, shipped
from da_leukemia.sweep.plan import make_plan

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
METHODS = sorted((ROOT / "configs" / "adaptation").glob("*.yaml"))
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_shipped_experiment_makes_a_plan(path):
    assert make_plan(load_experiment(path))


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_every_shipped_method_loads_and_says_where_it_comes_from(path):
    load_method(path.stem)
    assert path.read_text().startswith("# "), "a method's file opens with its source"


def test_smoke_budget_can_be_chosen_by_name():
    experiment = load_experiment(shipped("experiments") / "quickstart.yaml", ["trainer=smoke"])
    assert experiment.trainer.steps < 20


def test_default_augmentation_file_is_the_schema_default():
    from da_leukemia.config import Augmentation

    chosen = load_experiment(EXPERIMENTS[0], ["augmentation=default"]).augmentation
    default = Augmentation()
    for name in ("brightness", "contrast", "saturation", "hue", "blur"):
        assert getattr(chosen, name) == getattr(default, name)


def test_readme_experiment_is_a_valid_one(tmp_path):
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", README, re.S) if "domains" in b)
    path = tmp_path / "my_two_cameras.yaml"
    path.write_text(block)
    plan = make_plan(load_experiment(path))
    # Two cameras, the phone test-only: one adapted method and its two twins, each with and without
    # calibration, and the plain twin; three seeds.
    assert len(plan) == 3 * (2 + 2 + 2 + 1)


def test_every_command_of_the_readme_exists(capsys):
    words = {tuple(m.split()) for m in re.findall(r"da-leukemia ((?:sweep |data )?[a-z]+)", README)}
    assert len(words) >= 6
    for command in words:
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0, command
    capsys.readouterr()


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_python_example_of_the_docs_compiles_and_finds_what_it_imports():
    text = (ROOT / "docs" / "python.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        tree = ast.parse(block)
        imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "docs/python.md", "exec"), {})
