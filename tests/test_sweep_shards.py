"""Shards, emitted commands, and sweeps whose settings changed under an old name."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import pytest
from test_sweep_plan import DANN, FAIR, experiment, result

from da_leukemia import cli
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Trainer, save_experiment
from da_leukemia.errors import UserError
from da_leukemia.sweep import conduct, emit, ledger, settled
from da_leukemia.sweep.index import Index
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.plan import make_plan, unique
from da_leukemia.sweep.shards import named, shard
from da_leukemia.sweep.status import survey

ALONE = Method("weak")


def done(made, job) -> None:
    content = result(job.hash, job.tests)
    ledger.write_json(ledger.job_folder(made.folder, job.hash) / "result.json", content)


def entries(made):
    return [(job, job.hash) for job in make_plan(made)]


# --- parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_shards_are_a_division_into_equal_parts_of_each_kind(tmp_path, parts):
    jobs = unique(make_plan(experiment(tmp_path, seeds=list(range(5)))))
    shards = [shard(jobs, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert sorted(h for part in shards for h in part) == sorted(jobs)
    for adapted in (False, True):
        sizes = [sum((j.target is not None) == adapted for j in part.values()) for part in shards]
        assert max(sizes) - min(sizes) <= 1


def test_a_shard_depends_on_the_hashes_alone_and_keeps_the_order_of_the_plan(tmp_path):
    jobs = unique(make_plan(experiment(tmp_path, seeds=list(range(5)))))
    turned = dict(reversed(jobs.items()))
    assert set(shard(jobs, "2/3")) == set(shard(turned, "2/3"))
    mine = list(shard(jobs, "2/3"))
    assert mine == [h for h in jobs if h in mine]


@pytest.mark.parametrize("which", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(tmp_path, which):
    with pytest.raises(UserError, match="--shard: expected i/n"):
        shard(unique(make_plan(experiment(tmp_path))), which)


def test_jobs_are_named_by_the_first_characters_of_their_hash(tmp_path):
    jobs = unique(make_plan(experiment(tmp_path)))
    wanted = list(jobs)[2]
    assert list(named(jobs, [wanted[:10]])) == [wanted]
    with pytest.raises(UserError, match="'' fits several jobs"):
        named(jobs, [""])
    with pytest.raises(UserError, match="'zzz' is no job of this plan"):
        named(jobs, ["zzz"])


def test_a_part_runs_its_jobs_and_writes_no_report(tmp_path, monkeypatch, capsys):
    made = experiment(tmp_path)
    save_experiment(made, tmp_path / "x.yaml")
    ran = []

    class Executor:
        def about(self, left):
            return ""

        def run(self, jobs, sweep, worker):
            ran.extend(jobs)
            return {}

    monkeypatch.setattr(conduct, "choose", lambda experiment: Executor())
    monkeypatch.setattr(conduct, "check_data", lambda *a: None)
    monkeypatch.setattr(conduct, "report", lambda made: pytest.fail("a report of a part"))
    monkeypatch.setattr(conduct, "start_server", lambda *a: None)
    monkeypatch.setattr(conduct, "call", lambda *a: None)
    jobs = unique(make_plan(made))
    assert cli.main(["sweep", "run", str(tmp_path / "x.yaml"), "--shard", "2/4"]) == 0
    assert set(ran) == set(shard(jobs, "2/4"))
    ran.clear()
    assert cli.main(["sweep", "run", str(tmp_path / "x.yaml"), "--job", list(jobs)[1]]) == 0
    assert ran == [list(jobs)[1]]
    assert "sweep report" in capsys.readouterr().err


def test_commands_name_each_job_that_is_left_once(tmp_path):
    made = experiment(tmp_path, sources=["scope"])
    jobs = unique(make_plan(made))
    first, *left = jobs
    done(made, jobs[first])
    lines = emit.commands(made, "my file.yaml", ["seeds=[0]"]).splitlines()
    words = [shlex.split(line) for line in lines]
    assert [w[-1] for w in words] == left
    assert words[0][:5] == ["da-leukemia", "sweep", "run", "my file.yaml", "seeds=[0]"]
    assert "executor=local" in words[0]


def test_a_script_for_sbatch_asks_for_what_is_set_and_is_valid_shell(tmp_path):
    made = experiment(tmp_path, seeds=[0, 1, 2])
    made.slurm.partition, made.slurm.gpus, made.slurm.jobs_per_task = "gpu", 1, 4
    made.slurm.setup = ["module load python"]
    script = emit.sbatch(made, "x.yaml", [])
    left = len(unique(make_plan(made)))
    tasks = -(-left // 4)
    assert f"#SBATCH --array=1-{tasks}%{tasks}" in script
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert "--account" not in script
    assert script.index("module load") < script.index("da-leukemia sweep run")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# --- what was there before -------------------------------------------------------------------


def test_changed_settings_under_an_old_name_stop_and_name_what_changed(tmp_path):
    made = experiment(tmp_path)
    ledger.write_plan(made, entries(made))
    before = (made.folder / "plan.json").read_bytes()
    changed = experiment(tmp_path, trainer=Trainer(steps=77))
    settled.check(changed, entries(changed))  # nothing is done yet, nothing can be lost
    done(made, make_plan(made)[0])
    with pytest.raises(UserError, match=r"1 finished job was .*\n  trainer\.steps: 2000 -> 77\n"):
        settled.check(changed, entries(changed))
    with pytest.raises(UserError, match="changed_settings=accept"):
        conduct.run_sweep(changed)
    assert (made.folder / "plan.json").read_bytes() == before
    changed.changed_settings = "accept"
    settled.check(changed, entries(changed))
    left = settled.keep_old_plan(changed, entries(changed))
    assert left.startswith(
        "1 finished job of the plan before left the matrix (fair: scope, seed 0)"
    )
    assert json.loads((made.folder / "plan.1.json").read_text()) == json.loads(before)


@pytest.mark.parametrize(("before", "now"), [(DANN, ALONE), (ALONE, DANN)])
def test_a_method_that_is_adapted_no_longer_or_now_does_not_leave_the_matrix_unsaid(
    tmp_path, before, now
):
    made, changed = (
        experiment(tmp_path, seeds=[0, 1], adaptations={"dann": m, "fair": FAIR})
        for m in (before, now)
    )
    ledger.write_plan(made, entries(made))
    lost = [job for job in make_plan(made) if job.method_name == "dann"]
    settled.check(changed, entries(changed))  # nothing is done yet, nothing can be lost
    for job in make_plan(made):
        done(made, job)
    first = f"(dann: scope{' -> cheap' if lost[0].target else ''}, seed 0; "
    with pytest.raises(UserError) as refused:
        settled.check(changed, entries(changed))
    said = str(refused.value)
    assert f": {len(lost)} finished jobs were trained with other settings" in said
    assert first in said
    assert "  adaptations.dann.components: " in said
    changed.changed_settings = "accept"
    settled.check(changed, entries(changed))
    left = settled.keep_old_plan(changed, entries(changed))
    assert left.startswith(f"{len(lost)} finished jobs of the plan before left the matrix {first}")
    assert left.endswith(
        f"nothing is deleted: they stay in {made.folder / 'jobs'}, listed in plan.1.json"
    )
    ledger.write_plan(changed, entries(changed))
    assert settled.keep_old_plan(changed, entries(changed)) == "", "it is said once"


@pytest.mark.parametrize(
    "settings",
    [
        *({"seeds": [0, 1]}, {"methods": ["fair"]}, {"tests": ["scope"]}, {"processes": 7}),
        *({"methods": ["dann"]}, {"sources": ["scope"]}, {"targets": ["phone"]}),
    ],
)
def test_a_plan_that_grows_or_shrinks_is_no_changed_setting(tmp_path, settings):
    made = experiment(tmp_path)
    ledger.write_plan(made, entries(made))
    for job in make_plan(made):
        done(made, job)
    other = experiment(tmp_path, **settings)
    settled.check(other, entries(other))
    settled.keep_old_plan(other, entries(other))
    assert not (made.folder / "plan.1.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"version": 9, "entries": [], "experiment": {}}', "format 9"), ('{"ver', "can be read")],
)
def test_a_folder_of_another_version_is_left_alone(tmp_path, content, said):
    made = experiment(tmp_path)
    made.folder.mkdir()
    (made.folder / "plan.json").write_text(content)
    with pytest.raises(UserError, match=said):
        conduct.run_sweep(made)
    assert [f.name for f in made.folder.iterdir()] == ["plan.json"]
    assert (made.folder / "plan.json").read_text() == content


def test_a_result_of_another_version_is_neither_used_nor_replaced(tmp_path):
    made = experiment(tmp_path)
    job = make_plan(made)[0]
    path = ledger.job_folder(made.folder, job.hash) / "result.json"
    ledger.write_json(path, result(job.hash, job.tests) | {"version": 99})
    with pytest.raises(UserError, match=r"result\.json: written in format 99"):
        survey(made)


# --- the index -------------------------------------------------------------------------------


def test_a_result_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    made = experiment(tmp_path)
    job = make_plan(made)[0]
    done(made, job)
    survey(made)
    read = []
    original = ledger.read_result
    monkeypatch.setattr(ledger, "read_result", lambda *a: read.append(a) or original(*a))
    assert survey(made)[1][job.hash].state is State.DONE
    assert not read
    folder = ledger.job_folder(made.folder, job.hash)
    (folder / "result.json").write_text('{"job": "')
    assert survey(made)[1][job.hash].state is State.WAITING
    assert "half-written" in survey(made)[1][job.hash].note
    (folder / "result.json").unlink()
    assert survey(made)[1][job.hash].state is State.WAITING


def test_the_index_sees_a_change_that_keeps_size_and_times(tmp_path):
    """Times can be set back, as copying tools do; the inode's own cannot."""
    made = experiment(tmp_path)
    job = make_plan(made)[0]
    done(made, job)
    path = ledger.job_folder(made.folder, job.hash) / "result.json"
    survey(made)
    assert survey(made)[1][job.hash].state is State.DONE
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace(job.hash, job.hash[::-1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert "is of job" in survey(made)[1][job.hash].note


def test_the_index_knows_which_tests_are_missing_and_may_be_lost(tmp_path):
    made = experiment(tmp_path, tests=["scope"])
    job = make_plan(made)[0]
    done(made, job)
    survey(made)
    more = experiment(tmp_path, tests=["scope", "phone"])
    note = survey(more)[1][job.hash].note
    assert note == "still to be tested on phone"
    (made.folder / "index.json").write_text("{ cut off")
    assert Index(made.folder).examine(job.hash, ["scope"]).state is State.DONE
