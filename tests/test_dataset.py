"""Fields at network size: where boxes land, what can be decoded, in which order, and no leak."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from da_leukemia.calibration.fields import read_field
from da_leukemia.config import Trainer
from da_leukemia.data.batches import LabelledBatch, Targets, UnlabelledBatch
from da_leukemia.data.datamodules import AdaptationDataModule, DomainDataModule
from da_leukemia.data.dataset import EpochSampler, FieldDataset
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.images import prepare, read_image
from da_leukemia.data.preparation import Preparation
from da_leukemia.data.splits import Split
from da_leukemia.errors import DataError
from da_leukemia.labels import LEUKEMIAATTRI, WBC
from da_leukemia.models.base import Detections
from da_leukemia.tasks.joining import Join

SHAPES = [(1440, 900), (360, 363), (256, 256), (900, 1440), (97, 31)]


def field_of(path, boxes, size, name="1", patient="p", domain="d", labels=None, space=WBC):
    count = len(boxes)
    return FieldOfView(
        image=path,
        domain=domain,
        patient=patient,
        name=name,
        width=size[0],
        height=size[1],
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray(labels if labels is not None else [0] * count, np.int64),
        attributes=np.full((count, len(space.attributes)), -1, np.int64),
        labelled_classes=tuple(range(len(space.classes))),
    )


def write(path, boxes, size, background=220):
    image = np.full((size[1], size[0], 3), background, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[int(y1) : int(y2), int(x1) : int(x2)] = (40, 0, 90)
    Image.fromarray(image).save(path)
    return path


def some_boxes(size):
    width, height = size
    return [
        (0, 0, width // 4, height // 4),
        (width // 2, height // 3, width // 2 + width // 5, height // 3 + height // 4),
        (width - width // 6, height - height // 5, width, height),
    ]


def joined(found, data):
    """Return the record of a data set's only field."""
    join = Join(data, 100)
    join.add(found, [0])
    return join.finish()[0]


# --- the square and back -----------------------------------------------------------------------


@pytest.mark.parametrize("size", SHAPES)
def test_boxes_at_network_size_enclose_their_cells(tmp_path, size):
    boxes = some_boxes(size)
    for box in boxes:
        path = write(tmp_path / "one.png", [box], size)
        data = FieldDataset([field_of(path, [box], size)], WBC, 320)
        batch = data.labelled([0])
        dark = batch.images[0, 0] < 130  # half-way between cell and background
        rows, columns = dark.any(1).nonzero(), dark.any(0).nonzero()
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        near = torch.tensor([float(v) for v in seen])
        assert (near - batch.targets.boxes[0, 0]).abs().max() <= 1.0


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("side", [96, 320])
def test_detections_land_on_the_pixels_their_boxes_came_from(tmp_path, size, side):
    boxes = some_boxes(size)
    field = field_of(write(tmp_path / "f.png", boxes, size), boxes, size)
    data = FieldDataset([field], WBC, side)
    batch = data.labelled([0])
    count = batch.targets.mask.sum()
    assert count == len(boxes)
    found = Detections(
        batch.targets.boxes,
        torch.rand(1, data.max_boxes),
        torch.zeros(1, data.max_boxes, dtype=torch.int64),
        batch.targets.mask,
        torch.zeros(1, data.max_boxes, 0),
    )
    record = joined(found, data)
    np.testing.assert_allclose(record.boxes, field.boxes, atol=1e-3)
    np.testing.assert_array_equal(record.true_boxes, field.boxes)
    assert (record.key, record.group) == ("d/p/1", "patient:p")


def test_nothing_is_found_outside_the_stored_image(tmp_path):
    size = (200, 100)
    data = FieldDataset([field_of(write(tmp_path / "f.png", [], size), [], size)], WBC, 64)
    found = Detections(
        torch.tensor([[[-5.0, 10.0, 64.0, 64.0]]]),
        torch.ones(1, 1),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, 0),
    )
    assert joined(found, data).boxes.tolist() == [[0, 31.25, 200, 100]]


def test_the_square_keeps_the_aspect_and_is_filled_with_the_background():
    image = np.full((50, 200, 3), (230, 210, 220), np.uint8)
    image[10:20, 20:60] = 0
    square, fill = prepare(image, Preparation(64))
    assert square.shape == (64, 64, 3)
    assert fill.tolist() == [230, 210, 220]
    assert (square[16:] == fill).all()
    assert square[4:6, 7:18].max() < 60
    assert Preparation(64).placement(200, 50).x == 64 / 200


def test_a_small_image_is_enlarged():
    square, _ = prepare(np.full((10, 5, 3), 7, np.uint8), Preparation(40))
    assert (square == 7).all()
    assert Preparation(40).placement(5, 10).x == 4


# --- what can be decoded -----------------------------------------------------------------------


GRADIENT = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))


def check_gradient(path):
    image = read_image(path)
    assert image.shape == (48, 64, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image[..., 0].astype(int), GRADIENT.astype(int), atol=2)
    np.testing.assert_allclose(image[..., 2].astype(int), GRADIENT.astype(int), atol=2)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_greyscale_is_three_equal_channels(tmp_path, suffix):
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(GRADIENT).save(path)
    check_gradient(path)


def test_alpha_and_palettes_are_read_as_colour(tmp_path):
    alpha = np.dstack([GRADIENT] * 3 + [np.full_like(GRADIENT, 255)])
    Image.fromarray(alpha, "RGBA").save(tmp_path / "alpha.png")
    check_gradient(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([GRADIENT] * 3)).quantize(256).save(tmp_path / "palette.png")
    check_gradient(tmp_path / "palette.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_brightness(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(path)
    check_gradient(path)


def test_training_and_calibration_read_deep_grey_alike(tmp_path):
    path = tmp_path / "dark.png"
    Image.fromarray(GRADIENT.astype(np.uint16) * 100).save(path)
    np.testing.assert_array_equal(read_image(path), read_field(path).pixels)
    assert read_image(path).max() == 255 * 100 >> 8


def test_an_image_of_real_numbers_is_refused_by_name(tmp_path):
    path = tmp_path / "real.tif"
    Image.fromarray(GRADIENT.astype(np.float32) / 255).save(path)
    with pytest.raises(DataError, match=r"real\.tif"):
        read_image(path)


def test_a_truncated_jpeg_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "cut.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=r"cut\.jpg.*download it again"):
            read_image(path)


def test_a_missing_image_and_a_text_file_are_errors_that_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.png.*missing"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("this is no image")
    with pytest.raises(DataError, match=r"text\.png.*cannot be decoded"):
        read_image(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg", ".gif"])
def test_no_damage_to_a_file_is_more_than_a_data_error(tmp_path, suffix):
    path = tmp_path / f"damaged{suffix}"
    Image.fromarray(np.dstack([GRADIENT] * 3)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [whole[:n] for n in rng.integers(0, len(whole), 20)]
    for _ in range(20):
        noisy = np.frombuffer(whole, np.uint8).copy()
        noisy[rng.integers(0, len(noisy), 8)] = rng.integers(0, 256, 8)
        damaged.append(noisy.tobytes())
    complaints = []
    for content in damaged:
        path.write_bytes(content)
        try:
            assert read_image(path).shape[2] == 3
        except DataError as error:
            complaints.append(str(error))
    assert complaints
    assert all(path.name in text for text in complaints)


def test_a_decompression_bomb_is_a_data_error(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(path)


def test_an_image_is_decoded_once(tmp_path):
    path = write(tmp_path / "f.png", [], (32, 32))
    data = FieldDataset([field_of(path, [], (32, 32))], WBC, 32)
    first = data.image(0)[0]
    path.unlink()
    assert data.image(0)[0] is first


# --- batches -----------------------------------------------------------------------------------


def small_data(tmp_path, counts=(0, 2, 9), space=WBC, domain="d"):
    fields = []
    for number, count in enumerate(counts):
        boxes = [(i, i, i + 4, i + 6) for i in range(count)]
        path = write(tmp_path / f"{domain}{number}.png", boxes, (32, 24), background=200 + number)
        fields.append(
            field_of(path, boxes, (32, 24), str(number), f"p{number}", domain, space=space)
        )
    return fields


def test_every_batch_of_a_data_set_has_the_same_shapes(tmp_path):
    data = FieldDataset(small_data(tmp_path, space=LEUKEMIAATTRI), LEUKEMIAATTRI, 64)
    shapes = set()
    for indices in ([0, 1], [1, 2], [0, 0]):
        batch = data.labelled(indices)
        assert batch.targets.regions is None  # nobody carries what nobody needs
        tensors = dataclasses.astuple(batch.targets)[:-1]
        shapes.add((tuple(batch.images.shape), *(tuple(t.shape) for t in tensors)))
        for row, index in enumerate(indices):
            assert int(batch.targets.mask[row].sum()) == len(data.fields[index].labels)
    assert shapes == {((2, 3, 64, 64), (2, 12, 4), (2, 12), (2, 12, 7), (2, 12), (2, 14))}


def test_a_batch_carries_what_the_field_says(tmp_path):
    field = small_data(tmp_path, space=LEUKEMIAATTRI)[1]
    attributes = np.array([[2, 1, 0, -1, 1, 0, 1], [-1] * 7])
    field = dataclasses.replace(
        field, labels=np.array([5, -1]), attributes=attributes, labelled_classes=(1, 5)
    )
    batch = FieldDataset([field], LEUKEMIAATTRI, 64).labelled([0])
    assert batch.targets.labels[0, :3].tolist() == [5, -1, -1]
    assert batch.targets.attributes[0, :2].tolist() == attributes.tolist()
    assert batch.targets.classes[0].nonzero().squeeze(1).tolist() == [1, 5]
    assert batch.targets.boxes[0, 1].tolist() == [2, 2, 10, 14]
    assert batch.fill[0].tolist() == [201, 201, 201]


def test_a_target_batch_has_no_place_for_a_label(tmp_path):
    """Nothing but images, their fill and their place: what cannot be held cannot leak."""
    names = {f.name for f in dataclasses.fields(UnlabelledBatch)}
    assert names == {"images", "fill", "index"}
    label_fields = {f.name for f in dataclasses.fields(Targets)} | {"targets"}
    assert not names & label_fields
    data = FieldDataset(small_data(tmp_path), WBC, 64)
    batch = data.unlabelled([1, 2])
    assert not isinstance(batch, LabelledBatch)
    assert vars(batch).keys() == names
    # The images of two data sets that differ in labels alone are the same.
    bare = [
        dataclasses.replace(
            f,
            boxes=f.boxes[:0],
            labels=f.labels[:0],
            attributes=f.attributes[:0],
            labelled_classes=(),
        )
        for f in data.fields
    ]
    blind = FieldDataset(bare, WBC, 64).unlabelled([1, 2])
    for name in names:
        assert torch.equal(getattr(batch, name), getattr(blind, name))


# --- the order ---------------------------------------------------------------------------------


def epochs(length=7, batch_size=3, batches=4, seed=0, count=6):
    return [list(EpochSampler(length, batch_size, batches, seed, e)) for e in range(count)]


def test_the_order_depends_on_seed_and_epoch_alone():
    assert epochs() == epochs()
    np.random.default_rng(3).random()
    torch.manual_seed(7)
    again = EpochSampler(7, 3, 4, 0, 2)
    assert list(again) == list(again) == epochs()[2]
    assert epochs(seed=1) != epochs()
    assert epochs()[0] != epochs()[1]


@pytest.mark.parametrize(("length", "batch_size", "batches"), [(7, 3, 4), (1, 4, 2), (20, 2, 3)])
def test_every_field_comes_once_per_pass_across_epochs(length, batch_size, batches):
    parts = epochs(length, batch_size, batches, count=10)
    assert all(len(part) == batches for part in parts)
    assert all(len(batch) == batch_size for part in parts for batch in part)
    stream = [i for part in parts for batch in part for i in batch]
    passes = [stream[i : i + length] for i in range(0, len(stream), length)]
    for one in passes:
        if len(one) == length:
            assert sorted(one) == list(range(length))


def test_an_epoch_of_any_length_cuts_the_same_stream():
    fine = [i for part in epochs(batches=2, count=6) for batch in part for i in batch]
    coarse = [i for part in epochs(batches=6, count=2) for batch in part for i in batch]
    assert fine == coarse


def test_the_epoch_in_which_the_steps_end_is_shorter():
    whole = epochs(batches=4, count=3)
    parts = [EpochSampler(7, 3, 4, 0, epoch, steps=10) for epoch in range(3)]
    assert [len(part) for part in parts] == [4, 4, 2]
    assert [list(part) for part in parts] == [*whole[:2], whole[2][:2]]
    assert len(EpochSampler(7, 3, 4, 0, 5, steps=10)) == 4  # whoever goes on gets whole epochs


# --- DataModules -------------------------------------------------------------------------------


def modules(tmp_path, *, target_images=1.0, **parts):
    source = FieldIndex("s", tuple(small_data(tmp_path, (1, 2, 3, 1), domain="s")))
    target = FieldIndex("t", tuple(small_data(tmp_path, (2, 2, 2, 2), domain="t")))
    chosen = {"p0": "train", "p1": "train", "p2": "validation", "p3": "test"} | parts
    split = Split({f"patient:{p}": part for p, part in chosen.items()})
    settings = {"space": WBC, "how": 32, "trainer": Trainer(batch_size=2, epoch_steps=3)}
    return (
        DomainDataModule(source, split, **settings),
        AdaptationDataModule(source, target, split, target_images=target_images, **settings),
    )


def test_training_fields_are_the_training_patients_of_both_devices(tmp_path):
    plain, adapted = modules(tmp_path)
    assert plain.train_dataloader().keys() == {"source"}
    loaders = adapted.train_dataloader()
    assert loaders.keys() == {"source", "target"}
    for batch in loaders["target"]:
        assert type(batch) is UnlabelledBatch
    for batch in loaders["source"]:
        assert type(batch) is LabelledBatch
    seen = {f.key for f in adapted.target.fields}
    assert seen == {"t/p0/0", "t/p1/1"}
    assert {f.patient for f in adapted.parts["train"].fields} == {"p0", "p1"}
    assert [len(b.index) for b in plain.test_dataloader()] == [1]
    assert [f.patient for f in plain.parts["validation"].fields] == ["p2"]


def test_the_target_does_not_change_the_order_of_the_source(tmp_path):
    plain, adapted = modules(tmp_path)
    alone = [b.index.tolist() for b in plain.train_dataloader()["source"]]
    beside = [b.index.tolist() for b in adapted.train_dataloader()["source"]]
    assert alone == beside


@pytest.mark.parametrize(("share", "count"), [(1.0, 2), (0.5, 1), (0.01, 1)])
def test_a_step_may_see_fewer_images_of_the_target(tmp_path, share, count):
    plain, adapted = modules(tmp_path, target_images=share)
    loaders = adapted.train_dataloader()
    assert {len(batch.index) for batch in loaders["target"]} == {count}
    assert len(list(loaders["target"])) == len(list(loaders["source"]))
    alone = [b.index.tolist() for b in plain.train_dataloader()["source"]]
    assert [b.index.tolist() for b in loaders["source"]] == alone


def test_a_device_without_a_training_field_says_so(tmp_path):
    nobody = {"p0": "test", "p1": "test"}
    plain, adapted = modules(tmp_path, **nobody)
    with pytest.raises(DataError, match=r"s: no field to train on.*data\.split"):
        plain.train_dataloader()
    with pytest.raises(DataError, match=r"t: no image to adapt to"):
        adapted.train_dataloader()
