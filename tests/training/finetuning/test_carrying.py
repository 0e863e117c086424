"""Labels carried over to scans without labels: right, kept, refused where they must be, and trained on."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from storage import Store, commit_scan, create_store, finish, open_store
from tests.training.finetuning.test_run import TINY, tuned
from tests.training.phantom_store import phantom_record
from training.engine.run_folder import to_toml
from training.errors import ConfigError, DataError
from training.finetuning import carrying
from training.finetuning.carried_labels import (
    CarriedMaps,
    file_name,
    read_carried,
    read_carried_table,
)
from training.finetuning.carrying import carry_labels, plan_carrying
from training.finetuning.labelled_samples import LabelledDataConfig, LabelReader
from training.finetuning.scans import FinetuneTaskConfig, choose_scans
from training.inference import Carried, Reference, Structure

LABEL = "structures"


def make_store(folder: Path, *, labelled: Sequence[int] = (0, 4), num_scans: int = 5) -> Store:
    """Phantoms of which only some have labels; cases are pairs of scans, of 2 and 3 the same."""
    create_store(folder, spacing_mm=1.5, config={})
    for number in range(num_scans):
        record = phantom_record(f"phantom-{number}", seed=number)
        case = "case 2 and 3" if number in (2, 3) else f"case {number}"
        labels = record.labels if number in labelled else ()
        commit_scan(folder, replace(record, case=case, labels=labels))
    finish(folder)
    return open_store(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("carrying") / "store")


def as_it_lies(
    references: Sequence[Reference], structures: Sequence[Structure], target: np.ndarray
) -> Carried:
    """In place of a registration, which takes seconds: the masks of the first reference as they lie."""
    masks = np.stack([part.mask(references[0].labels) for part in structures]).astype(np.float32)
    confidences = tuple(0.4 + 0.2 * k for k in range(len(structures)))
    return Carried(probabilities=masks, agreement=0.9, warped=target, confidences=confidences)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "carry_structures", as_it_lies)


# ---------------------------------------------------------------- which scans


def test_labels_go_from_labelled_scans_to_all_others_that_are_not_held_out(store: Store) -> None:
    plan = plan_carrying(store, FinetuneTaskConfig(values=(1, 3)))
    assert sorted(plan.question.references) == ["phantom-0", "phantom-4"]
    assert plan.question.names == {1: "organ", 3: "lung"}
    assert plan.targets == ("phantom-1", "phantom-2", "phantom-3")
    one = plan_carrying(store, FinetuneTaskConfig(scans=("phantom-4",)))
    assert list(one.question.references) == ["phantom-4"]
    assert one.targets == plan.targets, "a labelled scan needs none"
    named = plan_carrying(store, FinetuneTaskConfig(scans=("phantom-4",)), targets=("phantom-0",))
    assert named.targets == ("phantom-0",)
    left = plan_carrying(store, FinetuneTaskConfig(exclude=("phantom-2",)))
    assert left.targets == ("phantom-1", "phantom-3")


def test_fewer_targets_are_of_as_many_cases_as_possible_and_among_those_of_more(store: Store) -> None:
    for seed in range(4):
        config = FinetuneTaskConfig(scan_seed=seed)
        two, one = (plan_carrying(store, config, most=most).targets for most in (2, 1))
        assert set(one) < set(two)
        assert {"phantom-2", "phantom-3"} != set(two)


def test_no_more_than_five_labelled_scans_are_registered_if_none_are_named(tmp_path: Path) -> None:
    many = make_store(tmp_path / "store", labelled=range(7), num_scans=8)
    plan = plan_carrying(many, FinetuneTaskConfig())
    assert len(plan.question.references) == 5
    assert len(plan_carrying(many, FinetuneTaskConfig(num_scans=7)).question.references) == 7


def test_a_scan_of_a_case_that_is_held_out_is_no_target(tmp_path: Path) -> None:
    own = make_store(tmp_path / "store", labelled=(0, 3))
    plan = plan_carrying(own, FinetuneTaskConfig(), kept_out=("phantom-2",))
    assert list(plan.question.references) == ["phantom-0"], "phantom-3 is of the case of phantom-2"
    assert plan.targets == ("phantom-1", "phantom-4")
    with pytest.raises(DataError, match="'phantom-3' is excluded, or of a case that is held out"):
        plan_carrying(own, FinetuneTaskConfig(), kept_out=("phantom-2",), targets=("phantom-1", "phantom-3"))
    with pytest.raises(ConfigError, match="'phantom-3', or another of its case, is to be carried from"):
        plan_carrying(own, FinetuneTaskConfig(scans=("phantom-3",)), kept_out=("phantom-2",))


def test_a_scan_is_carried_to_once_and_only_if_it_is_of_the_modality(tmp_path: Path) -> None:
    own = make_store(tmp_path / "store")
    twice = plan_carrying(own, FinetuneTaskConfig(), targets=("phantom-1", "phantom-2", "phantom-1"))
    assert twice.targets == ("phantom-1", "phantom-2")
    other = replace(phantom_record("phantom-5", seed=5), modality="pet", labels=())
    commit_scan(own.path, other)
    finish(own.path)
    own = open_store(own.path)
    assert "phantom-5" not in plan_carrying(own, FinetuneTaskConfig()).targets
    with pytest.raises(DataError, match="'phantom-5' is PET, the labelled scans are"):
        plan_carrying(own, FinetuneTaskConfig(), targets=("phantom-5",))


def test_what_cannot_be_carried_is_said(store: Store, phantom_store: Store) -> None:
    for targets, message in (
        (("phantom-9",), "no scan 'phantom-9'; did you mean"),
        (("phantom-0",), "'phantom-0' is one of the labelled scans"),
    ):
        with pytest.raises(DataError, match=message):
            plan_carrying(store, FinetuneTaskConfig(scans=("phantom-0",)), targets=targets)
    with pytest.raises(DataError, match="there is none to carry it over to"):
        plan_carrying(phantom_store, FinetuneTaskConfig())


# ---------------------------------------------------------------- carrying


def test_a_phantom_gets_the_structures_of_another(store: Store, tmp_path: Path) -> None:
    plan = plan_carrying(store, FinetuneTaskConfig(scans=("phantom-0",), values=(1, 3)), most=1)
    (done,) = carry_labels(store.path, tmp_path / "carried", plan)
    assert not done.error
    carried = read_carried(tmp_path / "carried" / file_name(done.scan_id))
    number = int(done.scan_id[-1])
    truth = phantom_record(done.scan_id, seed=number).labels[0].array
    for value in (1, 3):
        drawn, there = carried.labels() == value, truth == value
        assert 2 * (drawn & there).sum() / (drawn.sum() + there.sum()) > 0.75, value
    assert set(np.unique(carried.labels())) == {0, 1, 3}
    assert all(0 < number <= 1 for number in done.confidences.values())
    assert (tmp_path / "carried" / f"{done.scan_id}.png").exists()


@pytest.mark.usefixtures("quick")
def test_made_once_and_again_only_what_is_damaged_or_out_of_date(tmp_path: Path) -> None:
    own = make_store(tmp_path / "store")
    folder = tmp_path / "carried"

    def carried() -> dict[str, bool]:
        plan = plan_carrying(open_store(own.path), FinetuneTaskConfig(scans=("phantom-0",)))
        made = list(carry_labels(own.path, folder, plan))
        assert not any(one.error for one in made)
        return {one.scan_id: one.kept for one in made}

    assert carried() == dict.fromkeys(("phantom-1", "phantom-2", "phantom-3"), False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert carried() == dict.fromkeys(("phantom-1", "phantom-2", "phantom-3"), True)
    (folder / file_name("phantom-2")).write_bytes(b"PK damaged")
    (folder / "of-another-tool.npz").write_bytes(b"not ours")
    assert carried() == {"phantom-1": True, "phantom-2": False, "phantom-3": True}
    assert (folder / "of-another-tool.npz").read_bytes() == b"not ours"
    assert {name: (folder / name).read_bytes() for name in before} == before
    changed = replace(phantom_record("phantom-3", seed=17), labels=(), case="case 2 and 3")
    commit_scan(own.path, changed, replace=True)
    finish(own.path)
    assert carried() == {"phantom-1": True, "phantom-2": True, "phantom-3": False}
    commit_scan(own.path, replace(phantom_record("phantom-0", seed=18), case="case 0"), replace=True)
    finish(own.path)
    assert carried() == dict.fromkeys(("phantom-1", "phantom-2", "phantom-3"), False)


def test_a_scan_gets_the_labels_of_scans_of_its_own_modality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_store(tmp_path / "store")
    for number, labels in ((5, True), (6, False)):
        record = phantom_record(f"phantom-{number}", seed=number)
        commit_scan(
            own.path, replace(record, modality="pet", labels=record.labels if labels else (), case="p")
        )
    finish(own.path)
    own = open_store(own.path)
    shown: list[set[bytes]] = []

    def remember(references: Sequence[Reference], *rest: object) -> Carried:
        shown.append({one.image.tobytes() for one in references})
        return as_it_lies(references, *rest)

    monkeypatch.setattr(carrying, "carry_structures", remember)
    plan = plan_carrying(own, FinetuneTaskConfig(), targets=("phantom-1", "phantom-6"))
    assert not any(one.error for one in carry_labels(own.path, tmp_path / "carried", plan))
    images = [
        {own.scan(name).image(normalize=True).tobytes() for name in names}
        for names in (("phantom-0", "phantom-4"), ("phantom-5",))
    ]
    assert shown == images


@pytest.mark.usefixtures("quick")
def test_labels_of_other_scans_or_structures_go_into_another_folder(store: Store, tmp_path: Path) -> None:
    plan = plan_carrying(store, FinetuneTaskConfig(scans=("phantom-0",)))
    assert not any(one.error for one in carry_labels(store.path, tmp_path, plan))
    for config in (FinetuneTaskConfig(scans=("phantom-4",)), FinetuneTaskConfig(values=(1,))):
        with pytest.raises(ConfigError, match="labels here already"):
            list(carry_labels(store.path, tmp_path, plan_carrying(store, config)))
    with pytest.raises(DataError, match="something else here"):
        list(carry_labels(store.path, store.path, plan))


@pytest.mark.usefixtures("quick")
def test_a_scan_that_cannot_be_read_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    own = make_store(tmp_path / "store")
    plan = plan_carrying(own, FinetuneTaskConfig(scans=("phantom-0",)))
    shutil.rmtree(next((own.path / "scans").glob("**/phantom-2")))
    found = {one.scan_id: one.error for one in carry_labels(own.path, tmp_path / "carried", plan)}
    assert [scan_id for scan_id, error in found.items() if error] == ["phantom-2"]
    assert sorted(path.name for path in (tmp_path / "carried").glob("*.npz")) == [
        "phantom-1.npz",
        "phantom-3.npz",
    ]


@pytest.mark.long
def test_several_processes_write_the_same_bytes(store: Store, tmp_path: Path) -> None:
    plan = plan_carrying(store, FinetuneTaskConfig(scans=("phantom-0",), values=(1,)))
    for name, workers in (("one", 1), ("two", 2)):
        made = list(carry_labels(store.path, tmp_path / name, plan, workers=workers))
        assert [one.error for one in made] == [""] * 3
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# ---------------------------------------------------------------- training on them


@pytest.fixture
def carried(store: Store, tmp_path: Path, quick: None) -> Path:
    """Labels of phantom-0, carried over to the three phantoms without labels."""
    plan = plan_carrying(store, FinetuneTaskConfig(scans=("phantom-0",), values=(1, 3)))
    assert not any(one.error for one in carry_labels(store.path, tmp_path / "carried", plan))
    return tmp_path / "carried"


def test_confident_scans_are_trained_on_beside_the_labelled_ones(store: Store, carried: Path) -> None:
    chosen = choose_scans(store, FinetuneTaskConfig(carried=str(carried), values=(1, 3)))
    assert chosen.training == ("phantom-0",)
    assert chosen.carried == ("phantom-1", "phantom-2", "phantom-3")
    assert chosen.trained_on == ("phantom-0", "phantom-1", "phantom-2", "phantom-3")
    assert chosen.held_out == ("phantom-4",)
    assert chosen.carried_digest
    less = FinetuneTaskConfig(carried=str(carried), values=(1, 3), exclude=("phantom-2",))
    fewer = choose_scans(store, less)
    assert fewer.carried == ("phantom-1", "phantom-3")
    assert fewer.carried_digest != chosen.carried_digest
    digests = {scan_id: entry.digest for scan_id, entry in store.entries.items()}
    assert set(read_carried_table(carried, digests).checksums) == set(chosen.carried)
    labelled = FinetuneTaskConfig(carried=str(carried), values=(1, 3), num_scans=2, holdout_fraction=0.0)
    assert choose_scans(store, labelled).training == ("phantom-0", "phantom-4")


def test_a_case_is_never_trained_on_and_reported_on(tmp_path: Path, quick: None) -> None:
    own = make_store(tmp_path / "store", labelled=(0, 3, 4))
    plan = plan_carrying(own, FinetuneTaskConfig(scans=("phantom-0",), values=(1, 3)))
    assert plan.targets == ("phantom-1", "phantom-2")
    assert not any(one.error for one in carry_labels(own.path, tmp_path / "carried", plan))
    config = FinetuneTaskConfig(carried=str(tmp_path / "carried"), values=(1, 3))
    assert choose_scans(own, config).held_out == ("phantom-4",), "phantom-3 is of the case of phantom-2"
    kept = choose_scans(own, replace(config, held_out=("phantom-3",)))
    assert (kept.carried, kept.held_out) == (("phantom-1",), ("phantom-3",))


def test_what_labels_were_carried_over_from_is_trained_on_and_never_reported_on(
    store: Store, carried: Path
) -> None:
    config = FinetuneTaskConfig(carried=str(carried), values=(1, 3))
    other = choose_scans(store, replace(config, scans=("phantom-4",)))
    assert other.training == ("phantom-4",)
    assert "phantom-0" not in other.held_out
    with pytest.raises(ConfigError, match="'phantom-0' is to be held out, and the labels in"):
        choose_scans(store, replace(config, scans=("phantom-4",), held_out=("phantom-0",)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"least_confidence": 0.9}, DataError, "3 have a confidence below 0.9"),
        ({"values": ()}, ConfigError, "was not carried over"),
        ({"held_out": ("phantom-9",)}, DataError, "there is no scan 'phantom-9'"),
        ({"label": "liver"}, ConfigError, "of 'structures', not of 'liver'"),
        ({"carried_digest": "0" * 64}, ConfigError, "not the label maps that the run was begun with"),
        ({"exclude": ("phantom-1", "phantom-2", "phantom-3")}, DataError, "0 have a confidence below 0.3"),
    ],
)
def test_what_cannot_be_trained_on_is_said(
    settings: dict[str, object], error: type[Exception], message: str, store: Store, carried: Path
) -> None:
    base: dict[str, object] = {"carried": str(carried), "values": (1, 3)}
    with pytest.raises(error) as raised:
        choose_scans(store, FinetuneTaskConfig(**(base | settings)))
    assert message in " ".join(str(raised.value).split())


def test_samples_show_the_carried_labels_and_those_of_labelled_scans_their_own(
    store: Store, carried: Path
) -> None:
    config = LabelledDataConfig(crop_voxels=(32, 48, 32), cut_voxels=(32, 48, 32))
    parts = tuple(Structure(name=str(value), values=(value,)) for value in (1, 3))
    ids = ("phantom-0", "phantom-1")
    reader = LabelReader(
        store, ids, LABEL, parts, config, seed=0, carried=CarriedMaps(carried, ("phantom-1",))
    )
    reader = pickle.loads(pickle.dumps(reader))
    lies = store.scan("phantom-0").labels(LABEL)
    shown = set()
    for index in range(12):
        sample = reader.read(index)
        shown.add(sample.scan_id)
        expected = np.zeros((32, 48, 32), np.int16)
        first = -sample.crop.start[1]  # the crop is longer than the scan along y
        expected[:, int(first) : int(first) + 40] = (lies == 1) + 2 * (lies == 3)
        np.testing.assert_array_equal(sample.words, expected)  # the carried ones as they lie
    assert shown == set(ids)


@pytest.mark.usefixtures("one_thread")
def test_from_the_command_to_a_training_that_shows_them(
    store: Store,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> None:
    folder, run, told = tmp_path / "carried", tmp_path / "run", tmp_path / "carry.json"
    carry = ["carry", str(store.path), str(folder), "--scans", "phantom-0", "--values", "1", "3"]
    assert main([*carry, "--json", str(told)]) == 0
    out = capsys.readouterr().out
    assert "from 1 labelled scans (phantom-0) to 3" in out
    assert f"--carried {folder}" in out.replace("\n", "")
    assert [one["scan"] for one in json.loads(told.read_text())["scans"]] == [
        *("phantom-1", "phantom-2", "phantom-3")
    ]
    assert main(carry) == 0
    assert "3 of 3 were there before" in capsys.readouterr().out
    settings = tmp_path / "c.toml"
    values = tuned(TINY, num_steps=2).values()
    values["finetune"] |= {"num_scans": 0, "holdout_fraction": 0.0}
    settings.write_text(to_toml(values))
    begin = ["finetune", str(checkpoint), str(store.path), str(run), "--config", str(settings)]
    monkeypatch.chdir(tmp_path)
    assert main([*begin, "--carried", "carried", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "trained on 1 scans: phantom-0" in out
    assert "with carried labels, on 3: phantom-1, phantom-2, phantom-3" in out
    assert set(json.loads((run / "run.json").read_text())["scans"]) == {f"phantom-{k}" for k in range(4)}
    for more in ([], ["--carried", str(folder)]):
        assert main([*begin[:4], "--resume", *more, "--device", "cpu"]) == 0, more
    folder.rename(tmp_path / "moved")
    assert main([*begin[:4], "--resume", "--device", "cpu"]) == 2
    assert "Name the one that `mass carry` has filled" in capsys.readouterr().err
    assert main([*begin[:4], "--resume", "--carried", "moved", "--device", "cpu"]) == 0
    (tmp_path / "moved").rename(folder)
    (folder / "phantom-2.npz").unlink()
    assert main([*begin[:4], "--resume", "--device", "cpu"]) == 2
    assert "not the label maps that the run was begun with" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "carried").write_text("")
    assert main(["carry", str(store.path), str(tmp_path / "carried")]) == 2
    assert "a file of this name" in capsys.readouterr().err


def test_one_that_fails_is_told_and_the_command_fails(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    carry: Callable[..., Carried] = as_it_lies

    def fails_on_the_first(*given: object) -> Carried:
        nonlocal carry
        carry, now = as_it_lies, carry
        return now(*given)

    def broken(*_: object) -> Carried:
        raise RuntimeError("ITK: no overlap")

    carry = broken
    monkeypatch.setattr(carrying, "carry_structures", fails_on_the_first)
    assert main(["carry", str(store.path), str(tmp_path / "carried"), "--scans", "phantom-0"]) == 1
    assert "failed: phantom-1: ITK: no overlap" in capsys.readouterr().out
