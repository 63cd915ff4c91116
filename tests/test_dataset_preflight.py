"""What can be known to fail is said before training starts, all at once and by name."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from da_leukemia.config import Data, Detector, Domain, Experiment
from da_leukemia.data.preflight import preflight
from da_leukemia.errors import ConfigError, DataError


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


def experiment(root, *devices, sources=None, backbone="mobilenetv3_small_050", **domain):
    return Experiment(
        data=Data(root=str(root), domains={d: Domain(**domain) for d in devices}),
        detector=Detector(backbone=backbone),
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
    preflight(experiment(tmp_path, "lab", "bare", sources=["lab"]))


def test_a_device_without_a_label_file_is_named(tmp_path):
    put(tmp_path, "lab")
    (tmp_path / "lab" / "annotations.json").unlink()
    with pytest.raises(DataError, match="lab"):
        preflight(experiment(tmp_path, "lab"))


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
    put(tmp_path, "one", cells=0)
    put(tmp_path, "two", cells=0)
    put(tmp_path, "three", missing=(1,))
    with pytest.raises(DataError) as caught:
        preflight(experiment(tmp_path, "one", "two", "three"))
    problems = caught.value.problems
    assert len(problems) == 3
    assert [p.split(":")[0] for p in problems] == ["one", "two", "three"]


def test_an_unknown_class_is_named(tmp_path):
    put(tmp_path, "lab", category="unicorn")
    with pytest.raises(DataError, match="unicorn"):
        preflight(experiment(tmp_path, "lab"))


def test_an_unknown_backbone_is_found_before_any_label_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"'resnet5O'; did you mean 'resnet50'"):
        preflight(experiment(tmp_path, "lab", backbone="resnet5O"))


def test_strides_that_cannot_be_are_named(tmp_path):
    put(tmp_path, "lab")
    broken = experiment(tmp_path, "lab")
    broken.detector.strides = [8, 8, 16]
    with pytest.raises(ConfigError, match=r"detector\.strides.*twice"):
        preflight(broken)
    broken.detector.strides = [8, 64]
    with pytest.raises(ConfigError, match=r"detector\.strides.*\[64\]"):
        preflight(broken)


def test_start_weights_that_are_not_there_are_named(tmp_path):
    put(tmp_path, "lab")
    broken = experiment(tmp_path, "lab")
    broken.detector.init_from = str(tmp_path / "none.ckpt")
    with pytest.raises(ConfigError, match=r"detector\.init_from: .*none\.ckpt: no such file"):
        preflight(broken)


def test_partly_annotated_fields_are_not_trained_on_as_if_they_were_whole(tmp_path):
    from da_leukemia.simulate import simulate

    simulate(
        tmp_path / "s", domains=["H_100X_C2"], patients=6, fields_per_patient=1, seed=0, sparse=0.2
    )
    sparse = experiment(tmp_path / "s", "H_100X_C2", format="sparse")
    with pytest.raises(DataError, match="annotated in a patch only"):
        preflight(sparse)
