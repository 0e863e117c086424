"""Which CUDA device each process of `mass prepare --workers N` computes on."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from commands.prepare import cluster
from commands.prepare.work import Options


@pytest.mark.parametrize(
    ("device", "visible", "count", "expected"),
    [
        ("gpu", "", 2, ("0", "1")),
        ("auto", "", 1, ("0",)),
        ("gpu", " 3, 5", 2, ("3", "5")),
        ("gpu", "GPU-1a,GPU-2b,-1,0", 2, ("GPU-1a", "GPU-2b")),  # CUDA stops at the first that is none
        ("auto", "", 0, ()),
        ("cpu", "0,1", 2, ()),
    ],
)
def test_workers_share_the_devices_that_this_process_sees(
    device: Literal["auto", "cpu", "gpu"],
    visible: str,
    count: int,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "num_gpus", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cluster.cards_of(Options(workers=4, device=device)) == expected


def test_each_worker_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    script: dict[str, Any] = {}
    exec(cluster.ON_A_CARD.format(cards=("3", "5")), script)
    taken = []
    for number in range(5):
        script["dask_setup"](SimpleNamespace(name=number))
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["3", "5", "3", "5", "3"]


@pytest.mark.parametrize("count", [0, 2])
def test_processes_of_a_machine_without_cuda_devices_are_not_told_of_any(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "num_gpus", lambda: count)
    runner = cluster.task_runner(Options(workers=2))
    preloads = runner.cluster_kwargs["preload"]
    assert preloads[0] == cluster.ON_INTERRUPT
    assert len(preloads) == 1 + bool(count)
