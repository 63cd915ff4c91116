"""What was logged offline can be read back, and no server can stop or delay a run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_matrix_support import DEVICES, make_sweep, write_samples

from da_leukemia.errors import UserError
from da_leukemia.report import write_report
from da_leukemia.sweep.plan import make_plan
from da_leukemia.tracking import connection, wandb_run
from da_leukemia.tracking.export import export_sweep

BLOCK = 32768


def messages(path):
    """Read the protobuf records of a ``.wandb`` file: LevelDB log blocks after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    at, whole = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def read_run(folder):
    """Wait for a run to be whole and return its history, summary, name, group and artifacts."""
    (path,) = folder.glob("run-*.wandb")
    for _ in range(100):
        try:
            found = list(messages(path))
            if found and found[-1].WhichOneof("record_type") == "exit":
                break
        except Exception:
            found = []
        time.sleep(0.05)
    kinds = {}
    for record in found:
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)

    def items(pieces):
        return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in pieces}

    return {
        "run": kinds["run"][0].run,
        "history": [items(r.history.item) for r in kinds.get("history", [])],
        "summary": {k: v for r in kinds["summary"] for k, v in items(r.summary.update).items()},
        "artifacts": [r.artifact for r in kinds.get("artifact", [])],
        "exit": kinds["exit"][0].exit.exit_code,
    }


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("DATA_DIR", "CACHE_DIR", "ARTIFACT_DIR", "SILENT"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # so that what the code sets is undone
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(connection, "_warned", set())


@pytest.fixture
def sweep(tmp_path):
    chosen = {"devices": DEVICES[:2], "methods": ["fair_source_only", "dann"], "seeds": [0]}
    return make_sweep(tmp_path, records=False, **chosen)


def offline_runs(experiment):
    return sorted((experiment.folder / "wandb" / "wandb").glob("offline-run-*"))


def test_an_offline_run_is_read_back(sweep, capfd):
    experiment, _ = sweep
    job = next(j for j in make_plan(experiment) if j.target)
    write_samples(experiment, job)
    folder = experiment.folder / "jobs" / job.hash
    run = wandb_run.start_job(job, folder)
    assert run.offline
    for step in (0, 10):
        run.log({"train/loss": 1.0 / (step + 1), "train/nothing": float("nan")}, step)
    run.log_samples(sorted((folder / "samples").glob("*.json")))
    run.finish({"low_cost": {"ap50": 0.75, "attribute_f1": None}})
    assert not run.active
    run.log({"late": 1.0}, 20)  # after the end: silently nothing

    (where,) = offline_runs(experiment)
    read = read_run(where)
    assert (read["run"].run_id, read["run"].run_group) == (job.hash, "synthetic")
    assert read["run"].display_name == "dann microscope->low_cost s0"
    assert [(h["_step"], h["train/loss"]) for h in read["history"]] == [
        (0, 1.0),
        (10, pytest.approx(1 / 11)),
    ]
    assert "train/nothing" not in read["history"][0]
    assert read["summary"]["low_cost/ap50"] == 0.75
    assert read["exit"] == 0
    assert len(list((where / "files" / "media" / "images" / "samples").glob("*.png"))) == 2
    output = capfd.readouterr()
    assert output.out + output.err == ""


def test_recorded_epochs_are_logged_over_their_own_steps(sweep):
    """They are judged after training, when the step of the run can no longer go back."""
    experiment, _ = sweep
    job = make_plan(experiment)[0]
    run = wandb_run.start_job(job, experiment.folder / "jobs" / job.hash)
    run.log({"train/loss": 0.5}, 20)
    run.log_epochs(
        [
            {"epoch": e, "step": 10 * e, "tests": {"phone": 0.1 * e}, "source_validation": None}
            for e in (1, 2)
        ]
    )
    run.log_epochs([])
    run.finish()
    (where,) = offline_runs(experiment)
    history = [h for h in read_run(where)["history"] if "epochs/step" in h]
    assert [(h["epochs/step"], h["epochs/tests/phone"]) for h in history] == [(10, 0.1), (20, 0.2)]


def test_the_matrix_is_logged_as_table_picture_and_page(sweep, capsys):
    experiment, results = sweep
    report = write_report(experiment, results, experiment.folder / "report").parent
    wandb_run.log_summary(experiment, report)
    (where,) = offline_runs(experiment)
    read = read_run(where)
    assert read["run"].run_id == "synthetic-summary"
    assert read["history"][0]["matrix/ncols"] == 10
    (table,) = (where / "files" / "media" / "table").glob("*.json")
    rows = (report / "matrix.csv").read_text().splitlines()
    assert len(json.loads(table.read_text())["data"]) == len(rows) - 1
    assert list((where / "files" / "media" / "images").glob("matrix_picture*.png"))
    assert "synthetic-report" in {a.name for a in read["artifacts"]}
    staged = [Path(c.local_path) for a in read["artifacts"] for c in a.manifest.contents]
    assert all(experiment.folder.resolve() in path.parents for path in staged)
    assert f"wandb sync {experiment.folder}/wandb/wandb/offline-run-*" in capsys.readouterr().out


@pytest.fixture
def finished(sweep):
    """A sweep with a result, two epochs, samples and weights in each job's folder."""
    experiment, results = sweep
    for job, result in zip(make_plan(experiment), results, strict=True):
        write_samples(experiment, job)
        folder = experiment.folder / "jobs" / job.hash
        (folder / "metrics.csv").write_text("step,train/loss,val/ap50\n10,0.5,\n20,0.25,0.6\n")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        (folder / "result.json").write_text(json.dumps(result))
    write_report(experiment, results, experiment.folder / "report")
    return experiment


def test_a_finished_sweep_is_exported_once(finished):
    jobs = make_plan(finished)
    (finished.folder / "jobs" / jobs[-1].hash / "result.json").unlink()
    first = export_sweep(finished)
    assert (first.logged, first.tracked, first.unfinished) == (len(jobs) - 1, 0, 1)
    job = jobs[0]
    (where,) = [f for f in offline_runs(finished) if f.name.endswith(f"-{job.hash}")]
    read = read_run(where)
    losses = [(h["_step"], h["train/loss"]) for h in read["history"] if "train/loss" in h]
    assert losses == [(10, 0.5), (20, 0.25)]
    assert "val/ap50" not in read["history"][0]
    assert read["summary"][f"{job.tests[0]}/ap50"] == pytest.approx(
        json.loads((finished.folder / "jobs" / job.hash / "result.json").read_text())["tests"][
            job.tests[0]
        ]["metrics"]["ap50"]
    )
    assert list((where / "files" / "media" / "images" / "samples").glob("*.png"))
    assert read["artifacts"] == []  # weights are sent on request only
    runs = len(offline_runs(finished))
    second = export_sweep(finished)
    assert (second.logged, second.tracked, second.unfinished) == (0, len(jobs) - 1, 1)
    assert len(offline_runs(finished)) == runs + 1  # the summary alone
    assert export_sweep(finished, again=True).logged == len(jobs) - 1


def test_weights_are_an_artifact_on_request(finished):
    finished.tracking_checkpoints = True
    export_sweep(finished)
    job = make_plan(finished)[0]
    (where,) = [f for f in offline_runs(finished) if f.name.endswith(f"-{job.hash}")]
    (artifact,) = read_run(where)["artifacts"]
    assert artifact.type == "model"
    assert job.hash in artifact.name
    assert [c.path for c in artifact.manifest.contents] == ["last.ckpt"]


def test_an_export_with_other_settings_than_the_sweeps_is_said(finished):
    finished.trainer.steps += 1  # no job of this plan was run
    with pytest.raises(UserError, match="run with other settings"):
        export_sweep(finished)
    assert offline_runs(finished) == []


def test_an_export_needs_a_report_and_a_tracker(sweep, finished, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(UserError, match="disabled"):
        export_sweep(finished)
    (finished.folder / "report" / "index.html").unlink()
    with pytest.raises(UserError, match="sweep report"):
        export_sweep(finished)


FULL_DISK = """
import resource, sys
from pathlib import Path
from da_leukemia.sweep.plan import make_plan
from da_leukemia.tracking.wandb_run import start_job
from test_matrix_support import make_experiment
experiment = make_experiment(Path(sys.argv[1]), seeds=[0])
job = make_plan(experiment)[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # wandb's service inherits it
run = start_job(job, experiment.folder / "jobs" / job.hash)
for step in range(3000):
    run.log({f"loss/{k}": step / 7 for k in range(10)}, step)
run.finish({"ap50": 0.5})
print("trained")
"""


def test_a_disk_that_fills_up_neither_stops_nor_fails_a_job(tmp_path):
    """No file may grow beyond 40 kB: what a full disk looks like to those who write."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    (written,) = tmp_path.rglob("run-*.wandb")
    assert 30_000 < written.stat().st_size <= 40_000  # it did fill up


PROGRAM = """
import sys
from pathlib import Path
from da_leukemia.sweep.plan import make_plan
from da_leukemia.tracking.wandb_run import start_job
from test_matrix_support import make_experiment
experiment = make_experiment(Path(sys.argv[1]), seeds=[0])
job = make_plan(experiment)[0]
run = start_job(job, experiment.folder / "jobs" / job.hash)
run.log({"loss": 0.5}, 1)
run.finish({"ap50": 0.5})
print("offline" if run.offline else "online")
"""


def track_in_a_process(server, experiment):
    """Track a run in a process of its own, as the worker does; return what it printed."""
    here = Path(__file__).parent
    settings = {"WANDB_BASE_URL": server, "WANDB_API_KEY": "a" * 40}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(experiment.folder.parent.parent)],
        env={**os.environ, **settings, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "offline\n"), done.stderr
    assert time.monotonic() - start < 20
    (where,) = [f for f in offline_runs(experiment) if list(f.glob("run-*.wandb"))]
    assert read_run(where)["history"][0]["loss"] == 0.5
    return done.stderr


def test_an_unreachable_server_neither_stops_nor_delays(sweep):
    told = track_in_a_process("http://127.0.0.1:9", sweep[0])
    assert told.count("does not answer; tracking offline") == 1


def test_a_server_that_refuses_the_key_leaves_an_offline_run(sweep):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self):
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = track_in_a_process(f"http://127.0.0.1:{server.server_port}", sweep[0])
        server.shutdown()
    assert told.count("online tracking failed") == 1
    assert "Failed to export" not in told


def test_a_server_that_accepts_and_says_nothing_is_unreachable(monkeypatch):
    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(2)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(connection, "PATIENCE_S", 0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start = time.monotonic()
        with pytest.warns(UserWarning, match="does not answer"):
            assert not connection.is_reachable(f"http://127.0.0.1:{server.server_port}")
        assert time.monotonic() - start < 2
        server.shutdown()


def test_credentials_are_found_where_wandb_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert not connection.has_credentials()
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert connection.has_credentials()
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password secret\n")
    assert not connection.has_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert connection.has_credentials()


def test_disabled_means_nothing_is_written(sweep, monkeypatch):
    experiment, _ = sweep
    monkeypatch.setenv("WANDB_MODE", "disabled")
    job = make_plan(experiment)[0]
    assert wandb_run.start_job(job, experiment.folder / "jobs" / job.hash) is None
    assert not (experiment.folder / "wandb").exists()


def test_an_error_inside_wandb_ends_the_tracking_and_not_the_run(monkeypatch):
    class Broken:
        def log(self, *_, **__):
            raise RuntimeError("no luck")

    run = wandb_run.TrackedRun(Broken(), offline=True)
    with pytest.warns(UserWarning, match="no luck"):
        run.log({"loss": 1.0}, 0)
    assert not run.active
    run.log({"loss": 1.0}, 1)
    run.finish({"ap50": 1.0})


def test_a_folder_that_cannot_be_written_ends_the_tracking(sweep):
    experiment, _ = sweep
    (experiment.folder).mkdir(parents=True, exist_ok=True)
    (experiment.folder / "wandb").write_text("a file in the way")
    job = make_plan(experiment)[0]
    with pytest.warns(UserWarning, match="no tracking"):
        assert wandb_run.start_job(job, experiment.folder / "jobs" / job.hash) is None
