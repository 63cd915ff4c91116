"""What can be wrong with a data set, in one table, and the log that readers write into."""

from __future__ import annotations

from dataclasses import dataclass, field

from da_leukemia.data.fields import Finding

EXAMPLES = 5

KINDS: dict[str, tuple[str, str]] = {
    # kind: (severity, what it is and what to do)
    "missing_image": (
        "error",
        "labels name an image that is not there; the field is left out. An archive of the data "
        "set is missing or unpacked elsewhere",
    ),
    "unreadable_image": (
        "error",
        "the image cannot be opened, is truncated or holds 0 bytes; copy it again from its source, "
        "or remove it with its labels",
    ),
    "unreadable_label_file": (
        "error",
        "a label file cannot be read, so what it labels counts as unlabelled until it is repaired; "
        "see the example",
    ),
    "unreadable_record": (
        "error",
        "a label record lacks a field or has one of the wrong kind; the record is left out",
    ),
    "annotation_without_image": (
        "error",
        "an annotation names an image id that the file does not list; the box is left out",
    ),
    "image_id_conflict": (
        "error",
        "one image id stands for several files, so its boxes cannot be placed; they are left out. "
        "Number the images anew",
    ),
    "unknown_class_id": (
        "error",
        "a class id that the file does not name and the release does not define; box left out",
    ),
    "unknown_class_name": (
        "error",
        "a cell is called by a name that this project does not know; it is read as of unknown "
        "type. Rename it in the label file",
    ),
    "unknown_class_folder": (
        "error",
        "a folder of single cells is called by no cell type that this project knows, so its images "
        "are left out; rename it, or move it out of the data set",
    ),
    "patch_unusable": (
        "error",
        "the annotated patch is empty or outside its image, so nobody knows which part of the "
        "image is annotated; the field is left out with its boxes",
    ),
    "patch_units": (
        "error",
        "the annotated patch looks like shares of the image (0 to 1); pixels expected: multiply "
        "its columns by the width and height of the image. The field is left out with its boxes",
    ),
    "several_patches": (
        "error",
        "one label file names several annotated patches; the one of most rows is used",
    ),
    "box_outside": (
        "error",
        "a box lies wholly outside its image and is left out; check that boxes are x, y, width, "
        "height in pixels of this image",
    ),
    "box_units": (
        "error",
        "a box lies in the first pixel of its image, or passes it by more than its size, and is "
        "left out: its numbers are in another unit (COCO, VOC and Raabin count pixels, text rows "
        "are shares of the image from 0 to 1) or of another resolution",
    ),
    "box_inverted": (
        "error",
        "a box of negative width or height, or whose second corner lies before its first, is left "
        "out: a number is wrong, or the tool counts from another corner",
    ),
    "nearly_black": (
        "error",
        "the images are nearly black. Files of 16 bits whose camera has 10, 12 or 14 look so: the "
        "upper 8 bits are read. Write them with 8, stretched alike for all images of the device",
    ),
    "size_mismatch": (
        "error",
        "the label file and the image disagree about the image size, so boxes are shifted; "
        "label the stored image, or write its size (an EXIF rotation is not applied to boxes)",
    ),
    "size_conflict": (
        "error",
        "two entries of one image disagree about its size; the first is used",
    ),
    "size_wrong_in_labels": (
        "warning",
        "the label file gives no image size, or one that its own boxes pass while they lie inside "
        "the image; the size of the image file is used",
    ),
    "voc_from_zero": (
        "warning",
        "a corner at 0 in a format that counts pixels from 1; taken as the edge of the image. If "
        "there are many, the tool counts from 0 and boxes begin one pixel early",
    ),
    "zipped_labels": (
        "error",
        "the labels are still in an archive; unpack it in its folder. Until then the images are "
        "read as unlabelled",
    ),
    "patient_unknown": (
        "error",
        "the file name carries no patient, so a split by patient cannot hold it together; rename "
        "the file or set patient_pattern",
    ),
    "no_patient": (
        "warning",
        "images carry no patient or slide, so each image is split on its own; set patient_pattern "
        "where file names tell it (where there is a COCO file: or add `patient` to its images)",
    ),
    "patient_is_field": (
        "warning",
        "files carry no patient, so each field stands for one: devices that saw the same field "
        "stay together, fields of one patient may not; set patient_pattern",
    ),
    "no_labels": ("warning", "there are no labels: the domain can only be adapted to, not scored"),
    "empty_domain": ("warning", "the domain has no images"),
    "image_not_in_labels": (
        "warning",
        "an image that no label file mentions is left out: nobody said that it has no cells",
    ),
    "image_renamed": (
        "warning",
        "the image was found under another spelling or extension than the labels give",
    ),
    "patch_order": (
        "warning",
        "how the four patch columns are read, found from the boxes or forced by patch_order",
    ),
    "patch_clipped": (
        "warning",
        "the annotated patch sticks out of its image and was cut at the edge",
    ),
    "patch_missing": (
        "warning",
        "a training image without rows names no patch, so nobody knows which part of it is "
        "annotated; it is left out",
    ),
    "box_outside_patch": (
        "warning",
        "the centre of a box lies outside the annotated patch; the box is kept, but neither "
        "learned nor scored",
    ),
    "cell_count_differs": (
        "warning",
        "the file says that it holds another number of cells than it does; cells may be lost",
    ),
    "repeated_image": (
        "warning",
        "an image is listed more than once; its boxes were put together",
    ),
    "field_name_repeated": (
        "warning",
        "two images of a domain have the same patient and field; the file name tells them apart",
    ),
    "diagnosis_missing": ("warning", "the file name carries no diagnosis"),
    "duplicate_box": ("warning", "a box is there twice with the same class; one copy is kept"),
    "box_with_two_classes": (
        "warning",
        "one box has several classes; all are kept, as released",
    ),
    "empty_box": ("warning", "a box without width or height is left out"),
    "box_clipped": ("warning", "a box sticks out of its image and was cut at the edge"),
    "not_in_label_space": (
        "warning",
        "boxes of a class that is background in this label space are left out",
    ),
    "unknown_cell_type": (
        "warning",
        "white cells whose type this label space or the file does not tell are neither learned "
        "nor counted as wrong",
    ),
    "crowd_box": ("warning", "a box of a group of cells (iscrowd) is taken as of unknown type"),
    "class_not_declared": (
        "warning",
        "boxes of a class that the setting `classes` does not name are taken as of unknown type",
    ),
    "class_without_boxes": (
        "warning",
        "the file lists a class that has no box, which is taken as not labelled; name it in "
        "`classes` if it was looked for",
    ),
    "class_by_id": ("warning", "there are no class names, so classes were taken by number"),
    "attribute_missing": (
        "warning",
        "cells lack some attributes, which are taken as missing",
    ),
    "attribute_out_of_range": (
        "warning",
        "an attribute has a value that the label space does not define; taken as missing",
    ),
    "attribute_other_scale": (
        "warning",
        "an attribute is graded with other values than in the label space, so all its values are "
        "taken as missing (keeping only the shared ones would bias it)",
    ),
    "attribute_of_no_cell": (
        "warning",
        "a box of class none (an artefact) carries attributes, which nothing but a cell has; "
        "they are not read",
    ),
    "attribute_constant": (
        "warning",
        "an attribute has one value on all cells, so it cannot be learned from this device alone, "
        "and an answer that never varies scores 1 on it",
    ),
    "attribute_unknown": (
        "warning",
        "the label space has no such attribute; it is not read",
    ),
    "exif_orientation": (
        "warning",
        "the image asks to be shown rotated; boxes are read in the stored frame",
    ),
    "duplicate_image": (
        "warning",
        "images of one domain have identical bytes; they must not be divided by a split",
    ),
    "junk_file": (
        "warning",
        "a file beside the cells is no image (hidden or of another kind) and is skipped",
    ),
    "open_set_cell": (
        "warning",
        "cells of a type that this label space does not have are kept apart: never learned, and "
        "at test only looked at to see whether the network is less sure of them",
    ),
    "cell_in_several_folders": (
        "warning",
        "one picture of a cell is in folders of different types; all of them are kept as its "
        "labels (detector.classifier.conflicts says how they are learned)",
    ),
    "duplicate_cell": (
        "warning",
        "pictures of cells that are the same (equal bytes, or equal to the eye); a split keeps "
        "them together",
    ),
    "attributes_without_image": (
        "warning",
        "a row of attributes names a picture that is not there; the row is left out",
    ),
    "patient_leak": (
        "warning",
        "patients are in train in one domain and in test in another in the released split; use "
        "the split by patient (the default) when training across domains",
    ),
    "split_empty_part": (
        "warning",
        "a domain has no fields in a part of the split; it has too few patients",
    ),
}
"""Every kind of finding. ``docs/bring_your_own_device.md`` says what to do about each."""


@dataclass
class FindingLog:
    """Counts anomalies by kind and keeps the first few places of each."""

    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Note one anomaly of a kind in `KINDS`; ``example`` says where, ``file: detail``."""
        if kind not in KINDS:
            raise KeyError(kind)
        self._counts[kind] = self._counts.get(kind, 0) + count
        examples = self._examples.setdefault(kind, [])
        if example and len(examples) < EXAMPLES:
            # A label file can carry half a surrogate pair, which no terminal can print.
            examples.append(example.encode("utf-8", "backslashreplace").decode())

    def __contains__(self, kind: str) -> bool:
        """Tell whether any of a kind was noted."""
        return kind in self._counts

    def merge(self, finding: Finding) -> None:
        """Add what another log has counted."""
        self.add(finding.kind, "", finding.count)
        for example in finding.examples:
            self.add(finding.kind, example, 0)

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found, in the order of `KINDS` (errors first)."""
        return tuple(
            Finding(k, severity, message, self._counts[k], tuple(self._examples[k]))
            for k, (severity, message) in KINDS.items()
            if k in self._counts
        )
