"""`data check` shows what a data set holds and fails where a result would be corrupted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.calibration.fields import find_images, read_fields
from da_leukemia.data.check import check, laplacian_variance, render
from da_leukemia.data.readers import READERS
from da_leukemia.data.readers.findings import KINDS, FindingLog
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import WBC


def put_coco(root: Path, patients=("a", "b", "c"), size=(64, 48), **extra) -> Path:
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for n, patient in enumerate(patients, start=1):
        Image.new("RGB", size, (200, 100, 10 * n)).save(root / f"images/{n}.png")
        images.append({"id": n, "file_name": f"images/{n}.png", "patient": patient})
        images[-1] |= {"width": size[0], "height": size[1], **extra}
        row = {"image_id": n, "category_id": 1, "bbox": [n, 2, 10 * n, 8], "wbc_type": "monocyte"}
        annotations.append({"id": n, **row, "attributes": {"cytoplasm": "abundant"}})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "WBC"}]
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def errors(report):
    return {f.kind for f in report.all_findings if f.severity == "error"}


@pytest.mark.parametrize(("level", "seen"), [(200, 200), (200 * 256 + 77, 200)])
def test_the_mean_colour_is_what_a_detector_sees(tmp_path, level, seen):
    root = put_coco(tmp_path / "scope")
    for number, path in enumerate(sorted((root / "images").iterdir())):
        grey = np.full((2100, 3000) if number == 0 else (48, 64), level)
        kind = np.uint8 if level < 256 else np.uint16
        Image.fromarray(grey.astype(kind)).save(path, "PNG")
    (domain,) = check(root).domains
    assert domain.mean_colour == (seen,) * 3


@pytest.mark.parametrize("deep", [True, False])
def test_nearly_black_images_are_an_error(tmp_path, deep):
    root = put_coco(tmp_path / "scope")
    for n, path in enumerate(sorted((root / "images").iterdir())):
        dark = Image.fromarray(np.full((48, 64), 4000 + n, np.uint16))
        dark = dark if deep else Image.new("RGB", (64, 48), (13 + n, 15, 12))
        dark.save(path)
    report = check(root)
    (told,) = report.domains[0].findings
    assert (told.kind, told.count, report.exit_code) == ("nearly_black", 3, 1)
    assert "1.png: no value above 15 of 255" in told.examples[0]
    with pytest.raises(DataError, match="the images are nearly black"):
        read_fields(find_images(root))
    Image.new("RGB", (64, 48), "white").save(path)  # one dark field says nothing of a camera
    assert check(root).exit_code == 0


def test_a_clean_folder_is_described_and_ready(tmp_path):
    report = check(put_coco(tmp_path / "phone"))
    (domain,) = report.domains
    assert (domain.format, report.exit_code, domain.findings) == ("coco", 0, ())
    assert (domain.domain, domain.images, domain.fields, domain.patients) == ("phone", 3, 3, 3)
    assert domain.boxes == {"monocyte": 3}
    assert domain.labelled_classes == ("monocyte",)
    assert domain.attributes == {"cytoplasm": {"scanty": 0, "abundant": 3, "missing": 0}}
    assert domain.box_width == (10.0, 15.0, 20.0, 25.0, 30.0)
    assert domain.image_sizes == {"64 x 48": 3}
    assert domain.mean_colour == (200.0, 100.0, 20.0)
    assert domain.sharpness == (0.0,) * 5
    text = render(report)
    head = "phone: 3 images, 3 fields, 3 patients (format coco)"
    end = "0 kinds of error, 0 kinds of warning: ready"
    for shown in (head, "monocyte 3", "abundant 3", end):
        assert shown in text
    alone = render(check(put_coco(tmp_path / "one", patients="a", width=65)))
    assert "one: 1 image, 1 field, 1 patient (" in alone
    assert "1 kind of error, 0 kinds" in alone
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["exit_code"] == 0


def test_every_subfolder_is_a_domain_and_one_unreadable_file_does_not_hide_the_rest(tmp_path):
    put_coco(tmp_path / "a")
    put_coco(tmp_path / "b")
    label_file = tmp_path / "a/annotations.json"
    label_file.write_text(label_file.read_text()[:200])
    report = check(tmp_path, "coco", WBC)
    assert [(d.images, sum(d.boxes.values())) for d in report.domains] == [(3, 0), (3, 3)]
    assert errors(report) == {"unreadable_label_file"}
    assert report.exit_code == 1
    assert str(label_file) in render(report)
    assert "not ready" in render(report)


def test_truncated_and_foreign_images_are_found(tmp_path):
    root = put_coco(tmp_path / "phone", patients=tuple("abcde"))
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images/1.png")
    whole = (root / "images/1.png").read_bytes()
    (root / "images/1.png").write_bytes(whole[: len(whole) // 2])
    (root / "images/2.png").write_text("no image")
    report = check(root)
    finding = next(f for f in report.all_findings if f.kind == "unreadable_image")
    assert (finding.count, report.exit_code, report.domains[0].decoded) == (2, 1, 3)


def test_a_truncated_image_is_found_among_many_without_decoding_it(tmp_path, monkeypatch):
    root = put_coco(tmp_path / "phone", patients=[str(n) for n in range(9)])
    monkeypatch.setattr("da_leukemia.data.check.SAMPLE", 1)
    path = root / "images/5.png"
    path.write_bytes(path.read_bytes()[:-6])
    report = check(root)
    finding = next(f for f in report.all_findings if f.kind == "unreadable_image")
    assert (finding.count, report.domains[0].decoded) == (1, 1)
    assert finding.examples[0].startswith("phone/5.png: truncated")


@pytest.mark.parametrize("fault", ["{", "names", "several"])
def test_a_fault_of_the_labels_hides_no_fault_of_the_images(tmp_path, fault):
    if fault == "names":
        put_yolo(tmp_path / "phone", names="")
    else:
        put_coco(tmp_path / "phone")
    if fault == "{":
        (tmp_path / "phone/annotations.json").write_text("{")
    if fault == "several":
        text = (tmp_path / "phone/annotations.json").read_text()
        (tmp_path / "phone/annotations.json").unlink()
        for name in ("train.json", "val.json"):
            (tmp_path / "phone" / name).write_text(text)
    image = tmp_path / "phone/images/1.png"
    image.write_bytes(image.read_bytes()[:-6])
    report = check(tmp_path)
    assert errors(report) == {"unreadable_image", "unreadable_label_file"}
    (domain,) = report.domains
    assert domain.image_sizes == {"64 x 48": domain.images - 1}
    assert (domain.decoded, len(domain.sharpness)) == (domain.images - 1, 5)
    assert "no_labels" not in {f.kind for f in report.all_findings}


def test_damage_inside_a_file_is_found_where_all_are_decoded(tmp_path, monkeypatch):
    root = put_coco(tmp_path / "phone", patients=[str(n) for n in range(9)])
    put_images(tmp_path / "bare", 4)
    monkeypatch.setattr("da_leukemia.data.check.SAMPLE", 2)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    path = root / "images/5.png"
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    seen: list[tuple[int, int]] = []
    few = check(tmp_path, progress=lambda *told: seen.append(told))
    assert (few.exit_code, [d.decoded for d in few.domains]) == (0, [2, 2])
    assert seen == [(n, 4) for n in range(1, 5)]
    assert "--decode all" in render(few)
    seen.clear()
    report = check(tmp_path, decode="all", workers=3, progress=lambda *told: seen.append(told))
    (finding,) = [f for f in report.all_findings if f.severity == "error"]
    assert (finding.kind, finding.count) == ("unreadable_image", 1)
    assert finding.examples[0].startswith("phone/5.png: ")
    assert [d.decoded for d in report.domains] == [4, 8]
    assert seen == [(n, 13) for n in range(1, 14)]
    assert "8 of 9 images" in render(report)
    assert "--decode all" not in render(report)
    assert check(tmp_path, decode="all").to_dict() == report.to_dict()
    with pytest.raises(ConfigError, match="did you mean 'all'"):
        check(tmp_path, decode="al")


def test_a_size_that_contradicts_the_image_is_an_error(tmp_path):
    assert errors(check(put_coco(tmp_path / "a", width=48, height=64))) == {"size_mismatch"}


def test_rotation_marks_and_identical_files_are_reported(tmp_path):
    root = put_coco(tmp_path / "a")
    exif = Image.Exif()
    exif[0x0112] = 6
    for n in (1, 2):
        Image.new("RGB", (64, 48), "white").save(root / f"images/{n}.png", exif=exif)
    report = check(root)
    found = {f.kind: f.count for f in report.all_findings}
    assert found == {"exif_orientation": 2, "duplicate_image": 1}
    assert report.exit_code == 0


def test_the_layout_of_leukemiaattri_is_recognised_and_its_leak_told(tmp_path):
    for domain, split in (("H_100X_C2", "train"), ("L_40X_C1", "test")):
        name = "4_12_1000_ALL.png" if domain[0] == "H" else "4_12_1_400_ALL.png"
        images = tmp_path / domain / "Images" / split
        images.mkdir(parents=True)
        Image.new("RGB", (64, 64), "white").save(images / name)
        labels = tmp_path / domain / "json_labels"
        labels.mkdir()
        entry = {"id": 1, "file_name": name, "width": 64, "height": 64}
        content = {"images": [entry], "annotations": [], "categories": []}
        (labels / f"{split}.json").write_text(json.dumps(content))
    report = check(tmp_path)
    assert {d.format for d in report.domains} == {"leukemiaattri"}
    assert [d.diagnoses for d in report.domains] == [{"ALL": 1}, {"ALL": 1}]
    assert [f.kind for f in report.findings] == ["patient_leak"]
    assert "train in H_100X_C2; test in L_40X_C1" in render(report)
    assert report.exit_code == 0
    (alone,) = check(tmp_path / "L_40X_C1").domains
    assert alone == report.domains[1]


def test_a_folder_without_domains_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"annotations\.json"):
        check(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "x")


def test_sharpness_is_the_variance_of_the_laplacian():
    grey = np.random.default_rng(0).normal(100, 10, (40, 50)).astype(np.float32)
    ndimage = pytest.importorskip("scipy.ndimage")
    expected = ndimage.laplace(grey)[1:-1, 1:-1].var()
    assert laplacian_variance(grey) == pytest.approx(expected, rel=1e-4)


def rows_of_the_guide(heading: str) -> set[str]:
    guide = Path(__file__).parent.parent / "docs" / "bring_your_own_device.md"
    section = guide.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_every_finding_is_explained_in_the_guide():
    assert rows_of_the_guide("What the findings mean") == set(KINDS)


def test_every_format_is_in_the_guide():
    assert rows_of_the_guide("Formats") == set(READERS)


def test_a_log_adds_up_and_keeps_few_examples():
    log, total = FindingLog(), FindingLog()
    for n in range(9):
        log.add("duplicate_box", f"{n}")
    for _ in range(2):
        total.merge(log.findings()[0])
    (finding,) = total.findings()
    assert (finding.count, finding.examples) == (18, ("0", "1", "2", "3", "4"))
    with pytest.raises(KeyError):
        log.add("something_else", "")


def test_checking_data_does_not_load_torch():
    code = "import sys, da_leukemia.data.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def put_images(folder: Path, count=2):
    folder.mkdir(parents=True)
    for n in range(count):
        Image.new("RGB", (64, 48), (n, 1, sum(folder.name.encode()) % 250)).save(
            folder / f"{n}.png"
        )


def put_yolo(root: Path, names="names: [WBC]"):
    put_images(root / "images")
    (root / "labels").mkdir()
    for n in range(2):
        (root / f"labels/{n}.txt").write_text("0 .5 .5 .2 .2\n")
    if names:
        (root / "data.yaml").write_text(names)


def test_each_device_is_checked_in_its_own_format_and_none_is_passed_over(tmp_path):
    put_coco(tmp_path / "lab_photos")
    put_yolo(tmp_path / "phone_photos")
    put_images(tmp_path / "bare" / "slide 1")
    (tmp_path / "lab_photos/annotations.json").rename(tmp_path / "lab_photos/instances.json")
    (tmp_path / "notes").mkdir()
    report = check(tmp_path, space=WBC)
    found = {d.domain: (d.format, d.images, sum(d.boxes.values())) for d in report.domains}
    assert found == {
        "bare": ("images", 2, 0),
        "lab_photos": ("coco", 3, 3),
        "phone_photos": ("yolo", 2, 2),
    }
    assert report.exit_code == 0
    (finding,) = [f for f in report.all_findings if f.kind == "no_labels"]
    assert finding.severity == "warning"
    assert "bare: 2 images and no label file such as annotations.json" in finding.examples[0]
    assert [d.domain for d in check(tmp_path, "coco").domains] == ["lab_photos"]


def test_labels_without_class_names_are_not_taken_for_no_labels(tmp_path):
    put_coco(tmp_path / "lab")
    put_yolo(tmp_path / "phone", names="")
    report = check(tmp_path)
    (finding,) = [f for f in report.all_findings if f.kind == "unreadable_label_file"]
    assert "write classes.txt" in finding.examples[0]


def test_a_folder_that_holds_its_own_labels_is_one_device(tmp_path):
    put_coco(tmp_path / "lab")
    put_images(tmp_path / "lab" / "previews")
    (domain,) = check(tmp_path / "lab").domains
    assert (domain.domain, domain.format, domain.images) == ("lab", "coco", 3)
    # A photograph beside the devices does not make one device of them.
    put_coco(tmp_path / "phone")
    Image.new("RGB", (9, 9)).save(tmp_path / "microscope.jpg")
    assert [d.domain for d in check(tmp_path).domains] == ["lab", "phone"]


def test_m5_is_six_devices_and_no_folder_of_images(tmp_path):
    put_images(tmp_path / "Images" / "LCM" / "400x")
    (domain,) = check(tmp_path).domains
    assert (domain.domain, domain.format, domain.images) == ("LCM_400x", "m5", 2)


def test_several_label_files_are_asked_about_as_in_a_sweep(tmp_path):
    put_coco(tmp_path / "lab")
    label_file = tmp_path / "lab/annotations.json"
    for name in ("train.json", "val.json"):
        (tmp_path / "lab" / name).write_text(label_file.read_text())
    label_file.unlink()
    report = check(tmp_path)
    assert errors(report) == {"unreadable_label_file"}
    assert "several label files (train.json, val.json)" in render(report)


def test_every_fault_of_a_label_file_is_listed_at_once(tmp_path):
    label_file = put_coco(tmp_path / "lab", patients="abcdef") / "annotations.json"
    content = json.loads(label_file.read_text())
    rows = content["annotations"]
    rows[0]["wbc_type"] = "monocite"
    rows[1]["bbox"] = [1, 2, "three", 4]
    rows[2]["image_id"] = 99
    del rows[3]["wbc_type"]
    rows[3]["category_id"] = 7
    rows[4]["bbox"] = [1, 2, float("nan"), 4]
    label_file.write_text(json.dumps(content))
    report = check(tmp_path)
    assert report.exit_code == 1
    assert report.domains[0].images == 6
    text = render(report)
    for shown in (
        "annotation 1: unknown class 'monocite'; did you mean 'monocyte'?",
        "annotation 2: bbox [1, 2, 'three', 4] is not four pixel numbers",
        "annotation 3: image_id 99",
        "annotation 4: category_id 7 has no name",
        "annotation 5: bbox [1, 2, nan, 4]",
    ):
        assert f"annotations.json: {shown}" in text
    assert "ERROR unreadable_record (2)" in text
    assert "4 kinds of error" in text
