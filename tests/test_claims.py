"""No job is trained twice, whatever dies, sleeps or comes back; also where locks do not work."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from runner_kit import until
from test_sweep_local import RUNNER, WORKER, alive, begun, journal, one_source, pids

from da_leukemia.config import save_experiment
from da_leukemia.errors import UserError
from da_leukemia.sweep import attempt, claims, ledger, local, server
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.plan import make_plan, unique

HOST = textwrap.dedent(
    """
    import errno, fcntl, os
    from da_leukemia.sweep import claims

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "no locks on this share")

    fcntl.flock = no_locks
    claims.machine = lambda: os.environ["TRIAL_HOST"]
    claims.BEAT = 0.15
    """
)


@pytest.fixture
def lab(tmp_path):
    """A folder with a worker and a runner for hosts that share no kernel and no locks."""
    (tmp_path / "host.py").write_text(HOST)
    (tmp_path / "trial_worker.py").write_text("import host\n" + WORKER)
    (tmp_path / "runner.py").write_text(RUNNER.replace("import sys\n", "import sys, host\n"))
    return tmp_path


def runner(made, host: str) -> subprocess.Popen[str]:
    file = Path(made.runs_dir) / "trial.yaml"
    if not file.exists():
        save_experiment(made, file)
    environment = os.environ | {"PYTHONPATH": f"{made.runs_dir}:{os.environ['PYTHONPATH']}"}
    return subprocess.Popen(
        [sys.executable, Path(made.runs_dir) / "runner.py", str(file), "trial_worker:run_job"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TRIAL_HOST": host},
    )


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def elsewhere(folder: Path, monkeypatch) -> claims.Held:
    """Claim a job from another machine."""
    (folder / claims.FOLDER).mkdir(parents=True, exist_ok=True)
    held = claims.Held(folder, claims.read(folder).number + 1)
    with monkeypatch.context() as patched:
        patched.setattr(claims, "machine", lambda: "another")
        assert held.take()
    return held


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    time = [1000.0]
    monkeypatch.setattr(claims, "now", lambda: time[0])

    def wait(seconds: float) -> None:
        time[0] += seconds

    return wait


def test_numbers_of_claims_only_rise_and_one_file_is_left(tmp_path):
    for number in (1, 2, 3):
        with claims.hold(tmp_path) as held:
            assert held
            assert claims.read(tmp_path).number == number
            assert not claims.read(tmp_path).released
        assert claims.read(tmp_path).released
        assert [f.name for f in (tmp_path / "claims").iterdir()] == [f"{number:06d}"]


def test_of_many_that_reach_for_one_number_one_gets_it(tmp_path):
    (tmp_path / "claims").mkdir()
    got, start = [], threading.Barrier(8)

    def reach() -> None:
        start.wait()
        got.append(claims.Held(tmp_path, 7).take())

    threads = [threading.Thread(target=reach) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_who_is_killed_while_claiming_leaves_nothing_behind_that_others_wait_for(
    tmp_path, monkeypatch
):
    def killed(*paths):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(SystemExit), claims.hold(tmp_path):
            pass
    assert claims.holder(tmp_path) is None
    with claims.hold(tmp_path) as mine:
        assert mine
        (file,) = (tmp_path / claims.FOLDER).iterdir()
        assert claims.read(tmp_path).owner
        assert file.name == "000001"


def test_where_there_are_no_hard_links_a_claim_is_exclusive_too(tmp_path, monkeypatch):
    def none(*paths):
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", none)
    (tmp_path / claims.FOLDER).mkdir()
    one, other = claims.Held(tmp_path, 3), claims.Held(tmp_path, 3)
    assert [one.take(), other.take()] == [True, False]
    assert claims.read(tmp_path).owner
    assert [f.name for f in (tmp_path / claims.FOLDER).iterdir()] == ["000003"]


def test_a_claim_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path):
    with claims.hold(tmp_path):
        pass
    path = tmp_path / "claims/000001"
    path.write_text(path.read_text().replace('"released": true', '"released": false'))
    assert claims.holder(tmp_path) is None
    with claims.hold(tmp_path) as held:
        assert held


@pytest.mark.parametrize("what", ["machine", "device"])
def test_a_claim_of_another_machine_or_mount_is_not(tmp_path, what):
    with claims.hold(tmp_path):
        pass
    path = tmp_path / "claims/000001"
    content = json.loads(path.read_text()) | {"released": False, what: 12345}
    path.write_text(json.dumps(content))
    assert claims.holder(tmp_path).number == 1
    with claims.hold(tmp_path) as held:
        assert not held


def test_a_claim_that_cannot_be_read_counts_until_it_was_silent_for_long(tmp_path, clock):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/000004").write_text("")
    assert claims.holder(tmp_path).number == 4
    watch = claims.Watch()
    assert [clock(claims.BEAT) or watch.dead(tmp_path) for _ in range(7)] == [None] * 6 + [4]


def test_a_dead_claim_is_taken_over_after_missed_beats_whatever_the_clocks_say(
    tmp_path, clock, monkeypatch
):
    elsewhere(tmp_path, monkeypatch)
    watch = claims.Watch()
    for look in range(claims.MISSED):
        day = 86400 * (-1) ** look
        os.utime(tmp_path / "claims/000001", (1e9 + day, 1e9 + day))
        assert watch.dead(tmp_path) is None
        assert watch.dead(tmp_path) is None  # too early to count
        clock(claims.BEAT)
    assert watch.dead(tmp_path) == 1
    with claims.hold(tmp_path, over=2) as held:
        assert not held  # it is another claim that was found dead
    with claims.hold(tmp_path, over=1) as held:
        assert held


def test_an_observer_that_slept_has_looked_once(tmp_path, clock, monkeypatch):
    elsewhere(tmp_path, monkeypatch)
    watch = claims.Watch()
    assert watch.dead(tmp_path) is None
    clock(3600)
    assert watch.dead(tmp_path) is None


def test_a_claim_that_beats_is_never_dead(tmp_path, clock, monkeypatch):
    held = elsewhere(tmp_path, monkeypatch)
    watch = claims.Watch()
    for _ in range(3 * claims.MISSED):
        assert watch.dead(tmp_path) is None
        clock(claims.BEAT)
        held.beat()


def test_a_stopped_process_of_this_machine_keeps_its_lock(tmp_path, clock, monkeypatch):
    with claims.hold(tmp_path):
        watch = claims.Watch()
        path = tmp_path / "claims/000001"
        path.write_text(path.read_text().replace(claims.machine(), "another"))
        for _ in range(2 * claims.MISSED):
            assert watch.dead(tmp_path) is None
            clock(claims.BEAT)


def test_who_comes_back_after_a_takeover_writes_nothing(tmp_path, clock, monkeypatch):
    folder = tmp_path / "job"
    with claims.hold(folder):
        ledger.write_json(folder / "result.json", "mine")
        other = elsewhere(folder, monkeypatch)
        with monkeypatch.context() as patched:
            patched.setattr(claims.Held, "beat", lambda self: pytest.fail("asked without need"))
            ledger.write_json(folder / "result.json", "mine")  # it has beaten a moment ago
        clock(2 * claims.BEAT + 1)
        before = (folder / "claims/000002").read_text()
        for path in (folder / "result.json", folder / "samples/x.json"):
            with pytest.raises(claims.LostClaim):
                ledger.write_json(path, "stolen")
    assert json.loads((folder / "result.json").read_text()) == "mine"
    assert (folder / "claims/000002").read_text() == before
    assert not (folder / "claims/000001").exists()  # not made again by its release
    other.beat()


@pytest.mark.parametrize("way", ["fails", "writes"])
def test_an_attempt_that_lost_its_job_leaves_no_verdict(tmp_path, clock, monkeypatch, way):
    job = make_plan(one_source(tmp_path, [0]))[0]

    def worker(folder: Path) -> None:
        elsewhere(folder, monkeypatch)
        clock(100)
        if way == "fails":
            raise ValueError("loss is not finite")
        ledger.write_json(folder / "result.json", {"job": job.hash, "tests": {}})

    monkeypatch.setattr(attempt, "resolve", lambda name: worker)
    with pytest.raises(attempt.Busy):
        attempt.attempt(tmp_path, job)
    left = {f.name for f in ledger.job_folder(tmp_path, job.hash).iterdir()}
    assert left == {"job.lock", "claims", "config.yaml"}


def test_a_heart_that_stops_being_heard_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.02)
    lost = threading.Event()
    with claims.hold(tmp_path, on_loss=lost.set):
        elsewhere(tmp_path, monkeypatch)
        assert lost.wait(5)


def test_a_share_without_locks_is_claimed_by_files(tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claims.hold(tmp_path) as first, claims.hold(tmp_path) as second:
        assert first
        assert not second


def test_the_status_says_where_a_job_runs_and_how_long_it_was_silent(tmp_path, monkeypatch):
    job = make_plan(one_source(tmp_path, [0]))[0]
    folder = ledger.job_folder(tmp_path, job.hash)
    elsewhere(folder, monkeypatch)
    standing = ledger.examine(tmp_path, job)
    assert standing.state is State.RUNNING
    assert standing.note.startswith("on ")
    os.utime(folder / "claims/000001", (1e9, 1e9))
    assert "no sign of life for" in ledger.examine(tmp_path, job).note


def test_train_takes_over_a_dead_claim_and_leaves_a_live_one(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    job = make_plan(one_source(tmp_path, [0]))[0]
    folder = ledger.job_folder(tmp_path, job.hash)

    def worker(at: Path) -> None:
        tests = {name: {"metrics": {}} for name in job.tests}
        ledger.write_json(at / "result.json", {"job": job.hash, "tests": tests})

    monkeypatch.setattr(attempt, "resolve", lambda name: worker)
    held = elsewhere(folder, monkeypatch)
    held.start()
    with pytest.raises(attempt.Busy):
        attempt.insist(tmp_path, job)
    held._end.set()  # and is never released
    assert attempt.insist(tmp_path, job)["job"] == job.hash


# --- two hosts -------------------------------------------------------------------------------


def test_two_hosts_without_locks_never_run_a_job_twice(lab):
    made = one_source(lab, list(range(100, 112)), seconds=0.1)
    made.processes = 2
    both = [runner(made, host) for host in ("one", "two")]
    assert [one.wait(60) for one in both] == [0, 0]
    assert len(journal(made)) == 24
    assert set(journal(made).values()) == {1}


def test_a_host_that_died_is_replaced(lab):
    made = one_source(lab, [0], seconds=2.0)
    first = runner(made, "one")
    until(lambda: begun(made) == 1)
    second = runner(made, "two")
    first.kill()
    assert second.wait(30) == 0
    assert begun(made) == 2


def test_a_host_that_was_paused_comes_back_and_stops(lab):
    made = one_source(lab, [0], seconds=3.0)
    first = runner(made, "one")
    until(lambda: begun(made) == 1)
    (job,) = pids(made)
    os.kill(job, signal.SIGSTOP)
    second = runner(made, "two")
    until(lambda: begun(made) == 2, 30)
    os.kill(job, signal.SIGCONT)
    until(lambda: not alive(job), 5)  # before its three seconds of work are over
    assert second.wait(30) == 0
    assert first.wait(30) == 0
    assert journal(made)[f"ends {make_plan(made)[0].hash}"] == 1
    (lines,) = [
        x for x in (made.folder / "jobs/journal.txt").read_text().split("\n") if "ends" in x
    ]
    assert int(lines.split()[2]) != job
    assert not list(made.folder.glob("jobs/*/error.txt"))


# --- what is lost ----------------------------------------------------------------------------


def test_a_lost_folder_is_noticed(tmp_path):
    sweep = tmp_path / "sweep"
    home = ledger.Home(sweep)
    home.check()
    sweep.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="was lost during the run"):
        home.check()
    sweep.mkdir()
    with pytest.raises(UserError, match="was lost during the run"):
        home.check()


@pytest.mark.parametrize("lost", ["disk", "folder"])
def test_a_run_stops_at_a_full_disk_or_a_lost_folder_and_keeps_what_is_done(
    tmp_path, monkeypatch, lost
):
    """The jobs meet the full disk by themselves; that it is full is then found by the runner."""
    (tmp_path / "lost_worker.py").write_text(
        WORKER.replace(
            "if job.seed == 28:",
            "if job.seed == 29:\n"
            "        raise OSError(28, 'No space left on device')\n"
            "    if job.seed == 30:\n"
            "        folder.parent.parent.rename(folder.parent.parent.parent / 'moved')\n"
            "        time.sleep(30)\n"
            "    if job.seed == 28:",
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    made = one_source(tmp_path, [0, 29 if lost == "disk" else 30, 1, 2])
    jobs = unique(make_plan(made))
    monkeypatch.setattr(local, "POLL", 0.05)
    context = server.start_server("lost_worker:run_job")

    def full(**arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if lost == "disk":
        monkeypatch.setattr(ledger.tempfile, "TemporaryFile", full)
    said = "disk full: cannot write" if lost == "disk" else "was lost during the run"
    with pytest.raises(UserError, match=said):
        local.execute(jobs, made.folder, [{}], context, "lost_worker:run_job")
    sweep = made.folder if lost == "disk" else tmp_path / "moved"
    states = [ledger.examine(sweep, job, h).state.value for h, job in jobs.items()]
    assert states[0] == "done"
    assert states[2:] == ["waiting", "waiting"]  # were not tried
    assert lost == "disk" or not made.folder.exists()  # and nothing was begun in its place
