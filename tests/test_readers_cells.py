"""Single cells in the layouts in which they were published."""

from __future__ import annotations

import numpy as np
import pytest
from cells_kit import five_types, picture, put

from da_leukemia.data.check import check
from da_leukemia.data.readers import DomainSource, detect_format, find_domains, read_domain
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import LEUKEMIAATTRI, MATEK19, MLL23, OPEN_SET, PBC8, UNKNOWN, WBC5, WBCATT


def read(root, space=WBC5, **settings):
    return read_domain(DomainSource("cells", root, **settings), "cells", space)


def kinds(index):
    return {f.kind: f.count for f in index.findings}


def named(index, space):
    """Return the class of each cell by the stem of its file."""
    out = {}
    for f in index:
        label = int(f.labels[0])
        out[f.image.stem] = {OPEN_SET: "open", UNKNOWN: "unknown"}.get(label, space.classes[label])
    return out


def test_mll23_has_each_folder_inside_one_of_its_name(tmp_path):
    for n, name in enumerate(MLL23.classes):
        put(tmp_path / name / name / f"{n}.tif", picture(n, size=(288, 288)))
    put(tmp_path / "myeloblast" / "myeloblast" / "._0.tif", picture(0))
    (tmp_path / "myeloblast" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "basophil" / "basophil" / "empty.tif").write_bytes(b"")
    (tmp_path / "README.md").write_text("about")
    index = read(tmp_path, MLL23)
    assert named(index, MLL23) == {str(n): name for n, name in enumerate(MLL23.classes)}
    assert index.fields[0].labelled_classes == tuple(range(18))
    assert kinds(index) == {"unreadable_image": 1, "junk_file": 2, "no_patient": 18}
    (finding,) = (f for f in index.findings if f.severity == "error")
    assert finding.examples == ("basophil/basophil/empty.tif: holds 0 bytes",)
    assert "copy it again from its source, or remove it" in finding.message
    field = index.fields[0]
    assert (field.width, field.height) == (288, 288)
    assert field.boxes.tolist() == [[0, 0, 288, 288]]


def test_the_codes_of_matek_are_types_in_every_space(tmp_path):
    codes = [code.upper() for code, _ in MATEK19.aliases]
    assert len(codes) == 15
    for n, code in enumerate(codes):
        put(tmp_path / code / f"{code}_0001.tiff", picture(n, size=(400, 400)))
    assert sorted(named(read(tmp_path, MATEK19), MATEK19).values()) == sorted(MATEK19.classes)
    five = named(read(tmp_path), WBC5)
    assert five["NGB_0001"] == five["NGS_0001"] == "neutrophil"
    open_set = {code[:3] for code, name in five.items() if name == "open"}
    assert open_set == {*("PMO", "PMB", "MYO", "MYB", "MOB", "MMZ", "LYA", "KSC", "EBO")}
    eight = named(read(tmp_path, PBC8), PBC8)
    assert eight["MYB_0001"] == "ig"
    assert eight["EBO_0001"] == "erythroblast"
    assert named(read(tmp_path, MLL23), MLL23)["EBO_0001"] == "normoblast"


def acevedo(root):
    files = ("neutrophil/SNE_1", "neutrophil/BNE_2", "neutrophil/NEUTROPHIL_3", "ig/MMY_4")
    for n, name in enumerate((*files, "ig/IG_5", "platelet/PLATELET_6", "basophil/BA_7")):
        put(root / f"{name}.jpg", picture(n, size=(36, 36)))
    return root


def test_the_file_names_of_acevedo_tell_more_than_its_folders(tmp_path):
    root = acevedo(tmp_path / "PBC_dataset_normal_DIB")
    assert detect_format(root) == "cells"
    assert set(named(read(root, PBC8), PBC8).values()) == {
        "neutrophil", "ig", "platelet", "basophil"
    }  # fmt: skip
    fine = named(read(root, MLL23), MLL23)
    assert fine["BNE_2"] == "neutrophil_band"
    assert fine["SNE_1"] == "neutrophil_segmented"
    assert fine["MMY_4"] == "metamyelocyte"
    assert fine["IG_5"] == fine["NEUTROPHIL_3"] == fine["PLATELET_6"] == "open"


HEADER = ["img_name", "label", *(a.name for a in WBCATT.attributes), "path"]


def table(path, *rows):
    lines = [",".join(HEADER), *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_wbcatt_adds_attributes_and_parts(tmp_path):
    root = acevedo(tmp_path / "pbc")
    first = [a.values[0] for a in WBCATT.attributes]
    last = [a.values[-1] for a in WBCATT.attributes]
    table(root / "pbc_attr_v1_train.csv", ["BA_7.jpg", "Basophil", *first, "x/BA_7.jpg"])
    wrong = [*last[:-1], "perhaps"]
    table(
        root / "pbc_attr_v1_test.csv",
        ["BNE_2.jpg", "Neutrophil", *wrong, ""],
        ["BA_99.jpg", "Basophil", *first, ""],
    )
    index = read(root, WBCATT)
    cells = {f.image.stem: f for f in index}
    assert cells["BA_7"].attributes.tolist() == [[0] * 11]
    assert cells["BA_7"].released_split == "train"
    sizes = list(WBCATT.attribute_sizes)
    assert cells["BNE_2"].attributes.tolist() == [[*(n - 1 for n in sizes[:-1]), -1]]
    assert cells["BNE_2"].released_split == "test"
    assert (cells["SNE_1"].attributes == -1).all()
    found = kinds(index)
    assert (found["attribute_out_of_range"], found["attributes_without_image"]) == (1, 1)


def test_an_artefact_has_no_attributes(tmp_path):
    root = acevedo(tmp_path / "pbc")
    put(root / "artefact" / "ART_1.jpg", picture(70))
    first = [a.values[0] for a in WBCATT.attributes]
    table(root / "attributes.csv", *([name, "", *first, ""] for name in ("ART_1.jpg", "BA_7.jpg")))
    index = read(root, WBCATT)
    codes = {f.image.stem: f.attributes for f in index}
    assert (codes["ART_1"] == -1).all()
    assert (codes["BA_7"] == 0).all()
    (finding,) = [f for f in index.findings if f.kind == "attribute_of_no_cell"]
    assert finding.examples == ("attributes.csv: line 2",)


def test_the_parts_of_raabin_are_folders_that_can_be_chosen(tmp_path):
    for n, part in enumerate(("Train", "TestA", "Test-B")):
        for m, name in enumerate(("Lymphocyte", "Neutrophil")):
            put(tmp_path / part / name / f"{n}{m}.jpg", picture(10 * n + m))
    whole = read(tmp_path)
    parts = {f.image.stem: f.released_split for f in whole}
    assert parts == dict(
        zip(("00", "01", "10", "11", "20", "21"), ["train"] * 2 + ["test"] * 4, strict=True)
    )
    other = read(tmp_path, folders=("test-b",))
    assert [f.image.stem for f in other] == ["20", "21"]
    assert {f.released_split for f in other} == {"test"}
    with pytest.raises(DataError, match="no folder 'TestC'; did you mean 'testa'"):
        read(tmp_path, folders=("TestC",))


def test_unknown_folders_are_counted_and_left_out_with_a_suggestion(tmp_path):
    five_types(tmp_path, cells=1)
    for n in range(3):
        put(tmp_path / "neutrofil" / f"x{n}.png", picture(50 + n))
    put(tmp_path / "loose.png", picture(60))
    index = read(tmp_path)
    assert len(index) == 5
    (finding,) = (f for f in index.findings if f.kind == "unknown_class_folder")
    assert (finding.severity, finding.count) == ("error", 4)
    assert any("'neutrofil'" in e and "did you mean 'neutrophil'" in e for e in finding.examples)


def test_damaged_and_foreign_files_do_not_stop_the_others(tmp_path):
    five_types(tmp_path, cells=1)
    (tmp_path / "basophil" / "bad.png").write_bytes(b"no image")
    (tmp_path / "basophil" / "notes.txt").write_text("remarks")
    index = read(tmp_path)
    assert len(index) == 5
    assert (kinds(index)["unreadable_image"], kinds(index)["junk_file"]) == (1, 1)


def test_an_empty_folder_is_an_empty_domain(tmp_path):
    (tmp_path / "basophil").mkdir()
    assert kinds(read(tmp_path)) == {"empty_domain": 1}


def test_classes_patients_and_their_settings(tmp_path):
    five_types(tmp_path, cells=2)
    index = read(tmp_path, classes=("neutrophil",), patient_pattern=r"_(?P<patient>\d+)")
    assert index.fields[0].labelled_classes == (0,)
    labels = np.array([int(f.labels[0]) for f in index])
    assert sorted(set(labels.tolist())) == [UNKNOWN, 0]
    assert {f.patient for f in index} == {"0", "1"}
    assert kinds(index) == {"class_not_declared": 8}
    with pytest.raises(ConfigError, match="unknown class 'neutrofil'"):
        read(tmp_path, classes=("neutrofil",))


def test_data_check_finds_the_format_and_tells_copies(tmp_path):
    five_types(tmp_path / "lab", cells=2)
    put(tmp_path / "lab" / "monocyte" / "again.png", picture(0, (200, 120, 160)))
    put(tmp_path / "photos" / "a.png", picture(1))
    assert find_domains(tmp_path) == {"lab": "cells", "photos": "images"}
    report = check(tmp_path / "lab", space=LEUKEMIAATTRI)
    (domain,) = report.domains
    assert domain.format == "cells"
    found = {f.kind: f for f in domain.findings}
    assert found["cell_in_several_folders"].count == 1
    assert "again" in found["cell_in_several_folders"].examples[0]
    assert report.exit_code == 0
