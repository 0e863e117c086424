"""Loads the batches of a run from a store, in this process or in worker processes.

    loader = make_loader("STORE", ids, DataConfig(), Share(batch_size=4, num_samples=400_000), seed=0)
    for batch in loader:
        views = augment(batch.to("cuda", non_blocking=True), AugmentationConfig())

Sample i of a run depends on the seed and i only, not on workers or ranks. Of every w * batch_size samples,
rank r of w takes the r-th batch_size samples. A resumed run starts at `first_sample`. The last samples, if
they are fewer, are divided so that ranks differ by at most one sample; a rank without samples has no batch.

*Workers* are started by a fork server (by spawn where there is none). They open scans themselves, and do not
read the index. They ignore SIGINT, and end 30 s after SIGTERM, so that the process that started them can save
first. If a scan cannot be read or a worker dies, that process gets a DataError at this batch within seconds.
If that process is killed, the workers end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from storage import Store, StorePath
from training.data.batches import Batch
from training.data.sample_reader import SampleReader
from training.data.sampling import DataConfig
from training.data.view_pairs import Sample
from training.errors import ConfigError, DataError

_SECONDS_TO_SAVE = 30
"""Time that workers keep running after SIGTERM, so that the trainer can finish its step and save.

Schedulers usually allow this much before they kill a job.
"""


SampleT = TypeVar("SampleT")
SampleT_co = TypeVar("SampleT_co", covariant=True)
BatchT = TypeVar("BatchT")


class SampleSource(Protocol[SampleT_co]):
    """Reads samples by number; it is pickled for workers, so it opens no file before the first read."""

    def read(self, index: int) -> SampleT_co:
        """Return sample `index` of the run, or raise DataError."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The samples of a run that one rank reads, batch by batch."""

    first_sample: int = 0
    """First sample number of all ranks; above 0 for a resumed run."""
    num_samples: int
    """Number of samples of all ranks together."""
    batch_size: int
    """Samples of one rank in a batch."""
    rank: int = 0
    """This rank, 0..world_size - 1."""
    world_size: int = 1
    """Number of ranks."""

    def __post_init__(self) -> None:
        if self.first_sample < 0 or self.num_samples < 0 or self.batch_size < 1:
            raise ConfigError(
                "first_sample and num_samples must be >= 0, batch_size at least 1, got "
                f"{self.first_sample}, {self.num_samples}, {self.batch_size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be 0 to {self.world_size - 1}, got {self.rank}")

    def __len__(self) -> int:
        full, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return full + (len(self._part(rest)) > 0)

    def batch(self, number: int) -> range:
        """Return the sample numbers of the rank's batch `number`, counted from 0."""
        together = self.batch_size * self.world_size
        part = self._part(min(together, self.num_samples - number * together))
        first = self.first_sample + number * together
        return range(first + part.start, first + part.stop)

    def _part(self, count: int) -> range:
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


class SampleLoader(Generic[BatchT]):
    """Iterates over the batches of a rank, in order; every iteration starts at the first batch."""

    def __init__(self, batches: BatchReader[Any, BatchT], *, num_workers: int, pin: bool) -> None:
        self._batches = batches
        self._num_workers = num_workers
        self._pin = pin

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[BatchT]:
        iterator = iter(self._loader())
        try:
            while (item := _next(iterator)) is not None:
                if isinstance(item, _Failure):
                    raise DataError(item.message)
                yield item
        finally:
            del iterator  # ends the workers now; a traceback might keep this frame alive

    def _loader(self) -> DataLoader[BatchT | _Failure]:
        workers = self._num_workers
        with warnings.catch_warnings():
            # More workers than CPU cores can be useful, because reading often waits for the disk.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return DataLoader(
                self._batches,
                batch_size=None,
                sampler=range(len(self._batches)),
                num_workers=workers,
                collate_fn=_identity,
                worker_init_fn=_start_worker if workers else None,
                multiprocessing_context=_context() if workers else None,
                pin_memory=self._pin,
                generator=torch.Generator(),  # otherwise it would draw from the global generator
            )


def make_loader(
    store: str | StorePath | Store,
    scan_ids: Sequence[str],
    config: DataConfig,
    share: Share,
    *,
    seed: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> SampleLoader[Batch]:
    """Return a loader of the batches of one rank.

    Args:
        store: The store, or its path or URL.
        scan_ids: Scans to train on (see `split_scans`).
        config: Which samples are drawn, and their sizes.
        share: Which samples, in batches of which size.
        seed: Seed of the run, >= 0.
        num_workers: Number of reading processes; 0 reads in this process.
        pin_memory: Whether batches are in page-locked memory, for training on a GPU.

    Raises:
        DataError: The store cannot be opened, is empty, or lacks a scan.
        ConfigError: A number is outside its range.
    """
    if num_workers:
        _start_fork_server()
    reader = SampleReader(store, scan_ids, config, seed=seed)
    batches = BatchReader(reader, partial(collate, config=config, seed=seed), share)
    return SampleLoader(batches, num_workers=num_workers, pin=pin_memory)


@dataclass(frozen=True)
class _Failure:
    """Message of a DataError in a worker; if raised there, it would arrive with the worker's traceback."""

    message: str


class BatchReader(Dataset["BatchT | _Failure"], Generic[SampleT, BatchT]):
    """Map-style data set of whole batches: batch number -> batch."""

    def __init__(
        self, reader: SampleSource[SampleT], collate: Callable[[Sequence[SampleT]], BatchT], share: Share
    ) -> None:
        self._reader = reader
        self._collate = collate
        self._share = share

    def __len__(self) -> int:
        return len(self._share)

    def __getitem__(self, number: int) -> BatchT | _Failure:
        try:
            samples = [self._reader.read(index) for index in self._share.batch(number)]
        except DataError as error:
            return _Failure(str(error))
        return self._collate(samples)


def collate(samples: Sequence[Sample], config: DataConfig, *, seed: int) -> Batch:
    """Return samples as one batch.

    Args:
        samples: Samples of equal shapes.
        config: Gives the number of masks and the crop size.
        seed: Seed of the run.
    """
    return Batch(
        reference_codes=stack([sample.cuts[0] for sample in samples])[:, None],
        target_codes=stack([sample.cuts[1] for sample in samples])[:, None],
        reference_words=stack([sample.words[0] for sample in samples]),
        target_words=stack([sample.words[1] for sample in samples]),
        scale=torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        offset=torch.tensor([sample.offset for sample in samples], dtype=torch.float32),
        padding_codes=torch.tensor([sample.padding_code for sample in samples], dtype=torch.int16),
        sample_indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        scan_ids=tuple(sample.scan_id for sample in samples),
        seed=seed,
        num_masks=config.masks_per_sample,
        crop_zyx=config.crop_zyx,
    )


def stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Return arrays of one shape as one tensor, along a new first axis."""
    return torch.from_numpy(np.stack(arrays))


def _next(iterator: Iterator[BatchT | _Failure]) -> BatchT | _Failure | None:
    try:
        return next(iterator, None)
    except (RuntimeError, EOFError, OSError) as error:  # the last two: it died while it sent a batch
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a worker of the data loader died ({error!r}). Most often memory ran out: use fewer workers or "
            "smaller batches, in a container enlarge /dev/shm; then resume"
        ) from error


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    # Schedulers send signals to every process of a job. The trainer handles them: it saves, then ends the
    # workers. SIGTERM must still end a worker, after a delay, because multiprocessing sends it at exit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_TO_SAVE))
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    # torch ends a worker when its parent dies. Here the parent is the fork server, which outlives the trainer
    # because it waits for its workers.
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.data.loader"])  # imports torch once, not once per worker
    return context


def _start_fork_server() -> None:
    """Let the fork server import its modules while this process reads the index."""
    if _context().get_start_method() == "forkserver":
        forkserver.ensure_running()
