"""Decoded images: the same pixels from memory, disk and file, within bounds, for many jobs."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import time
from functools import partial

import numpy as np
import pytest
import torch
from job_kit import metrics, run_in, weights
from PIL import Image

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Data, Domain
from da_leukemia.data import images
from da_leukemia.data.cache import read_cached
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.images import Disk, Memory, PixelFile, decode, open_store
from da_leukemia.data.preparation import Preparation
from da_leukemia.data.readers import DomainSource
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import WBC

SIZE = 96
HOW = Preparation(SIZE)
DEVICES = ("H_100X_C2", "L_100X_C2")
PICTURE = 3 * SIZE * SIZE + 3


@pytest.fixture
def settings(smears, tmp_path):
    """Return settings of the simulated devices with caches of their own."""
    domains = {name: Domain(format="leukemiaattri") for name in DEVICES}
    return partial(
        Data, root=str(smears), image_size=SIZE, domains=domains, cache_dir=str(tmp_path / "cache")
    )


def everything(data):
    """Return all batches of all devices under settings."""
    indexes, _ = read_experiment_data(data)
    store = open_store(data, list(indexes.values()), dict.fromkeys(indexes, HOW))
    found = []
    for index in indexes.values():
        fields = FieldDataset(list(index), WBC, HOW, store)
        batch = fields.labelled(range(len(fields)))
        found += [batch.images.clone(), batch.fill.clone(), batch.targets.boxes]
    return found


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def decodes(monkeypatch):
    """Count decoded files."""
    calls = []

    def counted(path, how):
        calls.append(path)
        return decode(path, how)

    monkeypatch.setattr(images, "decode", counted)
    return calls


# --- the same pixels ---------------------------------------------------------------------------


def test_every_store_gives_the_same_batches(settings, decodes):
    plain = everything(settings(image_cache="none"))
    count = len(decodes)
    assert same(everything(settings(image_cache="memory")), plain)
    assert same(everything(settings(image_cache="disk")), plain)
    assert len(decodes) == 3 * count
    assert same(everything(settings(image_cache="disk")), plain)
    assert len(decodes) == 3 * count  # a second job decodes nothing


def test_a_data_set_gives_the_same_pictures_from_any_store(smears, tmp_path):
    index = read_cached(DomainSource(DEVICES[0], smears), "leukemiaattri", WBC, None)
    file = PixelFile(tmp_path / "pixels.u8", len(index), (SIZE, SIZE))
    disk = Disk({f.image: (file, n) for n, f in enumerate(index)}, Memory())
    for store in (Memory(), disk, disk, Memory(0)):
        data = FieldDataset(list(index), WBC, HOW, store)
        for number, field in enumerate(index):
            picture = data.image(number)
            assert same(picture, decode(field.image, HOW))
            assert [t.dtype for t in picture] == [torch.uint8] * 2
    assert Disk({}, Memory()).picture(index.fields[0].image, HOW)  # a field without a place


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_training_is_bit_for_bit_the_same_with_any_store(make_job, tmp_path, cache):
    method = Method(components=[{"name": "adversarial"}])
    trained, scores, hashes = [], [], []
    for kind in ("memory", cache, cache):
        job = make_job(method, data={"image_cache": kind, "cache_dir": str(tmp_path / "cache")})
        folder = run_in(tmp_path / f"{kind}{len(trained)}", job)
        trained.append(weights(folder))
        scores.append(metrics(folder))
        hashes.append(job.hash)
    assert len(set(hashes)) == 1
    for other in trained[1:]:
        assert all(torch.equal(trained[0][k], other[k]) for k in other)
    assert scores[0] == scores[1] == scores[2]


def test_a_store_keeps_no_image_that_changed(settings, smears, tmp_path):
    path = tmp_path / "d" / "images"
    path.mkdir(parents=True)
    Image.fromarray(np.full((9, 9, 3), 100, np.uint8)).save(path / "a.png")
    (path.parent / "annotations.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [],'
        ' "categories": [{"id": 1, "name": "wbc"}]}'
    )
    data = settings(root=str(tmp_path), domains={"d": Domain()}, image_cache="disk")
    assert everything(data)[0].unique().tolist() == [100]
    time.sleep(0.02)
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(path / "a.png")
    assert everything(data)[0].unique().tolist() == [200]


# --- damage and company ------------------------------------------------------------------------


def pictures(count=5, seed=0):
    rng = np.random.default_rng(seed)
    images_ = rng.integers(0, 256, (count, 3, SIZE, SIZE), np.uint8)
    fills = rng.integers(0, 256, (count, 3), np.uint8)
    return [(torch.from_numpy(i), torch.from_numpy(f)) for i, f in zip(images_, fills, strict=True)]


def filled(path, count=5):
    file = PixelFile(path, count, (SIZE, SIZE))
    for number, picture in enumerate(pictures(count)):
        assert file.get(number) is None
        file.put(number, picture)
    return file


def test_a_filled_file_is_opened_without_copying(tmp_path):
    path = tmp_path / "pixels.u8"
    filled(path)
    assert path.stat().st_size == PixelFile(path, 5, (SIZE, SIZE)).length == 5 * (8 + PICTURE)
    file = PixelFile(path, 5, (SIZE, SIZE))
    for number, picture in enumerate(pictures()):
        assert same(file.get(number), picture)
        assert np.shares_memory(file.get(number)[0].numpy(), file._bytes)
    copy = pickle.dumps(file)
    assert len(copy) < 1000
    assert same(pickle.loads(copy).get(3), pictures()[3])


def test_a_damaged_picture_is_decoded_again(tmp_path):
    path = tmp_path / "pixels.u8"
    filled(path)
    with path.open("r+b") as file:
        file.seek(5 * 8 + 2 * PICTURE + 1234)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
        file.seek(5 * 8 + 3 * PICTURE)  # what a machine that lost power may leave
        file.write(bytes(PICTURE))
    found = PixelFile(path, 5, (SIZE, SIZE))
    assert [found.get(n) is None for n in range(5)] == [False, False, True, True, False]
    os.truncate(path, path.stat().st_size // 2)
    found = PixelFile(path, 5, (SIZE, SIZE))
    assert [found.get(n) is None for n in range(5)] == [False, False, True, True, True]
    found.put(4, pictures()[4])
    assert same(PixelFile(path, 5, (SIZE, SIZE)).get(4), pictures()[4])


def _fill_and_compare(path, start, answer):
    file, expected, read = PixelFile(path, 40, (SIZE, SIZE)), pictures(40), 0
    for step in range(400):
        number = (start + 7 * step) % 40
        found = file.get(number)
        if found is None:
            file.put(number, expected[number])
        else:
            read += 1
            if not same(found, expected[number]):
                answer.put("wrong pixels")
                return
    answer.put(read)


def test_jobs_fill_a_file_together_and_a_killed_one_does_no_harm(tmp_path):
    path = tmp_path / "pixels.u8"
    context = multiprocessing.get_context("fork")
    for round_ in range(5):
        path.unlink(missing_ok=True)
        answer = context.SimpleQueue()
        jobs = [
            context.Process(target=_fill_and_compare, args=(path, s, context.SimpleQueue()))
            for s in (0, 1)
        ]
        for job in jobs:
            job.start()
        time.sleep(0.01 * round_)
        jobs[1].kill()
        _fill_and_compare(path, 3, answer)
        for job in jobs:
            job.join(timeout=60)
        assert answer.get() != "wrong pixels"
        assert jobs[0].exitcode == 0
        full = PixelFile(path, 40, (SIZE, SIZE))
        assert all(same(full.get(n), p) for n, p in enumerate(pictures(40)))


# --- bounds ------------------------------------------------------------------------------------


def write_images(folder, count=4):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{n}.png" for n in range(count)]
    for n, path in enumerate(paths):
        Image.fromarray(np.full((10, 10, 3), n, np.uint8)).save(path)
    return paths


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (2 * PICTURE + 5, 2), (1 << 20, 4)])
def test_memory_is_bounded(tmp_path, decodes, limit, kept):
    paths = write_images(tmp_path)
    store = Memory(limit)
    for _ in range(2):
        for path in paths:
            store.picture(path, HOW)
    assert store.bytes == kept * PICTURE <= limit
    assert len(decodes) == 8 - kept


def test_the_windows_of_a_field_share_one_decoding_even_where_nothing_is_kept(tmp_path, decodes):
    store = Memory(0)
    for path in write_images(tmp_path):
        for _ in range(3):
            store.picture(path, HOW)
    assert len(decodes) == 4


def test_the_disk_bound_is_an_error_with_numbers_before_anything_is_decoded(settings):
    with pytest.raises(ConfigError, match=r"disk_cache_gb: 24 images .* need 0\.0 GB"):
        everything(settings(image_cache="disk", disk_cache_gb=23 * PICTURE / 2**30))
    with pytest.raises(ConfigError, match=r"data\.cache_dir"):
        everything(settings(image_cache="disk", cache_dir=""))


def test_files_of_other_experiments_make_room_the_longest_unused_first(settings, tmp_path):
    folder = tmp_path / "cache" / "images"
    folder.mkdir(parents=True)
    for age, name in ((300, "old"), (200, "older"), (400, "oldest"), (100, "new")):
        path = folder / f"{name}.u8"
        path.write_bytes(bytes(10 * PICTURE))
        os.utime(path, (time.time() - age, time.time() - age))
    needed = 24 * (PICTURE + 8)
    everything(settings(image_cache="disk", disk_cache_gb=(needed + 25 * PICTURE) / 2**30))
    left = {p.name for p in folder.iterdir() if p.name.startswith(("o", "n"))}
    assert left == {"older.u8", "new.u8"}
    everything(settings(image_cache="disk", disk_cache_gb=needed / 2**30))  # fits exactly
    assert len(list(folder.iterdir())) == 2
    assert sum(p.stat().st_size for p in folder.iterdir()) == needed


def test_a_full_disk_costs_time_and_is_said_once(settings, monkeypatch, caplog):
    plain = everything(settings(image_cache="none"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        assert same(everything(settings(image_cache="disk")), plain)
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_folder_that_cannot_be_made_costs_time(settings, tmp_path, caplog):
    plain = everything(settings(image_cache="none"))
    (tmp_path / "cache" / "images").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert same(everything(settings(image_cache="disk")), plain)
    assert len(caplog.records) == 1


def test_an_unreadable_image_is_the_same_error_from_every_store(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    file = PixelFile(tmp_path / "pixels.u8", 1, (SIZE, SIZE))
    for store in (Memory(), Memory(0), Disk({tmp_path / "text.png": (file, 0)}, Memory())):
        with pytest.raises(DataError, match=r"text\.png.*cannot be decoded"):
            store.picture(tmp_path / "text.png", HOW)
