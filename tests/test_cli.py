from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from da_leukemia import cli
from da_leukemia.errors import DataError
from da_leukemia.sweep import attempt, conduct, ledger

EXPERIMENT = """
name: trial
data:
  domains: {scope: {}, phone: {}}
methods: [fair, dann]
twins: []
adaptations:
  fair: {}
  dann: {components: [{name: adversarial}]}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trial.yaml"
    path.write_text(EXPERIMENT)
    for device in ("scope", "phone"):
        (tmp_path / "data" / device).mkdir(parents=True)
    return str(path)


@pytest.fixture
def trained(monkeypatch):
    """Jobs that end at once, and the folders in which they ran."""
    folders = []

    def worker(folder: Path) -> None:
        job = conduct_job(folder)
        tests = {name: {"metrics": {"ap50": 0.75, "per_class": {}}} for name in job.tests}
        ledger.write_json(folder / "result.json", {"job": job.hash, "tests": tests})
        folders.append(folder)

    monkeypatch.setattr(attempt, "resolve", lambda name: worker)
    monkeypatch.setattr(conduct, "check_data", lambda experiment, jobs: None)
    return folders


def conduct_job(folder: Path):
    from da_leukemia.config import load_job

    return load_job(folder / "config.yaml")


def call(*arguments: str) -> tuple[int, list[str]]:
    """Run a command in a process of its own; return its code and the heavy modules it loaded."""
    script = (
        "import sys\n"
        "from da_leukemia.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'lightning', 'timm', 'kornia', 'wandb'} & set(sys.modules)\n"
        "print(repr((code or 0, sorted(heavy))), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    code, heavy = eval(done.stderr.splitlines()[-1])
    return code, heavy


def test_help_comes_at_once():
    begin = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "da_leukemia", "--help"], check=True, stdout=subprocess.DEVNULL
    )
    assert time.monotonic() - begin < 2.0  # 0.05 s alone; generous on a busy machine


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_plan_and_status_import_nothing_heavy(file, verb):
    assert call("sweep", verb, file) == (0, [])
    assert call("sweep", verb, file, "--json") == (0, [])


def test_help_and_wrong_commands_import_nothing_heavy():
    assert call("--help") == (0, [])
    assert call("sweep", "run", "no_such_file.yaml") == (2, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["swep"], "unknown 'swep'; did you mean 'sweep'?"),
        (["sweep", "stauts"], "unknown 'stauts'; did you mean 'status'?"),
        (["sweep", "plan", "x.yaml", "--josn"], "'--josn'; did you mean '--json'?"),
        (["data", "check", "x", "--js"], "unknown argument '--js'"),
        (["data", "check", "x", "--label-spac", "wbc"], "did you mean '--label-space'?"),
        ([], "required: COMMAND"),
        (["sweep", "run"], "required: EXPERIMENT"),
    ],
)
def test_a_misspelt_command_is_answered_with_the_nearest(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["seed=[1]"], "seed: unknown key; did you mean 'seeds'?"),
        (["trainer.stepps=3"], "trainer.stepps: unknown key; did you mean 'steps'?"),
        (["seeds"], "expected key=value"),
        (["tracking=wandbb"], "unknown value 'wandbb'; did you mean 'wandb'?"),
        (["sources=[scoop]"], "unknown device 'scoop'; did you mean 'scope'?"),
        (["methods=[fiar]"], "unknown 'fiar'"),
        (["name=../elsewhere"], "cannot be the name of a folder"),
    ],
)
def test_wrong_settings_are_said_without_a_traceback(file, settings, said, capsys):
    assert cli.main(["sweep", "plan", file, *settings]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")


def test_all_wrong_settings_are_said_at_once(file, capsys):
    assert cli.main(["sweep", "plan", file, "trainr.steps=1", "data.rot=x"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_plan_without_its_data_is_shown_and_refused_as_the_run_will_be(file, capsys):
    (Path(file).parent / "data" / "phone").rmdir()
    assert cli.main(["sweep", "plan", file]) == 2
    said = capsys.readouterr()
    assert "4 jobs" in said.out
    assert "data/phone: no such folder; correct data.domains.phone.root" in said.err
    assert cli.main(["sweep", "plan", file, "data.root=nowhere"]) == 2
    plan = capsys.readouterr()
    assert cli.main(["sweep", "run", file, "data.root=nowhere"]) == 2
    assert plan.err == capsys.readouterr().err
    assert plan.err.startswith("error: data.root: nowhere: no such folder")
    assert cli.main(["sweep", "plan", file, "data.root=nowhere", "data.simulate.patients=2"]) == 0


def test_settings_may_follow_an_option(file, capsys):
    assert cli.main(["sweep", "plan", file, "--json", "seeds=[0,1,2]"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["waiting"] == 12


def test_a_sweep_can_be_looked_at_by_its_folder(file, capsys, trained):
    assert cli.main(["train", file, "method=fair", "source=scope"]) == 0
    from da_leukemia.config import load_experiment
    from da_leukemia.sweep.plan import make_plan

    experiment = load_experiment(file)
    ledger.write_plan(experiment, [(job, job.hash) for job in make_plan(experiment)])
    capsys.readouterr()
    assert cli.main(["sweep", "status", "runs/trial"]) == 0
    assert "1 done, 3 waiting" in capsys.readouterr().out


def test_what_is_no_sweep_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    assert cli.main(["sweep", "status", "runs/empt"]) == 2
    assert "runs/empt: no such folder; did you mean" in capsys.readouterr().err
    assert cli.main(["sweep", "status", "runs/empty"]) == 2
    assert "runs/empty: holds no experiment.yaml, so it is no sweep" in capsys.readouterr().err


def test_an_experiment_without_its_ending_is_suggested(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "plan", "quickstart"]) == 2
    assert "did you mean 'quickstart.yaml'?" in capsys.readouterr().err


def test_the_command_line_is_blamed_for_what_was_typed_there(file, capsys):
    Path(file).write_text(f"{EXPERIMENT}trainer: {{batch_size: 0}}\n")
    assert cli.main(["sweep", "plan", file, "trainer.step=3", "trainer.steps=0"]) == 2
    err = capsys.readouterr().err
    assert "command line: trainer.step: unknown key" in err
    assert cli.main(["sweep", "plan", file, "trainer.steps=0"]) == 2
    err = capsys.readouterr().err
    assert "command line: trainer.steps: expected at least 1, got 0" in err
    assert f"{file}: trainer.batch_size: expected at least 1, got 0" in err
    assert cli.main(["sweep", "plan", file, "augmentation=default"]) == 2
    assert f"{file}: trainer.batch_size" in capsys.readouterr().err
    Path(file).write_text(f"{EXPERIMENT}augmentation: {{flips: 1}}\n")
    assert cli.main(["sweep", "plan", file, "augmentation=default"]) == 2
    assert f"{file}: augmentation.flips: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (["--shard", "5/4"], "--shard: expected i/n with 1 <= i <= n, e.g. 2/8, got '5/4'"),
        (["--job", "abcd"], "abcd"),
    ],
)
def test_a_part_that_is_none_is_said_before_anything_is_rendered(
    file, capsys, monkeypatch, part, said
):
    monkeypatch.setattr(conduct, "render", lambda experiment: pytest.fail("it was rendered"))
    assert cli.main(["sweep", "run", file, *part]) == 2
    assert said in capsys.readouterr().err


def test_a_report_without_results_says_what_to_do(file, capsys):
    assert cli.main(["sweep", "report", file]) == 2
    assert "no job is done yet" in capsys.readouterr().err


def test_run_passes_on_what_is_wrong_with_the_data(file, capsys, monkeypatch):
    def render(experiment: object) -> None:
        raise DataError(["phone: no image", "scope: no label"])

    monkeypatch.setattr(conduct, "render", render)
    assert cli.main(["sweep", "run", file]) == 2
    err = capsys.readouterr().err
    assert "error: phone: no image" in err
    assert "error: scope: no label" in err


def test_train_runs_one_job_in_the_folder_of_the_sweep(file, capsys, trained):
    arguments = ["train", file, "method=dann", "source=scope", "target=phone", "seed=4"]
    assert cli.main(arguments) == 0
    assert "0.750" in capsys.readouterr().out
    (folder,) = trained
    job = conduct_job(folder)
    assert (job.method_name, job.source, job.target, job.seed) == ("dann", "scope", "phone", 4)
    assert folder == Path("runs/trial/jobs") / job.hash
    assert cli.main(arguments) == 0
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (["source=scope"], "fair scope s0"),
        (["method=fair", "target=phone", "source=scope"], "take no target"),
        (["method=dann", "source=scope", "target=scope"], "leave none besides the source"),
        (["source=scoop"], "did you mean 'scope'"),
    ],
)
def test_train_asks_for_what_it_cannot_choose(file, capsys, trained, choice, said):
    assert cli.main(["train", file, *choice]) == 2
    assert said in capsys.readouterr().err
    assert not trained


def test_a_job_that_fails_in_train_leaves_its_reason(file, capsys, trained, monkeypatch):
    def worker(folder: Path) -> None:
        raise DataError("phone: no field to train on")

    monkeypatch.setattr(attempt, "resolve", lambda name: worker)
    assert cli.main(["train", file, "method=fair", "source=phone"]) == 2
    (error,) = Path("runs").glob("trial/jobs/*/error.txt")
    assert error.read_text() == "phone: no field to train on\n"


def test_evaluate_wants_a_job_folder(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "no job's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("patiens=3", "patiens: unknown key; did you mean 'patients'?"),
        ("patients=many", "patients: expected a whole number, got 'many'"),
        ("domains=3", "domains: expected [NAME, ...], got '3'"),
        ("domains=[H_100X_C3]", "unknown domain 'H_100X_C3'"),
        ("patients=0", "must be at least 1"),
        ("patients", "expected key=value"),
    ],
)
def test_simulate_checks_its_settings(tmp_path, capsys, setting, said):
    assert cli.main(["simulate", str(tmp_path / "out"), setting]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_check_wants_a_known_label_space_and_a_folder(tmp_path, capsys):
    assert cli.main(["data", "check", str(tmp_path), "--label-space", "wcb"]) == 2
    assert "did you mean 'wbc'?" in capsys.readouterr().err
    (tmp_path / "scope").mkdir()
    assert cli.main(["data", "check", str(tmp_path / "scoep")]) == 2
    assert "no such folder; did you mean '" + str(tmp_path / "scope") in capsys.readouterr().err
    assert cli.main(["data", "check", str(tmp_path / "none" / "scope")]) == 2
    assert capsys.readouterr().err.endswith("no such folder\n")


def test_simulated_data_pass_the_check(tmp_path, capsys):
    out = str(tmp_path / "smears")
    settings = ["domains=H_100X_C1", "patients=3", "fields_per_patient=1", "workers=1"]
    assert cli.main(["simulate", out, *settings]) == 0
    assert cli.main(["data", "check", out, "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["exit_code"] == 0


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("da-leukemia ")


def test_calibrate_leaves_numbers_and_a_picture_that_no_reader_takes_for_a_field(tmp_path, capsys):
    from PIL import Image

    from da_leukemia.calibration.fields import find_images
    from da_leukemia.calibration.truths import drawn

    folder = tmp_path / "camera"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(drawn(40, seed=seed)).save(folder / f"{seed}.png")
    assert cli.main(["calibrate", str(folder)]) == 0
    assert f"{folder / 'calibration.json'}, {folder / 'calibration.pdf'}" in capsys.readouterr().out
    assert (folder / "calibration.pdf").read_bytes().startswith(b"%PDF")
    assert len(find_images(folder)) == 4
    (folder / "calibration.pdf").unlink()
    assert cli.main(["calibrate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["red_cell_px"]["width"] == pytest.approx(40, rel=0.1)
    assert not (folder / "calibration.pdf").exists()
    assert cli.main(["calibrate", str(folder), "--picture", str(tmp_path / "x.words")]) == 2
    assert "--picture: cannot write" in capsys.readouterr().err
