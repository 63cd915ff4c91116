from __future__ import annotations

import collections
import json
import os
import signal
import textwrap
import time
from pathlib import Path

import pytest
from runner_kit import small_sweep, start_runner, until
from test_sweep_plan import experiment, result

from da_leukemia.config import Experiment, Trainer
from da_leukemia.errors import UserError
from da_leukemia.sweep import attempt, conduct, ledger, local, server
from da_leukemia.sweep.attempt import attempt as run_attempt
from da_leukemia.sweep.plan import make_plan, unique

TRIAL = "trial_worker:run_job"

WORKER = textwrap.dedent(
    """
    import json, os, signal, time
    from pathlib import Path
    from da_leukemia.config import load_job
    from da_leukemia.sweep.ledger import write_json

    def note(folder, what):
        with (folder.parent / "journal.txt").open("a") as journal:
            journal.write(f"{what} {folder.name} {os.getpid()}\\n")

    def run_job(folder):
        job = load_job(folder / "config.yaml")
        note(folder, "begins")
        print("says", job.method_name, os.environ.get("CUDA_VISIBLE_DEVICES"))
        os.system("echo a child says so too")
        if job.seed == 13:
            raise ValueError("loss is not finite")
        if job.seed == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.seed == 7:
            return
        if job.seed == 28:
            raise RuntimeError("write failed") from OSError(28, "No space left on device")
        time.sleep(job.trainer.clip)
        tests = {name: {"metrics": {"ap50": job.seed / 10}} for name in job.tests}
        content = {"job": job.hash, "tests": tests, "source": job.source, "seed": job.seed}
        write_json(folder / "result.json", content)
        note(folder, "ends")
    """
)

RUNNER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from da_leukemia.config import load_experiment
    from da_leukemia.sweep import conduct, local

    if __name__ == "__main__":
        conduct.check_data = print
        local.POLL = 0.05
        conduct.report = lambda experiment: None
        sys.exit(conduct.run_sweep(load_experiment(sys.argv[1]), sys.argv[2]))
    """
)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with a worker and a runner, importable here and in processes."""
    (tmp_path / "trial_worker.py").write_text(WORKER)
    (tmp_path / "runner.py").write_text(RUNNER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "POLL", 0.05)
    return tmp_path


def one_source(folder: Path, seeds: list[int], seconds: float = 0.0) -> Experiment:
    return small_sweep(folder, seeds, Trainer(clip=seconds, accelerator="cpu"))


def execute(made: Experiment, places: int = 2) -> dict[str, str]:
    jobs = unique(make_plan(made))
    context = server.start_server(TRIAL)
    return local.execute(jobs, made.folder, [{}] * places, context, TRIAL)


def journal(made: Experiment) -> collections.Counter[str]:
    path = made.folder / "jobs" / "journal.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return collections.Counter(" ".join(line.split()[:2]) for line in lines)


def pids(made: Experiment) -> list[int]:
    return [int(x.split()[2]) for x in (made.folder / "jobs/journal.txt").read_text().splitlines()]


def begun(made: Experiment) -> int:
    return sum(n for what, n in journal(made).items() if what.startswith("begins"))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_what_is_done_is_skipped_and_what_is_new_is_run(lab):
    made = one_source(lab, [0, 1])
    assert execute(made) == {}
    assert begun(made) == 2
    assert execute(made) == {}
    assert begun(made) == 2
    assert execute(one_source(lab, [0, 1, 2])) == {}
    assert begun(made) == 3


def test_all_output_of_a_job_goes_into_its_log(lab, capfd):
    made = one_source(lab, [0])
    execute(made)
    (log,) = made.folder.glob("jobs/*/log.txt")
    assert "says fair" in log.read_text()
    assert "a child says so too" in log.read_text()
    assert "says" not in capfd.readouterr().out


def test_a_half_written_result_is_made_again(lab):
    made = one_source(lab, [0])
    job = make_plan(made)[0]
    folder = ledger.job_folder(made.folder, job.hash)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"job": "')
    assert execute(made) == {}
    assert json.loads((folder / "result.json").read_text())["job"] == job.hash


def test_a_new_test_device_runs_the_job_again_with_all_tests(lab):
    made = one_source(lab, [0])
    made.tests = ["scope"]
    execute(made)
    made.tests = ["scope", "phone"]
    execute(made)
    (file,) = made.folder.glob("jobs/*/result.json")
    assert set(json.loads(file.read_text())["tests"]) == {"scope", "phone"}


def test_failed_jobs_do_not_stop_the_others_and_say_why(lab, capsys, monkeypatch):
    monkeypatch.setattr(conduct, "check_data", print)
    monkeypatch.setattr(conduct, "report", lambda made: print("the report"))
    made = one_source(lab, [13, 9, 7, 28, 0])
    code = conduct.run_sweep(made, worker=TRIAL)
    out, err = capsys.readouterr()
    assert code == 1
    assert journal(made)[f"ends {make_plan(made)[-1].hash}"] == 1
    assert "the report" in out
    assert "| ValueError: loss is not finite" in err
    assert "killed by signal 9 (out of memory?)" in err
    assert "ended without a whole result.json" in err
    assert "4 of 5 jobs failed" in err
    for job in make_plan(made)[:4]:
        assert str(ledger.job_folder(made.folder, job.hash) / "log.txt") in err


def test_a_new_attempt_forgets_the_failure(lab, monkeypatch):
    made = one_source(lab, [13])
    assert list(execute(made)) == [make_plan(made)[0].hash]
    (error,) = made.folder.glob("jobs/*/error.txt")
    assert "loss is not finite" in error.read_text()
    job = make_plan(made)[0]

    def mended(folder: Path) -> None:
        assert not error.exists()
        ledger.write_json(folder / "result.json", result(job.hash, job.tests))

    monkeypatch.setattr(attempt, "resolve", lambda worker: mended)
    run_attempt(made.folder, job)
    assert ledger.examine(made.folder, job).state == "done"


def test_kill_9_leaves_no_orphan_and_the_next_run_ends_the_same(lab):
    whole = one_source(lab / "whole", [0, 1, 2])
    execute(whole, places=3)
    slow = one_source(lab, [0, 1, 2], seconds=30.0)
    slow.processes = 2
    one = start_runner(slow, TRIAL)
    until(lambda: begun(slow) == 2)
    os.kill(one.pid, signal.SIGKILL)
    one.wait()
    until(lambda: not any(alive(pid) for pid in pids(slow)), seconds=5)
    assert not list(slow.folder.glob("jobs/*/result.json"))
    # The kernel may drop the lock a moment after the process is gone.
    jobs = make_plan(slow)
    until(lambda: {ledger.examine(slow.folder, job).state for job in jobs} == {"waiting"})
    (lab / "trial_worker.py").write_text(WORKER.replace("time.sleep", "(lambda seconds: None)"))
    again = start_runner(slow, TRIAL)
    assert again.wait() == 0
    found = ledger.collect(slow.folder, make_plan(slow))
    wanted = ledger.collect(whole.folder, make_plan(whole))
    assert [(r["seed"], r["tests"]) for r in found] == [(r["seed"], r["tests"]) for r in wanted]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_jobs_and_says_how_to_go_on(lab, signum):
    made = one_source(lab, [0, 1, 2], seconds=30.0)
    made.processes = 2
    one = start_runner(made, TRIAL)
    until(lambda: begun(made) == 2)
    one.send_signal(signum)
    _, err = one.communicate(timeout=20)
    assert one.returncode == 130
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert not any(alive(pid) for pid in pids(made))
    assert {ledger.examine(made.folder, job).state for job in make_plan(made)} == {"waiting"}


def test_two_runners_never_run_a_job_twice(lab):
    made = one_source(lab, list(range(100, 106)), seconds=0.15)
    made.processes = 2
    both = [start_runner(made, TRIAL), start_runner(made, TRIAL)]
    assert [one.wait() for one in both] == [0, 0]
    assert len(journal(made)) == 12
    assert set(journal(made).values()) == {1}


def test_a_runner_takes_over_from_one_that_was_killed(lab):
    made = one_source(lab, [0], seconds=2.0)
    first = start_runner(made, TRIAL)
    until(lambda: begun(made) == 1)
    second = start_runner(made, TRIAL)
    time.sleep(0.5)
    assert begun(made) == 1
    first.kill()
    first.wait()
    assert second.wait(timeout=20) == 0
    assert begun(made) == 2


def test_the_worker_is_imported_once_for_all_jobs(lab):
    note = "open(__file__ + '.imported', 'a').write('x')\n"
    (lab / "heavy_worker.py").write_text(note + WORKER)
    made = one_source(lab, list(range(100, 106)))
    made.processes = 1
    assert start_runner(made, "heavy_worker:run_job").wait() == 0
    assert (lab / "heavy_worker.py.imported").read_text() == "x"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise RuntimeError('operator does not exist')", "operator does not exist"),
        ("", "no attribute 'run_job'"),
    ],
)
def test_a_worker_that_cannot_be_imported_is_said_once(lab, code, said):
    (lab / "broken_worker.py").write_text(code)
    made = one_source(lab, [0])
    one = start_runner(made, "broken_worker:run_job")
    _, err = one.communicate(timeout=20)
    assert one.returncode == 1
    assert said in err
    assert "cannot be loaded" in err
    assert begun(made) == 0


def test_what_is_wrong_with_the_data_is_said_before_any_job(lab, monkeypatch):
    made = one_source(lab, [0])
    made.data.root = str(lab / "nowhere")
    (lab / "data_check.py").write_text(
        "from da_leukemia.errors import DataError\n"
        "def check(experiment, jobs):\n    raise DataError([experiment.name, 'no image'])\n"
    )
    import data_check

    monkeypatch.setattr(conduct, "check_data", data_check.check)
    with pytest.raises(UserError, match="trial\nno image"):
        conduct.run_sweep(made, TRIAL)
    assert begun(made) == 0


def test_gpus_are_found_without_torch_and_shared_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab")
    made = experiment(tmp_path)
    assert local.slots(made) == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-ab"},
    ]
    made.processes = 3
    assert [s["CUDA_VISIBLE_DEVICES"] for s in local.slots(made)] == ["3", "GPU-ab", "3"]
    made.trainer.accelerator = "cpu"
    assert local.slots(made) == [{"CUDA_VISIBLE_DEVICES": ""}] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.gpus() == []


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n", ["0", "1"]),
        ("GPU 0: H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-a)\n", ["MIG-a"]),
    ],
)
def test_nvidia_smi_is_asked(tmp_path, monkeypatch, listing, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '%s' '{listing}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert local.gpus() == found


def test_jobs_share_the_cores_by_their_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "gpus", list)
    monkeypatch.setattr(local, "cpus", lambda: 4)
    made = experiment(tmp_path, trainer=Trainer(threads=2))
    assert local.slots(made) == [{}, {}]
    made.trainer.threads = 16
    assert local.slots(made) == [{}]


def test_a_job_taken_by_another_process_is_not_run_here(lab):
    made = one_source(lab, [0])
    job = make_plan(made)[0]
    with (
        ledger.hold(ledger.job_folder(made.folder, job.hash)),
        pytest.raises(attempt.Busy),
    ):
        run_attempt(made.folder, job, TRIAL)


def test_errors_that_a_user_can_put_right_are_told_without_a_traceback():
    assert attempt.last_lines(UserError("no field to train on")) == "no field to train on"
