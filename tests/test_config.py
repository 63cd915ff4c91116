from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from da_leukemia.adaptation.settings import Method
from da_leukemia.cli.parser import from_home, load
from da_leukemia.config import (
    Data,
    Domain,
    Experiment,
    complete,
    load_experiment,
    load_method,
    save_experiment,
)
from da_leukemia.errors import ConfigError

SMALL = "data: {domains: {scope: {}, phone: {labels: test_only}}}\n"


def written(folder, text: str, name: str = "trial.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return caught.value.problems


def test_defaults_follow_from_the_devices(tmp_path):
    made = load_experiment(written(tmp_path, SMALL))
    assert made.sources == ["scope"]
    assert made.tests == ["scope", "phone"]
    assert made.targets == ["scope", "phone"]


def test_an_experiment_made_in_python_is_completed_alike(tmp_path):
    made = Experiment(data=Data(domains={"scope": Domain(), "phone": Domain(labels="test_only")}))
    complete(made)
    assert asdict(made) == asdict(load_experiment(written(tmp_path, SMALL)))
    before = asdict(made)
    complete(made)
    assert asdict(made) == before


def test_a_home_is_written_out_wherever_a_path_can_stand(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = SMALL.replace("scope: {}", "scope: {root: ~/scope}")
    made = load_experiment(written(tmp_path, text), ["data.root=~/data", "data.cache_dir=a~/b"])
    assert made.data.root == str(tmp_path / "data")
    assert made.data.cache_dir == "a~/b"
    assert made.data.domains["scope"].root == str(tmp_path / "scope")
    path = from_home("~/trial.yaml")
    assert path == tmp_path / "trial.yaml"
    assert load("~/trial.yaml", []).sources == ["scope"]
    assert from_home("~backup/x") == Path("~backup/x")
    more = written(tmp_path, "extends: ~/trial.yaml\nname: more\n", "more.yaml")
    assert load_experiment(more).data.domains.keys() == {"scope", "phone"}


def test_a_saved_experiment_comes_back_without_other_files(tmp_path):
    made = load_experiment(written(tmp_path, SMALL), ["methods=[fair_source_only,dann]"])
    (tmp_path / "alone").mkdir()
    save_experiment(made, tmp_path / "alone" / "saved.yaml")
    assert load_experiment(tmp_path / "alone" / "saved.yaml") == made


def test_later_files_and_overrides_win(tmp_path):
    written(tmp_path, "trainer: {steps: 5, batch_size: 2}\n", "base.yaml")
    path = written(tmp_path, f"extends: base.yaml\ntrainer: {{steps: 6}}\n{SMALL}")
    made = load_experiment(path, ["trainer.batch_size=3"])
    assert (made.trainer.steps, made.trainer.batch_size) == (6, 3)


def test_a_group_override_merges_a_preset(tmp_path):
    written(tmp_path, "trainer: {steps: 3}\n", "configs/trainer/tiny.yaml")
    path = written(tmp_path, SMALL, "experiments/trial.yaml")
    assert load_experiment(path, ["trainer=tiny"]).trainer.steps == 3
    assert load_experiment(path, ["trainer=tiny", "trainer.steps=4"]).trainer.steps == 4
    (problem,) = problems(path, "trainer=tinny")
    assert "did you mean 'tiny'?" in problem


def test_every_problem_is_told_at_once(tmp_path):
    text = "data: {domains: {scope: {formt: coco}}, image_sise: 3}\ntrainer: {steps: many}\n"
    found = "\n".join(problems(written(tmp_path, text)))
    assert "data.domains.scope.formt: unknown key; did you mean 'format'?" in found
    assert "data.image_sise: unknown key; did you mean 'image_size'?" in found
    assert "trainer.steps: expected int, got 'many'" in found


@pytest.mark.parametrize("name", ["a/b", "..", "../x", "."])
def test_a_device_whose_name_is_no_file_name_is_refused(tmp_path, name):
    text = f"data: {{domains: {{'{name}': {{}}, other: {{}}}}}}\n"
    (why,) = problems(written(tmp_path, text))
    assert why.endswith(
        f"data.domains.{name}: a device's name is that of a file, too; it cannot hold '/'"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "expected `key: value` lines"),
        ("data: [", "not valid YAML"),
        ("data:\n\troot: x\n", "indent with spaces, not tabs"),
        ("just words", "trial.yaml"),
        ("extends: [{a: 1}]\n" + SMALL, "extends: expected a file or a list of files"),
        ("extends: missing.yaml\n" + SMALL, "no such file"),
        ("extends: trial.yaml\n" + SMALL, "extends itself"),
        ("", "data.domains: empty"),
        ("data: 3\n", "data: expected a section"),
        ("data: null\n", "data: expected a section"),
        ("data: {domains: [scope]}\n", "data.domains: expected names with settings"),
        ("data: {domains: {scope: 3}}\n", "data.domains.scope: expected a section"),
        ("data: {root: '${nothing}'}\n", "nothing"),
        (SMALL + "seeds: []\n", "seeds: empty"),
        (SMALL + "seeds: 3\n", "seeds: expected list[int], got 3; for one value write seeds=[3]"),
        (SMALL + "sparse: 0.2\n", "got 0.2; for one value write sparse=[0.2]"),
        (SMALL + "sparse: [20%, 1, 0.5 %]\n", "; write 0.2, 0.005"),
        (SMALL + "sources: [phone]\n", "test_only, it cannot be trained on"),
        (SMALL + "processes: 0\n", "processes: expected at least 1"),
        (SMALL + "name: ''\n", "cannot be the name of a folder"),
        (SMALL + "name: a/b\n", "cannot be the name of a folder"),
        (SMALL + "trainer: {steps: 0}\n", "trainer.steps: expected at least 1"),
        (SMALL + "detector: {strides: []}\n", "detector.strides"),
        (SMALL + "detector: {strides: [0, 8]}\n", "detector.strides"),
        (SMALL + "methods: [m]\nadaptations: {m: {components: [{nam: x}]}}\n", "component"),
        (
            SMALL + "methods: [m]\nadaptations: {m: {components: [{name: fourrier}]}}\n",
            "did you mean 'fourier'?",
        ),
        (
            SMALL + "methods: [m]\nadaptations: {m: {components: [{name: fourier, beta: 1}]}}\n",
            "beta: unknown key",
        ),
        (
            SMALL + "methods: [m]\nadaptations: {m: {augmentation: weekly}}\n",
            "unknown value 'weekly'",
        ),
    ],
)
def test_wrong_files_are_told_and_never_crash(tmp_path, text, said):
    assert said in "\n".join(problems(written(tmp_path, text)))


def test_an_empty_extends_is_none(tmp_path):
    assert load_experiment(written(tmp_path, "extends:\n" + SMALL)).sources == ["scope"]


def test_settings_without_a_value_take_their_defaults(tmp_path):
    text = "data: {domains: {scope: }}\nmethods: [m]\nadaptations: {m: }\n"
    assert load_experiment(written(tmp_path, text)).adaptations["m"].components == []


def test_an_entry_without_components_changes_the_shipped_method_of_its_name(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(
        "data: {domains: {a: {}, b: {}}}\nmethods: [few_shot, dann, own]\n"
        "adaptations:\n  dann: {components: []}\n  own: {ema: false}\n"
    )
    made = load_experiment(path, ["adaptations.few_shot.target_labels=3"])
    shipped_one = load_method("few_shot")
    assert made.adaptations["few_shot"].components == shipped_one.components != []
    assert made.adaptations["few_shot"].target_labels == 3 != shipped_one.target_labels
    assert made.adaptations["dann"].components == []  # said to be so
    assert made.adaptations["own"] == Method(ema=False)
    save_experiment(made, tmp_path / "again.yaml")
    assert load_experiment(tmp_path / "again.yaml").adaptations == made.adaptations
