"""The defects of the release are in the tree as often as it says, and the check finds each."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from da_leukemia.data.check import CheckReport, check
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.errors import ConfigError
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.simulate import simulate

FIRST, LAST, ZIPPED, EMPTY = "H_100X_C2", "L_40X_C1", "L_100X_C2", "L_10X_C1"
HARMLESS = ("lower_case_images", "class_name_variants")
SETTINGS = {"domains": [FIRST, ZIPPED, EMPTY, LAST], "patients": 4, "fields_per_patient": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("sim") / "a", defects=True, **SETTINGS)


@pytest.fixture(scope="module")
def report(tree: Path) -> CheckReport:
    return check(tree)


def _truth(tree: Path) -> dict[str, dict[str, int]]:
    return json.loads((tree / "simulation.json").read_text())["truth"]["defects"]


def test_every_defect_is_somewhere(tree: Path):
    kinds = {kind for counts in _truth(tree).values() for kind, count in counts.items() if count}
    assert kinds == {
        "repeated_image",
        "missing_image",
        "duplicate_box",
        "empty_box",
        "box_with_two_classes",
        "lower_case_images",
        "class_name_variants",
        "attribute_out_of_range",
        "patient_leak",
        "empty_domain",
        "zipped_labels",
        "unreadable_image",
    }


def test_the_check_finds_each_defect_as_often_as_it_is_there_and_nothing_else(
    tree: Path, report: CheckReport
):
    truth = _truth(tree)
    found = {d.domain: {f.kind: f.count for f in d.findings} for d in report.domains}
    found["all"] = {f.kind: f.count for f in report.findings}
    for counts in truth.values():
        for kind in HARMLESS:
            counts.pop(kind, None)
        if "attribute_out_of_range" in counts:  # such a value is also a missing one
            counts["attribute_missing"] = counts["attribute_out_of_range"]
    assert found == truth
    assert report.exit_code == 1


def test_the_text_files_have_the_same_false_labels(tree: Path):
    for domain in (FIRST, LAST):
        text = DomainSource(domain, tree, labels="txt_labels/AttriDet")
        index = read_domain(text, "leukemiaattri", LEUKEMIAATTRI)
        found = {f.kind: f.count for f in index.findings}
        for kind in ("missing_image", "duplicate_box", "empty_box", "box_with_two_classes"):
            assert found[kind] == _truth(tree)[domain][kind]
        assert found["attribute_out_of_range"] == _truth(tree)[domain]["attribute_out_of_range"]


def test_other_spellings_lose_no_cell(tree: Path, tmp_path: Path):
    # Variant class names and the lower-case folder: what is left is what was there before.
    sound = simulate(tmp_path / "b", **SETTINGS)
    read = [
        read_domain(DomainSource(FIRST, root), "leukemiaattri", LEUKEMIAATTRI)
        for root in (tree, sound)
    ]
    before = {f.key: f for f in read[1]}
    damaged = {f.key: f for f in read[0]}
    assert set(damaged) <= set(before)
    extra = 0
    for key, field in damaged.items():
        expected = set(zip(map(tuple, before[key].boxes), before[key].labels, strict=True))
        got = set(zip(map(tuple, field.boxes), field.labels, strict=True))
        assert expected <= got
        extra += len(got - expected)
    assert extra == _truth(tree)[FIRST]["box_with_two_classes"]
    assert (tree / FIRST / "images").is_dir()


def test_the_zipped_labels_are_the_labels(tree: Path, tmp_path: Path):
    with zipfile.ZipFile(tree / ZIPPED / "labels.zip") as archive:
        archive.extractall(tree / ZIPPED)
    try:
        index = read_domain(DomainSource(ZIPPED, tree), "leukemiaattri", LEUKEMIAATTRI)
        assert index.findings == ()
        assert len(index) == 12
        assert all(len(f.boxes) for f in index)
    finally:
        for name in ("json_labels", "txt_labels"):
            for path in sorted((tree / ZIPPED / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (tree / ZIPPED / name).rmdir()


def test_the_same_settings_give_the_same_defects_and_a_second_run_changes_nothing(
    tree: Path, tmp_path: Path
):
    def contents(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    before = contents(tree)
    assert contents(simulate(tmp_path / "b", defects=True, **SETTINGS)) == before
    simulate(tree, defects=True, **SETTINGS)
    assert contents(tree) == before
    with pytest.raises(ConfigError, match="other settings"):
        simulate(tree, **SETTINGS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"domains": [FIRST, EMPTY]}, "two domains besides L_10X_C1"),
        ({"patients": 2}, "patients of 3 or more"),
        ({"fields_per_patient": 1}, "fields_per_patient of 3 or more"),
        ({"sparse": 0.2}, "leave out sparse"),
    ],
)
def test_what_cannot_hold_the_defects_is_refused(tmp_path: Path, changed: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        simulate(tmp_path / "a", defects=True, **(SETTINGS | changed))
    assert not (tmp_path / "a").exists()
