"""The comparison of the GPU's path with the CPU's, with the GPU's stand-in."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline.compute import backend
from storage import commit_scan, create_store, finish
from tests.pipeline import host_cuda, strict_cupy
from tests.pipeline.drawn_proposals import COARSE, patient, patient_proposals
from tests.pipeline.drawn_regions import CPU
from tests.storage.drawn_record import draw_record


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))  # it is a script
    return importlib.import_module("gpu")


def test_one_voxel_or_name_that_differs_is_seen(gpu: ModuleType) -> None:
    made = patient_proposals(grid=COARSE)
    assert gpu.same(made, replace(made, scores=made.scores.copy()))
    atoms = made.atoms[0].copy()
    atoms[3, 4, 5] += 1
    assert not gpu.same(made, replace(made, atoms=(atoms,)))
    assert not gpu.same(made, replace(made, sources=(*made.sources[:-1], "other")))


@pytest.fixture
def store(gpu: ModuleType, tmp_path: Path) -> Path:
    """One scan, with the proposals that the CPU makes of it with the default settings."""
    made = volume_of(gpu).proposals(CPU)
    record = replace(
        draw_record("scan"),
        image=volume_of(gpu).image,
        scale=1.0,
        offset=0.0,
        labels=(),
        spacing_zyx_mm=COARSE[1],
        attributes={"intensity": {"low": -991.0, "high": 500.0, "mean": 0.0, "std": 1.0, "unit": "HU"}},
        atoms=made.atoms,
        orders=made.orders,
        table=made.table,
        scores=made.scores,
        sources=made.sources,
    )
    path = create_store(tmp_path / "store", spacing_mm=1.5, config={}).path
    commit_scan(path, record)
    finish(path)
    return path


def volume_of(gpu: ModuleType) -> Any:
    return gpu.Volume(
        name="scan",
        image=np.clip(patient(COARSE).image, -991, 500).astype(np.int16),
        scale=1.0,
        offset=0.0,
        low=-991.0,
        high=500.0,
        unit="HU",
        spacing_zyx_mm=COARSE[1],
    )


@pytest.mark.long
def test_a_store_is_compared_scan_by_scan(
    gpu: ModuleType, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not host_cuda.COMPILER:
        pytest.skip("no C++ compiler for the CUDA kernels")
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr(backend, "gpu_is_at_hand", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(store), "--scans", "1", "--edge", "24", "--threads", "2"])
    gpu.main()
    table = capsys.readouterr().out
    assert "| yes | yes |" in table
    assert " at 24^3 |" in table
    assert "| atoms |" in table


def test_without_a_gpu_it_says_so(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "gpu_is_at_hand", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "STORE"])
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main()


def test_a_stretched_scan_is_the_same_every_time(gpu: ModuleType) -> None:
    volume = volume_of(gpu)
    one, other = gpu.stretched(volume, 32), gpu.stretched(volume, 32)
    assert one.image.shape == (32, 32, 32)
    np.testing.assert_array_equal(one.image, other.image)
    assert one.proposals(CPU).table.shape[0] > 0
