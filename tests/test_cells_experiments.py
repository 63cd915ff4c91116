"""The shipped experiments on single cells run on drawn ones, and on cells cut out of fields."""

from __future__ import annotations

import csv

import pytest
from cells_jobs_kit import scores_of
from cells_kit import five_types, picture, put

from da_leukemia.config import load_experiment, save_job, shipped
from da_leukemia.data.preflight import preflight
from da_leukemia.labels import LINEAGE, MATEK19, MLL23
from da_leukemia.report import write_report
from da_leukemia.sweep import worker
from da_leukemia.sweep.ledger import collect
from da_leukemia.sweep.plan import make_plan


def simulated(experiment_name, root):
    """Write drawn cells in the folders that a shipped experiment asks for."""
    if experiment_name == "mll23":
        for k, name in enumerate(MLL23.classes):
            for n in range(4):
                put(root / "MLL23" / name / name / f"{n}.tif", picture(10 * k + n))
        for k, (code, _) in enumerate(MATEK19.aliases):
            for n in range(4):
                path = root / "AML-Cytomorphology_LMU" / code.upper() / f"{code}_{n}.tiff"
                put(path, picture(9000 + 10 * k + n))
    else:
        for n, part in enumerate(("Raabin/Train", "Raabin/TestA", "Raabin/TestB", "LISC", "BCCD")):
            five_types(root / part, cells=6, seed=10_000 * n, light=1 - 0.1 * n)
    return root


@pytest.mark.parametrize("name", ["mll23", "wbc_domain_shift"])
def test_shipped_experiments_run_on_simulated_cells(name, tmp_path):
    root = simulated(name, tmp_path / "data")
    small = ["detector.backbone=mobilenetv3_small_050", "detector.pretrained=false"]
    small += ["detector.norm=batch", "data.image_size=32", "trainer=smoke", "trainer.workers=0"]
    small += [] if name != "mll23" else ["data.split.test=0.5"]
    small += ["seeds=[0]", f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}"]
    small += ["trainer.accelerator=cpu", "data.image_cache=memory", f"runs_dir={tmp_path}"]
    experiment = load_experiment(shipped("experiments") / f"{name}.yaml", small)
    preflight(experiment)
    job = make_plan(experiment)[0]
    folder = tmp_path / name / "jobs" / job.hash
    folder.mkdir(parents=True)
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    scores = scores_of(folder)
    assert list(scores) == experiment.tests
    assert all(s["balanced_accuracy"] is not None for s in scores.values())
    if name == "mll23":
        assert len(scores["MLL23"]["per_class"]) == 18
        assert scores["matek"]["open_set_cells"] > 0
    else:  # all that lie in test folders, and all of what is tested on alone
        assert [s["fields"] for s in scores.values()] == [30, 30, 30, 30]
        write_report(experiment, collect(experiment.folder, [job]), tmp_path / "report")
        rows = list(csv.DictReader((tmp_path / "report" / "published.csv").open()))
        lisc = next(r for r in rows if (r["test"], r["system"]) == ("lisc", "vit"))
        assert float(lisc["value"]) == 69.77
        ours = next(r for r in rows if (r["test"], r["system"]) == ("lisc", job.method_name))
        assert float(ours["value"]) == pytest.approx(100 * scores["lisc"]["accuracy"], abs=0.01)


def test_cells_are_cut_out_of_the_simulators_fields_and_named(smears, tmp_path):
    overrides = [f"data.root={smears}", f"runs_dir={tmp_path}", f"data.cache_dir={tmp_path}/c"]
    path = tmp_path / "cells.yaml"
    path.write_text(
        "data: {label_space: lineage, image_size: 32, domains: {"
        "H_100X_C2: {format: leukemiaattri, crop: 0.1},"
        "L_100X_C2: {format: leukemiaattri, crop: 0.1}}}\n"
        "detector: {kind: classifier, backbone: mobilenetv3_small_050}\n"
        "sources: [H_100X_C2]\ntrainer: {accelerator: cpu}\n"
    )
    experiment = load_experiment(path, [*overrides, "trainer=smoke"])
    (job,) = make_plan(experiment)
    folder = tmp_path / "sweep" / "jobs" / job.hash
    folder.mkdir(parents=True)
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    scores = scores_of(folder)["L_100X_C2"]
    assert scores["boxes"] > 10
    assert scores["attribute_f1_true_boxes"] is not None
    assert set(scores["per_attribute"]) == {a.name for a in LINEAGE.attributes}
