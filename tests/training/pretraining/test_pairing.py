"""Regions of two phantoms that are the same: found where they are, made once, trained on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from storage import Store, commit_scan, finish, open_store
from storage.reading import IndexEntry
from tests.training.phantom_store import make_phantom_store, phantom_record
from training.data import file_name, read_pairs
from training.inference import Registration
from training.pretraining import choose_pairs, make_pairs, paired_regions, pairing

IDS = ("phantom-0", "phantom-1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_phantom_store(tmp_path_factory.mktemp("pairing") / "store", num_scans=3)


def entries(store: Store, **changes: Mapping[str, str]) -> dict[str, IndexEntry]:
    """The index, with a value changed for some scans."""
    found = dict(store.entries)
    for name, values in changes.items():
        for scan_id, value in values.items():
            found[scan_id] = replace(found[scan_id], **{name: value})
    return found


def test_the_structures_of_a_phantom_are_found_in_another(store: Store) -> None:
    found = paired_regions(store, *IDS)
    first, second = (store.scan(name) for name in IDS)
    of_first = dict(zip(*found.proposals.tolist(), strict=True))
    assert len(of_first) == len(found.overlaps) >= 12
    # A phantom's first proposals are body, organ, lesion, lung, bone and plate, in this order, in each.
    large = [k for k in range(5) if first.proposals.voxels[k] > 300]
    assert len(large) >= 3
    assert [of_first.get(k) for k in large] == large
    for one, other in found.proposals.T[:40]:
        places = [np.argwhere(scan.masks([k])[0]).mean(axis=0) for scan, k in ((first, one), (second, other))]
        assert np.abs(places[0] - places[1]).max() < 6  # voxels; phantoms are moved by 3 mm at most


def test_images_that_show_nothing_alike_have_no_pairs(tmp_path: Path) -> None:
    shape = (14, 20, 16)
    small = make_phantom_store(tmp_path / "store", num_scans=1, shape=shape)
    drawn = phantom_record("phantom-9", seed=9, shape=shape)
    noise = np.random.default_rng(0).integers(-900, 400, shape).astype(np.int16)
    atoms = np.random.default_rng(1).integers(0, 8, shape).astype(np.uint16)
    commit_scan(small.path, replace(drawn, image=noise, atoms=(atoms,), **_eight_atoms(atoms)))
    finish(small.path)
    assert len(paired_regions(open_store(small.path), "phantom-0", "phantom-9").overlaps) < 12


def _eight_atoms(atoms: np.ndarray) -> dict[str, object]:
    from tests.storage.drawn_record import measure_run

    orders = (np.arange(8, dtype=np.uint16)[None],)
    table = np.array([measure_run((atoms,), orders, 0, k, k + 1) for k in range(8)], dtype=np.int32)
    return {"orders": orders, "table": table, "scores": np.linspace(1, 0, 8, dtype=np.float32)}


def test_pairs_are_of_other_cases_of_one_data_set_and_modality(store: Store) -> None:
    names = store.scan_ids
    assert choose_pairs(store.entries) == [(a, b) for a in names for b in names if a < b]
    assert choose_pairs(entries(store, case=dict.fromkeys(names, "one"))) == []
    assert choose_pairs(entries(store, modality={names[0]: "mr"})) == [(names[1], names[2])]
    assert choose_pairs(entries(store, dataset={names[2]: "x"})) == [(names[0], names[1])]


def test_few_partners_are_chosen_alike_and_each_pair_once(store: Store) -> None:
    entry = store.entries["phantom-0"]
    many = {name: replace(entry, scan_id=name) for name in (f"scan-{k:02d}" for k in range(30))}
    chosen = choose_pairs(many, partners=2)
    assert 30 <= len(chosen) <= 60
    assert len({frozenset(pair) for pair in chosen}) == len(chosen)
    assert {name for pair in chosen for name in pair} == set(many)
    fewer = choose_pairs(many, partners=2, most=10)
    assert len(fewer) == 10
    assert set(fewer) < set(chosen)
    more = choose_pairs({**many, "scan-99": replace(entry, scan_id="scan-99")}, partners=2)
    assert len(set(chosen) & set(more)) >= 0.8 * len(chosen)  # another scan changes few pairs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans that lie alike are not registered."""

    def as_they_lie(image: object, region: object, labels: np.ndarray, target: object) -> Registration:
        return Registration(agreement=0.9, labels=labels)

    monkeypatch.setattr(pairing, "register_labels", as_they_lie)


@pytest.mark.usefixtures("quick")
def test_made_once_and_again_only_what_is_damaged_or_out_of_date(store: Store, tmp_path: Path) -> None:
    own = tmp_path / "store"
    shutil.copytree(store.path, own)
    folder = tmp_path / "pairs"
    wanted = choose_pairs(store.entries)
    first = list(make_pairs(own, folder, wanted))
    assert [(one.kept, one.error) for one in first] == [(False, "")] * 3
    assert all(one.is_used and one.agreement == 0.9 for one in first)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(one.kept for one in make_pairs(own, folder, wanted))
    (folder / file_name(*wanted[0])).write_bytes(b"x")
    again = list(make_pairs(own, folder, wanted))
    assert sorted(one.kept for one in again) == [False, True, True]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    changed = phantom_record("phantom-2", seed=17)
    commit_scan(own, changed, replace=True)
    finish(own)
    anew = {(one.reference, one.target): one.kept for one in make_pairs(own, folder, wanted)}
    assert anew == {pair: "phantom-2" not in pair for pair in wanted}
    assert (
        read_pairs(folder / file_name(*wanted[-1])).digests[1] == open_store(own).entries["phantom-2"].digest
    )


@pytest.mark.long
def test_several_processes_write_the_same_bytes(tmp_path: Path) -> None:
    small = make_phantom_store(tmp_path / "store", num_scans=3, shape=(12, 16, 14))
    wanted = choose_pairs(small.entries)[:2]
    for name, workers in (("one", 1), ("two", 2)):
        assert not any(one.error for one in make_pairs(small.path, tmp_path / name, wanted, workers=workers))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_scan_that_cannot_be_read_is_told_and_the_others_go_on(store: Store, tmp_path: Path) -> None:
    own = tmp_path / "store"
    shutil.copytree(store.path, own)
    wanted = choose_pairs(store.entries)
    shutil.rmtree(next((own / "scans").glob("**/phantom-1")))
    found = {(one.reference, one.target): one for one in make_pairs(own, tmp_path / "three", wanted)}
    for pair, one in found.items():
        assert bool(one.error) == ("phantom-1" in pair)
    assert [path.name for path in (tmp_path / "three").iterdir()] == [file_name("phantom-0", "phantom-2")]


@pytest.mark.usefixtures("quick")
def test_from_the_command_to_a_training_that_draws_them(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, run = tmp_path / "pairs", tmp_path / "run"
    assert main(["pair", str(store.path), str(pairs)]) == 0
    told = capsys.readouterr().out
    assert "pairs of scans" in told
    assert f"--pairs {pairs}" in told.replace("\n", "")
    settings = tmp_path / "c.toml"
    settings.write_text(
        "[model]\nchannels = [2, 2, 2, 2, 4]\n"
        "[data]\nholdout_fraction = 0.0\nmax_window_voxels = 8192\nearly_fraction = 0.0\n"
        "min_mask_voxels = 8\nearly_window_voxels = 0\n[optimisation]\nnum_steps = 2\n"
        "[run]\nnum_workers = 0\nevaluate_every = 0\ndraw_every = 0\n"
    )
    begin = ["pretrain", str(store.path), str(run), "--recipe", "whole", "--config", str(settings)]
    assert main([*begin, "--pairs", str(pairs), "--device", "cpu"]) == 0
    assert "pairs_digest" in (run / "config.toml").read_text()
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--pairs", "pairs"], ["--recipe", "whole", "--config", "c.toml", "--pairs", "pairs"]):
        resumed = ["pretrain", str(store.path), str(run), "--resume", *more, "--device", "cpu"]
        assert main(resumed) == 0, more
    shutil.rmtree(pairs)
    begin[2] = str(tmp_path / "another")
    assert main([*begin, "--pairs", str(pairs), "--device", "cpu"]) == 2
    assert "mass pair" in capsys.readouterr().err


def test_a_store_without_two_alike_scans_is_told(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = make_phantom_store(tmp_path / "alone", num_scans=1)
    assert main(["pair", str(alone.path), str(tmp_path / "pairs")]) == 2
    assert "nothing to pair" in capsys.readouterr().err
