"""The comparison on a set: parts of the labels are nested and even, and it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.adrenal as script
from tests.training.blob_store import make_blob_store
from training.classification.heads import export_encoder
from training.classification.labels import ClassTable, split_classes, table_of_store
from training.network.iris import Iris
from training.network.sealing import weights_digest
from training.network.weights import load_checkpoint


def table_of(classes: list[int]) -> ClassTable:
    return ClassTable(
        source="x",
        ids=tuple(map(str, range(len(classes)))),
        classes=("0", "1"),
        targets=np.eye(2, dtype=np.float32)[classes],
        multi_label=False,
        splits=("train",) * len(classes),
    )


def test_a_part_of_the_labels_has_its_share_of_each_class_and_lies_in_every_larger_part() -> None:
    table = table_of([0] * 200 + [1] * 60)
    parts = [script.drawn_part(table, range(260), percent, 3) for percent in script.FRACTIONS]
    counts = [[int(table.targets[list(part), k].sum()) for k in (0, 1)] for part in parts]
    assert counts == [[2, 2], [10, 3], [40, 12], [200, 60]]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
    assert script.drawn_part(table, range(260), 5.0, 4) != parts[1]


def test_only_the_arms_of_all_weights_take_the_steps() -> None:
    steps = {name: script.settings_of(arm, 1, 7).optimisation.num_steps for name, arm in script.ARMS.items()}
    assert (steps["full"], steps["full-scratch"]) == (7, 7)
    assert steps["frozen-attention"] > 7
    assert script.settings_of(script.ARMS["full-scratch"], 1, 7).from_scratch
    assert not script.settings_of(script.ARMS["frozen-attention"], 1, 7).from_scratch


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.long
def test_finished_cells_are_kept_and_the_table_has_every_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_blob_store(tmp_path / "store")
    monkeypatch.setattr(script, "prepare", lambda *_: store)
    torch.manual_seed(0)
    checkpoint = tmp_path / "net.safetensors"
    export_encoder(checkpoint, Iris((4, 8, 16, 16, 16), 1))
    names = ["frozen-linear", "drawn-linear", "full-scratch"]
    arguments = ["set.npz", str(checkpoint), str(tmp_path / "out"), "--fractions", "20", "--seeds", "0"]
    arguments += ["--steps", "2", "--arms"]

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was done again")

    (tmp_path / "out").mkdir()
    script.main(script.parse([*arguments, *names[:2]]))
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    monkeypatch.setattr(script, "encode", fail)
    script.main(script.parse([*arguments, *names]))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: results["cells"][name] for name in first["cells"]} == first["cells"]
    assert [row["arm"] for row in results["rows"]] == names
    table = table_of_store(store)
    part = script.drawn_part(table, split_classes(table).train, 20.0, 0)
    assert {row["num_train"] for row in results["rows"]} == {len(part)} == {4}
    linear = results["cells"]["frozen-linear-20-seed0"]
    drawn = results["cells"]["drawn-linear-20-seed0"]
    assert linear["encoder"] == weights_digest(load_checkpoint(checkpoint).encoder)
    assert drawn["encoder"] == weights_digest(script.drawn_net(load_checkpoint(checkpoint), 0).encoder)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "20 % (4 scans)" in text
    assert all(script.ARMS[name].title in text for name in names)


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
