"""The loader: the same batches from any number of workers and ranks; errors come to the trainer in time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from storage import Store, create_store
from tests.training.data.test_sample_reader import CONFIG, make_store
from training.data.batches import Batch
from training.data.loader import SampleLoader, Share, make_loader
from training.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("loader") / "store")


def load(
    store: Store, num_samples: int = 10, *, batch_size: int = 2, num_workers: int = 0, **share: int
) -> SampleLoader:
    return make_loader(
        store.path,
        store.scan_ids,
        CONFIG,
        Share(batch_size=batch_size, num_samples=num_samples, **share),
        seed=5,
        num_workers=num_workers,
    )


def same(first: Batch, second: Batch) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(first)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@given(
    first=st.integers(0, 100),
    num=st.integers(0, 60),
    batch=st.integers(1, 5),
    ranks=st.integers(1, 5),
)
def test_ranks_share_all_samples_once_and_evenly(first: int, num: int, batch: int, ranks: int) -> None:
    shares = [
        Share(first_sample=first, num_samples=num, batch_size=batch, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    taken = [[share.batch(number) for number in range(len(share))] for share in shares]
    together = sorted(index for batches in taken for one in batches for index in one)
    assert together == list(range(first, first + num))
    for number in range(num // (batch * ranks)):  # of whole lots each rank takes a whole batch
        begin = first + number * batch * ranks
        assert [share.batch(number) for share in shares] == [
            range(begin + rank * batch, begin + (rank + 1) * batch) for rank in range(ranks)
        ]
    last = [sum(map(len, batches)) for batches in taken]
    assert max(last) - min(last) <= 1
    assert all(len(one) > 0 for batches in taken for one in batches)


def test_workers_ranks_and_a_stop_change_no_sample(store: Store) -> None:
    alone = list(load(store))
    assert [batch.sample_indices.tolist() for batch in alone] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    for num_workers in (1, 2):
        assert all(map(same, load(store, num_workers=num_workers), alone))
    assert all(map(same, load(store, 6, first_sample=4), alone[2:]))
    ranks = [list(load(store, batch_size=1, rank=rank, world_size=2)) for rank in (0, 1)]
    for number, batch in enumerate(alone):
        for rank in (0, 1):
            alike = ranks[rank][number]
            assert alike.scan_ids == batch.scan_ids[rank : rank + 1]
            assert torch.equal(alike.target_words, batch.target_words[rank : rank + 1])
            assert torch.equal(alike.reference, batch.reference[rank : rank + 1])


def test_a_batch_holds_what_it_says(store: Store) -> None:
    batch = next(iter(load(store, 3, batch_size=3)))
    assert len(batch) == 3
    assert batch.reference_codes.shape == (3, 1, *CONFIG.cut_zyx)
    assert batch.target_words.shape == (3, *CONFIG.cut_zyx)
    assert batch.target_words.dtype == batch.target_codes.dtype == torch.int16
    assert batch.target.dtype == torch.float32
    assert (batch.num_masks, batch.crop_zyx, batch.seed) == (4, (16, 24, 20), 5)
    assert same(batch.to("cpu"), batch)


def test_an_iteration_leaves_the_global_generators_alone(store: Store) -> None:
    before = torch.random.get_rng_state()
    loader = load(store, 4)
    assert all(map(same, loader, loader))  # and can be repeated
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_damaged_scan_is_named_by_the_trainers_process(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    path = store.scan("large").path / "labels" / "atoms" / "0" / "c.0.0.0"
    path.write_bytes(b"")
    messages, batches = [], []
    for num_workers in (0, 1):
        batches.append([])
        with pytest.raises(DataError, match="needs scan large, which cannot be read") as caught:
            batches[-1].extend(load(store, 40, num_workers=num_workers))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert all(map(same, *batches))  # those before it came
    assert len(batches[0]) == len(batches[1])


def test_a_killed_worker_is_an_error_and_a_job_that_ends_is_not(store: Store) -> None:
    before = multiprocessing.active_children()
    iterator = iter(load(store, 2000, num_workers=1))
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - set(before)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)  # told to every process of a job; the trainer decides
    for _ in range(8):
        next(iterator)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a worker of the data loader died.*then resume"):
        list(iterator)


def test_an_empty_store_and_no_store_are_errors_at_once(tmp_path: Path) -> None:
    empty = create_store(tmp_path / "store", spacing_mm=1.5, config={})
    with pytest.raises(DataError, match="the store is empty"):
        load(empty)
    with pytest.raises(DataError, match="no store here"):
        make_loader(tmp_path / "no", ["a"], CONFIG, Share(batch_size=1, num_samples=1), seed=0)


def test_numbers_that_do_not_go_together_are_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="rank must be 0 to 1, got 2"):
        load(store, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="batch_size at least 1"):
        load(store, batch_size=0)
