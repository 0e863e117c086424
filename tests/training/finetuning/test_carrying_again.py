"""`mass carry` in a folder and a store that have changed, with several modalities, or twice at once."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from storage import commit_scan, finish, folder_lock, open_store
from tests.training.finetuning.test_carrying import LABEL, as_it_lies, make_store
from tests.training.finetuning.test_run import TINY, tuned
from tests.training.phantom_store import phantom_record
from training.engine.run_folder import to_toml
from training.errors import DataError
from training.finetuning import carrying, scans
from training.finetuning.carrying import carry_labels, plan_carrying
from training.finetuning.scans import FinetuneTaskConfig, choose_scans, count_scans

FROM_0 = FinetuneTaskConfig(scans=("phantom-0",))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "carry_structures", as_it_lies)


def test_a_scan_that_has_got_a_label_of_its_own_is_left_out_and_the_others_are_trained_on(
    tmp_path: Path,
) -> None:
    store, folder = make_store(tmp_path / "store"), tmp_path / "carried"
    list(carry_labels(store.path, folder, plan_carrying(store, FROM_0)))
    commit_scan(store.path, replace(phantom_record("phantom-1", seed=1), case="case 1"), replace=True)
    finish(store.path)
    store = open_store(store.path)
    assert "phantom-1" not in plan_carrying(store, FROM_0).targets
    chosen = choose_scans(store, FinetuneTaskConfig(carried=str(folder)))
    assert (chosen.carried, chosen.stale) == (("phantom-2", "phantom-3"), ("phantom-1",))

    list(carry_labels(store.path, folder, plan_carrying(store, FROM_0, targets=["phantom-1"])))
    chosen = choose_scans(store, FinetuneTaskConfig(carried=str(folder)))
    assert (chosen.carried, chosen.stale) == (("phantom-1", "phantom-2", "phantom-3"), ())


def test_a_modality_whose_labelled_scans_lack_a_structure_is_not_carried_over_to(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    record = phantom_record("phantom-5", seed=5)
    (label,) = record.labels
    first = int(np.unique(label.array)[1])
    only_first = replace(label, array=np.where(label.array == first, label.array, 0).astype(np.uint8))
    commit_scan(store.path, replace(record, modality="pet", case="case 5", labels=(only_first,)))
    other = phantom_record("phantom-6", seed=6)
    commit_scan(store.path, replace(other, modality="pet", case="case 6", labels=()))
    finish(store.path)
    store = open_store(store.path)
    with pytest.raises(
        DataError, match=r"no labelled PET scan of these shows .*teach that it is absent.*--values"
    ):
        plan_carrying(store, FinetuneTaskConfig())
    assert plan_carrying(store, FinetuneTaskConfig(), targets=["phantom-1"]).targets == ("phantom-1",)
    all_show = FinetuneTaskConfig(values=(first,))
    assert "phantom-6" in plan_carrying(store, all_show).targets


def test_a_second_command_in_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, folder = make_store(tmp_path / "store"), tmp_path / "carried"
    folder.mkdir()
    command = ["carry", str(store.path), str(folder), "--scans", "phantom-0"]
    with folder_lock(folder):
        assert main(command) == 2
    assert "another command carries labels into this folder" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert main(command) == 0


def test_labelled_scans_are_counted_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store", labelled=range(5))
    monkeypatch.setattr(scans, "find_structures", None)
    assert count_scans(store, FinetuneTaskConfig(holdout_fraction=0.0)) == 5
    assert (
        count_scans(store, FinetuneTaskConfig(label=LABEL, holdout_fraction=0.0, exclude=("phantom-1",))) == 4
    )


@pytest.mark.usefixtures("one_thread")
def test_the_printed_command_trains_and_counts_all_maps_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = make_store(tmp_path / "a store")
    carry = ["carry", str(store.path), "carried maps", "--scans", "phantom-0", "--held-out", "phantom-4"]
    assert main([*carry, "--to", "phantom-1", "phantom-2"]) == 0
    capsys.readouterr()
    assert main([*carry, "--to", "phantom-3"]) == 0
    out = capsys.readouterr().out
    assert "3 of the 3 label maps in the folder" in out
    (line,) = [line for line in out.splitlines() if line.startswith("next: ")]
    settings = tmp_path / "c.toml"
    settings.write_text(to_toml(tuned(TINY, num_steps=1).values()))
    command = shlex.split(line.removeprefix("next: mass "))
    assert main([*command, "--config", str(settings), "--num", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "with carried labels, on 3: phantom-1, phantom-2, phantom-3" in out
    assert "on 1 scans not trained on" in out
