"""What can be known to fail is said before training starts, all at once and by name."""

from __future__ import annotations

import json
import logging

import pytest
from PIL import Image

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Data, Detector, Domain, Experiment
from da_leukemia.data import preflight as preflight_module
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.preflight import preflight
from da_leukemia.data.splits import Split
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.sweep import conduct


def put(root, device, fields=6, cells=1, category="wbc", missing=()):
    """Write a COCO device of one field per patient."""
    folder = root / device
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    shade = 1 + sum(device.encode()) % 100  # no two images are the same
    for number in range(fields):
        name = f"images/{number}.png"
        if number not in missing:
            Image.new("RGB", (64, 48), (220, 200 + number, shade)).save(folder / name)
        images.append(
            {"id": number, "file_name": name, "width": 64, "height": 48, "patient": f"p{number}"}
        )
        annotations += [
            {
                "id": number * 10 + i,
                "image_id": number,
                "category_id": 1,
                "bbox": [4 + 12 * i, 6, 10, 14],
            }
            for i in range(cells)
        ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": category}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def experiment(root, *devices, sources=None, **domain):
    return Experiment(
        data=Data(root=str(root), domains={d: Domain(**domain) for d in devices}),
        sources=list(sources or devices),
        tests=list(devices),
        targets=list(devices),
    )


def test_sound_data_pass(tmp_path):
    put(tmp_path, "lab")
    put(tmp_path, "phone", cells=2)
    preflight(experiment(tmp_path, "lab", "phone"))


def test_a_missing_root_is_named_with_the_setting(tmp_path):
    with pytest.raises(DataError, match=r"data\.root: .*nowhere: no such folder.*data\.root=PATH"):
        preflight(experiment(tmp_path / "nowhere", "lab"))


def test_a_missing_device_folder_is_named(tmp_path):
    put(tmp_path, "lab")
    with pytest.raises(DataError, match="phone"):
        preflight(experiment(tmp_path, "lab", "phone"))


def test_a_device_without_cells_cannot_be_a_source_but_can_be_tested(tmp_path):
    put(tmp_path, "lab")
    put(tmp_path, "bare", cells=0)
    with pytest.raises(
        DataError, match=r"bare: is a source.*data\.domains\.bare\.labels=test_only"
    ):
        preflight(experiment(tmp_path, "lab", "bare"))
    searched = experiment(tmp_path, "lab", "bare", sources=["lab"])
    searched.data.domains["bare"].classes = ["wbc"]
    preflight(searched)


def test_a_device_without_a_label_file_is_named(tmp_path):
    put(tmp_path, "lab")
    (tmp_path / "lab" / "annotations.json").unlink()
    with pytest.raises(DataError, match="lab"):
        preflight(experiment(tmp_path, "lab"))


def test_a_device_whose_labels_cannot_be_read_is_refused(tmp_path):
    put(tmp_path, "lab")
    put(tmp_path, "phone")
    label_file = tmp_path / "phone" / "annotations.json"
    whole = label_file.read_text()
    label_file.write_text(whole[:-30])
    for target_only in (False, True):
        settings = experiment(tmp_path, "lab", "phone", sources=["lab"])
        settings.data.domains["phone"].labels = "none" if target_only else "all"
        with pytest.raises(DataError, match=r"phone: .*annotations\.json: line \d+, .*too early"):
            preflight(settings)
        with pytest.raises(DataError, match=r"phone: .*annotations\.json: line \d+, .*too early"):
            read_experiment_data(settings.data)
    content = json.loads(whole)
    content["annotations"][0]["bbox"] = [0.1, 0.2, 0.3, 0.4]
    label_file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"phone: .*another unit.* \(1\): .*annotation"):
        preflight(experiment(tmp_path, "lab", "phone"))


@pytest.mark.parametrize("beside", [True, False])
def test_an_empty_data_set_is_named(tmp_path, beside):
    put(tmp_path, "empty", fields=0)
    devices = ["empty"]
    if beside:
        put(tmp_path, "lab")
        devices.append("lab")
    with pytest.raises(DataError, match="empty: no images"):
        preflight(experiment(tmp_path, *devices))


def test_missing_image_files_are_named_and_counted(tmp_path):
    put(tmp_path, "lab", missing=(2, 4))
    with pytest.raises(DataError) as caught:
        preflight(experiment(tmp_path, "lab"))
    text = str(caught.value)
    assert "lab" in text
    assert "images/2.png" in text
    assert "(2)" in text


def test_too_few_patients_for_a_test_part_are_named(tmp_path):
    put(tmp_path, "lab", fields=1)
    with pytest.raises(DataError, match=r"lab: no field in the test part; see data\.split"):
        preflight(experiment(tmp_path, "lab"))


def test_all_devices_are_reported_at_once(tmp_path):
    put(tmp_path, "one", missing=(2,))
    put(tmp_path, "two", category="unicorn")
    put(tmp_path, "three", missing=(1,))
    with pytest.raises(DataError) as caught:
        preflight(experiment(tmp_path, "one", "two", "three"))
    problems = caught.value.problems
    assert list(dict.fromkeys(p.split(":")[0] for p in problems)) == ["one", "two", "three"]


def test_an_unknown_class_is_named(tmp_path):
    put(tmp_path, "lab", category="unicorn")
    with pytest.raises(DataError, match="unicorn"):
        preflight(experiment(tmp_path, "lab"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "resnet5O"}, r"'resnet5O'; did you mean 'resnet50'"),
        ({"strides": [8, 8, 16]}, r"detector\.strides.*twice"),
        ({"strides": [8, 64]}, r"detector\.strides.*\[64\]"),
        ({"init_from": "none.ckpt"}, r"detector\.init_from: none\.ckpt: no such file"),
        ({"init_from": "/"}, r"detector\.init_from: /: a folder; name the file in it"),
        ({"init_from": __file__}, r"detector\.init_from: .*: no checkpoint of ours, or a damaged"),
    ],
)
def test_a_detector_that_cannot_be_is_named(settings, said):
    from da_leukemia.models.factory import check_settings

    with pytest.raises(ConfigError, match=said):
        check_settings(Detector(**settings))


def test_fields_annotated_in_patches_can_be_learned_from(tmp_path):
    from da_leukemia.simulate import simulate

    simulate(
        tmp_path / "s", domains=["H_100X_C2"], patients=6, fields_per_patient=1, seed=0, sparse=0.2
    )
    sparse = experiment(tmp_path / "s", "H_100X_C2", format="sparse")
    indexes, _ = preflight(sparse)
    assert any(f.annotated_regions for f in indexes["H_100X_C2"])
    # Which patch it is must be known.
    labels = tmp_path / "s" / "H_100X_C2" / "txt_labels" / "AttriDet" / "train"
    path = min(labels.glob("*.txt"))
    rows = [line.split() for line in path.read_text().splitlines()]
    path.write_text("\n".join(" ".join(r) for r in [*rows, [*rows[0][:5], *"1234", *rows[0][9:]]]))
    with pytest.raises(DataError, match=rf"several annotated patches.*{path.stem}"):
        preflight(sparse)
    path.write_text("\n".join(" ".join([*r[:5], *"0000", *r[9:]]) for r in rows))
    with pytest.raises(DataError, match=rf"patch is empty or outside.*{path.stem}"):
        preflight(sparse)
    for file in labels.glob("*.txt"):  # every box far from its patch
        shifted = [line.split() for line in file.read_text().splitlines()]
        file.write_text("\n".join(" ".join([*r[:5], *"2244", *r[9:]]) for r in shifted))
    sparse.data.domains["H_100X_C2"].patch_order = "x1y1x2y2"
    sparse.data.split.kind = "released"  # else released test fields, annotated whole, join in
    with pytest.raises(
        DataError, match=r"no labelled cell lies in an annotated patch.*patch_order"
    ):
        preflight(sparse)


def test_an_annotated_area_that_leaves_no_cell_is_refused(tmp_path):
    put(tmp_path, "lab", fields=8)
    made = experiment(tmp_path, "lab")
    made.sparse = [1e-4, 0.9, 1.0]
    with pytest.raises(DataError) as refused:
        preflight(made)
    (why,) = refused.value.problems
    assert "the annotated area, 0.0001 of a field, is too small: take a larger one" in why
    made.sparse = [0.9, 1.0]
    preflight(made)


def test_every_refused_record_of_every_device_stops_the_sweep_at_once(tmp_path):
    for device in ("lab", "phone"):
        put(tmp_path, device)
    path = tmp_path / "lab" / "annotations.json"
    content = json.loads(path.read_text())
    rows = content["annotations"]
    rows[0]["bbox"] = None
    rows[1]["wbc_type"] = "monocite"
    rows[2]["image_id"] = 99
    del rows[3]["category_id"]
    path.write_text(json.dumps(content))
    image = tmp_path / "phone" / "images" / "4.png"
    image.write_bytes(image.read_bytes()[:-9])
    Image.new("RGB", (48, 64)).save(image.with_name("5.png"))
    with pytest.raises(DataError) as caught:
        preflight(experiment(tmp_path, "lab", "phone"))
    said = "\n".join(caught.value.problems)
    for shown in (
        "annotation 0: bbox None",
        "annotation 10: unknown class 'monocite'",
        "annotation 20: image_id 99",
        "annotation 30: category_id None",
    ):
        assert f"annotations.json: {shown}" in said
    assert "phone/4.png: truncated" in said
    assert "phone/5.png: labels say 64 x 48, the file is 48 x 64" in said
    assert len(caught.value.problems) == 6


def test_a_tested_device_without_a_label_of_the_label_space_is_refused(tmp_path):
    put(tmp_path, "lab", category="monocyte")
    put(tmp_path, "phone", category="WBC", cells=2)
    typed = experiment(tmp_path, "lab", "phone", sources=["lab"])
    preflight(typed)
    typed.data.label_space = "wbc5"
    with pytest.raises(DataError) as caught:
        preflight(typed)
    (problem,) = caught.value.problems
    assert problem.startswith("phone: is tested, but has no label of label space 'wbc5'")
    assert "its boxes are classes of wbc (12): set data.label_space to one of wbc (12)" in problem
    assert "data.domains.phone.labels=none" in problem
    typed.tests = ["lab"]
    preflight(typed)


def test_a_folder_of_images_can_be_adapted_to_but_not_tested(tmp_path):
    put(tmp_path, "lab")
    put(tmp_path, "bare")
    (tmp_path / "bare" / "annotations.json").unlink()
    target = experiment(tmp_path, "lab", "bare", sources=["lab"])
    target.data.domains["bare"] = Domain(format="images", labels="none")
    with pytest.raises(DataError, match=r"bare: is tested.*it has none of any label space"):
        preflight(target)
    target.tests = ["lab"]
    indexes, _ = preflight(target)
    assert [f.labelled_classes for f in indexes["bare"]] == [()] * 6


def test_a_target_without_training_images_is_refused_where_something_adapts(tmp_path, monkeypatch):
    put(tmp_path, "lab")
    put(tmp_path, "phone", fields=1)
    made = experiment(tmp_path, "lab", "phone", sources=["lab"])
    made.tests, made.targets = ["lab"], ["lab", "phone"]
    read = preflight_module.read_experiment_data

    def all_of_the_phone_is_tested(data):
        indexes, split = read(data)
        tested = dict.fromkeys((f.group for f in indexes["phone"]), "test")
        return indexes, Split({**split.parts, **tested})

    monkeypatch.setattr(preflight_module, "read_experiment_data", all_of_the_phone_is_tested)
    preflight(made)
    blind = Method(components=[{"name": "stain_jitter"}])  # it looks at no target
    made.adaptations = {"m": blind, "unused": Method(components=[{"name": "mmd"}])}
    made.methods = ["m"]
    preflight(made)
    made.methods = ["m", "unused"]
    with pytest.raises(DataError, match=r"phone: is adapted to but has no image in the training"):
        preflight(made)


def test_labels_that_cannot_be_read_are_not_called_no_images(tmp_path):
    put(tmp_path, "lab")
    put(tmp_path, "phone", missing=range(6))
    with pytest.raises(DataError) as caught:
        preflight(experiment(tmp_path, "lab", "phone", sources=["lab"]))
    assert not any("no images" in p for p in caught.value.problems)
    assert any("images/0.png" in p for p in caught.value.problems)


def test_an_unusual_name_of_a_single_label_file_is_found_as_by_data_check(tmp_path):
    from da_leukemia.data.check import check

    put(tmp_path, "lab")
    (tmp_path / "lab" / "annotations").mkdir()
    label_file = tmp_path / "lab" / "annotations.json"
    label_file.rename(tmp_path / "lab" / "annotations" / "instances_default.json")
    indexes, _ = preflight(experiment(tmp_path, "lab"))
    (domain,) = check(tmp_path).domains
    assert (domain.domain, domain.format, domain.images) == ("lab", "coco", len(indexes["lab"]))


def test_a_device_that_cannot_be_read_at_all_does_not_hide_the_faults_of_the_others(tmp_path):
    for device in ("lab", "phone", "scope"):
        put(tmp_path, device)
    (tmp_path / "lab" / "annotations.json").write_text("{")
    (tmp_path / "phone" / "annotations.json").unlink()
    (tmp_path / "scope" / "images" / "1.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        preflight(experiment(tmp_path, "lab", "phone", "scope"))
    lab, phone, scope = caught.value.problems
    assert "lab/annotations.json: line 1" in lab
    assert "phone: no annotations.json" in phone
    assert "scope/1.png: holds 0 bytes" in scope


@pytest.mark.parametrize(("space", "lost"), [("lineage", True), ("wbc", False)])
def test_types_that_a_source_free_teacher_would_unlearn_are_said(smears, caplog, space, lost):
    teacher = {"name": "mean_teacher", "burn_in": 0.0}
    soft = {"name": "distillation", "burn_in": 0.0, "class_weight": 1.0}
    made = experiment(smears, "H_100X_C2", "L_100X_C2", format="leukemiaattri")
    made.data.label_space = space
    made.adaptations = {
        "alone": Method(source_free=True, components=[teacher]),
        "boxes": Method(source_free=True, components=[teacher, soft | {"class_weight": 0.0}]),
        "held": Method(source_free=True, components=[teacher, soft]),
        "with_labels": Method(continued=True, components=[teacher]),
    }
    made.methods = list(made.adaptations)
    with caplog.at_level(logging.WARNING):
        preflight(made)
    said = [r.getMessage() for r in caplog.records if "may lose" in r.getMessage()]
    assert len(said) == (2 if lost else 0)  # of each source
    assert all("alone, boxes learns from its own" in text for text in said)


def test_a_method_that_asks_for_batchnorm_needs_a_backbone_that_has_it(tmp_path):
    put(tmp_path, "lab")
    made = experiment(tmp_path, "lab")
    made.methods = ["mine"]
    made.adaptations = {"mine": Method(components=[{"name": "adabn"}])}
    made.detector = Detector(backbone="convnext_atto")
    with pytest.raises(ConfigError, match=r"mine: adabn .*backbone=convnext_atto has none"):
        conduct.check_detector(made)
    made.adaptations["mine"].components[0]["weight"] = 0.0
    conduct.check_detector(made)


def test_a_target_that_nothing_tests_is_said(smears, caplog):
    made = experiment(smears, "H_100X_C2", "L_100X_C2", format="leukemiaattri")
    made.tests, made.targets = ["H_100X_C2"], ["H_100X_C2", "L_100X_C2"]
    made.adaptations = {"dann": Method(components=[{"name": "adversarial"}])}
    made.methods = ["dann"]
    with caplog.at_level(logging.WARNING):
        preflight(made)
    (said,) = [r.getMessage() for r in caplog.records if "not tested on" in r.getMessage()]
    assert said.startswith("targets: L_100X_C2 is adapted to")
    caplog.clear()
    made.adaptations, made.methods = {"plain": Method()}, ["plain"]
    with caplog.at_level(logging.WARNING):
        preflight(made)
    assert not any("not tested on" in r.getMessage() for r in caplog.records)


def test_devices_that_share_no_type_are_refused_and_a_type_never_seen_is_said(tmp_path, caplog):
    put(tmp_path, "lab", category="neutrophil")
    put(tmp_path, "phone", category="lymphocyte", cells=2)
    made = experiment(tmp_path, "lab", "phone", sources=["lab"])
    made.data.label_space = "wbc5"
    with pytest.raises(DataError) as refused:
        preflight(made)
    (said,) = refused.value.problems
    assert "lab: shares no type of label space 'wbc5' with phone" in said
    assert "it has neutrophil, the other lymphocyte; take a coarser label space" in said
    made.data.label_space = "wbc"
    preflight(made)
    # One device has both types, the other one of them.
    path = tmp_path / "phone" / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 2, "name": "neutrophil"})
    for annotation in content["annotations"][::2]:
        annotation["category_id"] = 2
    path.write_text(json.dumps(content))
    made.data.label_space = "wbc5"
    with caplog.at_level(logging.WARNING):
        preflight(made)
    said = "lab: has no training cell of lymphocyte ("
    assert said in caplog.text
    assert "of phone): they can only be missed or named wrong" in caplog.text


def test_a_few_shot_method_that_asks_for_more_than_there_is_is_refused_at_once(tmp_path):
    put(tmp_path, "lab")
    put(tmp_path, "phone", cells=2)
    made = experiment(tmp_path, "lab", "phone", sources=["lab"])
    made.methods = ["shots"]
    made.adaptations = {"shots": Method(target_labels=50, components=[{"name": "cut_paste"}])}
    with pytest.raises(DataError, match=r"phone: \d training fields?, but target_labels of shots"):
        preflight(made)
