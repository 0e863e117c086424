"""Which scans are trained on, which are reported on, and what a store lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from storage import Store, commit_scan, create_store, finish, open_store
from tests.training.phantom_store import make_phantom_store, phantom_record
from training.errors import ConfigError, DataError
from training.finetuning.scans import FinetuneTaskConfig, choose_scans, find_structures


def test_fewer_scans_are_the_first_of_more_and_none_is_reported_on(phantom_store: Store) -> None:
    one, three = (
        choose_scans(phantom_store, FinetuneTaskConfig(num_scans=n, holdout_fraction=0.0, scan_seed=5))
        for n in (1, 3)
    )
    assert set(one.training) < set(three.training)
    for chosen in (one, three):
        assert set(chosen.training).isdisjoint(chosen.held_out)
        assert {*chosen.training, *chosen.held_out} == set(phantom_store.scan_ids)
    named = choose_scans(phantom_store, FinetuneTaskConfig(scans=("phantom-2",), held_out=("phantom-0",)))
    assert (named.training, named.held_out) == (("phantom-2",), ("phantom-0",))


def test_a_case_is_never_on_both_sides(tmp_path: Path) -> None:
    create_store(tmp_path / "store", spacing_mm=1.5, config={})
    for k in range(6):
        commit_scan(tmp_path / "store", replace(phantom_record(f"s{k}", seed=k), case=f"patient {k // 2}"))
    store = open_store(tmp_path / "store")

    def cases(ids: Sequence[str]) -> set[str]:
        return {store.scan(scan_id).case for scan_id in ids}

    for seed in range(4):
        drawn = choose_scans(store, FinetuneTaskConfig(num_scans=2, holdout_fraction=0.0, scan_seed=seed))
        assert len(cases(drawn.training)) == 2
        assert drawn.held_out
        assert cases(drawn.training).isdisjoint(cases(drawn.held_out))
    for settings in ({"scans": ("s0",)}, {"held_out": ("s0",)}, {"holdout_fraction": 0.2}):
        chosen = choose_scans(store, FinetuneTaskConfig(**settings))
        assert chosen.held_out
        assert cases(chosen.training).isdisjoint(cases(chosen.held_out))
    with pytest.raises(ConfigError, match="another scan of its case 'patient 0' is to be trained on"):
        choose_scans(store, FinetuneTaskConfig(scans=("s0",), held_out=("s1",)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"label": "structure"}, DataError, "no scan has the label 'structure'; did you mean 'structures'?"),
        ({"datasets": ("nothing",)}, DataError, "there is no data set 'nothing'. There are: "),
        ({"scans": ("phantom-9",)}, DataError, "there is no scan 'phantom-9'; did you mean 'phantom-"),
        ({"num_scans": 9}, DataError, "9 scans with the label 'structures' are asked for, 4 are there"),
        ({"values": (1, 8)}, DataError, "has value 8 in its label 'structures'"),
        ({"scans": ("phantom-1",), "held_out": ("phantom-1",)}, ConfigError, "choose one"),
        ({"scans": ("phantom-1",), "exclude": ("phantom-1",)}, DataError, "is excluded"),
    ],
)
def test_what_the_store_lacks_is_said_in_a_sentence(
    settings: dict[str, object], error: type[Exception], message: str, phantom_store: Store
) -> None:
    base: dict[str, object] = {"holdout_fraction": 0.0}
    with pytest.raises(error) as raised:
        choose_scans(phantom_store, FinetuneTaskConfig(**(base | settings)))
    assert message in str(raised.value)


def test_a_value_with_two_names_is_refused(tmp_path: Path) -> None:
    store = make_phantom_store(tmp_path / "store", num_scans=1)
    record = phantom_record("other", seed=1)
    renamed = replace(record.labels[0], value_names={**record.labels[0].value_names, 2: "tumour"})
    commit_scan(store.path, replace(record, labels=(renamed,)))
    finish(store.path)
    store = open_store(store.path)
    with pytest.raises(DataError, match="value 2 of the label 'structures' is 'tumour' in scan"):
        find_structures(store, "structures", store.scan_ids)
    assert find_structures(store, "structures", store.scan_ids, (1,))[0].name == "organ"
