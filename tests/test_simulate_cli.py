"""``da-leukemia simulate``: variants of the simulated tree from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from da_leukemia import cli

TWO = "domains=[H_100X_C2,L_40X_C1]"


def _made(out: Path) -> dict:
    return json.loads((out / "simulation.json").read_text())


def test_the_command_writes_the_plain_tree_as_before(tmp_path: Path):
    out = tmp_path / "a"
    settings = [TWO, "patients=1", "fields_per_patient=1", "seed=3", "workers=1"]
    assert cli.main(["simulate", str(out), *settings]) == 0
    assert _made(out) == {
        "domains": ["H_100X_C2", "L_40X_C1"],
        "patients": 1,
        "fields_per_patient": 1,
        "seed": 3,
        "simulator_version": 5,
    }


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (["--sparse", TWO], 0.2),
        (["--sparse", "0.3", TWO], 0.3),
        ([TWO, "--sparse"], 0.2),
        (["--patch-order", "x1x2y1y2", TWO, "--sparse=0.25"], 0.25),
    ],
)
def test_sparse_may_stand_anywhere_with_or_without_its_share(
    tmp_path: Path, words: list[str], share: float
):
    out = tmp_path / "a"
    rest = ["patients=1", "fields_per_patient=1", "workers=1"]
    assert cli.main(["simulate", str(out), *words, *rest]) == 0
    assert _made(out)["sparse"] == share
    assert _made(out)["domains"] == ["H_100X_C2", "L_40X_C1"]
    assert (_made(out)["patch_order"] == "x1x2y1y2") == ("--patch-order" in words)


def test_defects_and_mixed_devices(tmp_path: Path):
    out = tmp_path / "a"
    mixed = "H_100X_C2~blur+noise~L_100X_C2"
    settings = [f"domains=[H_100X_C2,{mixed}]", "patients=3", "fields_per_patient=3", "workers=1"]
    assert cli.main(["simulate", str(out), "--defects", *settings]) == 0
    assert sorted(_made(out)["truth"]["defects"]) == ["H_100X_C2", mixed, "all"]
    assert cli.main(["data", "check", str(out)]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sparse=0.2"], "sparse: unknown key; write --sparse"),
        (["patch_order=x1x2y1y2"], "patch_order: unknown key; write --patch-order"),
        (["--sparse", "much"], "--sparse: expected a share such as 0.2, got 'much'"),
        (["--sparse", "2"], "up to 1"),
        (["--sparse", "--patch-order", "x1y2x2y1"], "did you mean 'x1y1x2y2'?"),
        (["--defects", "patients=1"], "patients of 3 or more"),
        (["--defects", "domains=L_100X_C2"], "name two domains"),
        (["--defects", "--sparse"], "leave out sparse"),
        (["domains=[H_100X_C2~blurr~L_100X_C2]"], "unknown factor 'blurr'; did you mean 'blur'?"),
        (["domains=[H_100X_C2~noise+blur~L_100X_C2]"], "write H_100X_C2~blur+noise~L_100X_C2"),
    ],
)
def test_wrong_usage_is_answered_with_the_right_one(tmp_path: Path, capsys, words, said):
    assert cli.main(["simulate", str(tmp_path / "a"), *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_is_answered_with_the_nearest(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["simulate", str(tmp_path / "a"), "--defect"])
    assert end.value.code == 2
    assert "did you mean '--defects'?" in capsys.readouterr().err
