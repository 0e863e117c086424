"""Own and imported masks are mixed by weight: counted, in samples of a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from storage import (
    ImportedMasks,
    ScanRecord,
    Store,
    commit_scan,
    create_store,
    finish,
    imported_sources,
    open_store,
    with_imports,
)
from storage.layout import BACKGROUND_ATOM
from tests.storage.drawn_record import draw_record
from training.data import sample_reader
from training.data.sample_reader import SampleReader
from training.data.sampling import DataConfig
from training.data.source_weights import draw_by_group, groups_of, scans_with_weight
from training.errors import ConfigError, DataError

SHAPE = (32, 40, 40)
CONFIG = DataConfig(crop_voxels=32, cut_voxels=32, masks_per_sample=13, min_mask_voxels=10)


def tiles(edge: int) -> np.ndarray:
    z, y, x = np.indices(SHAPE) // edge
    return np.unique((z * 100 + y) * 100 + x, return_inverse=True)[1].reshape(SHAPE).astype(np.uint16)


def table_of(ids: np.ndarray, source: int, order: int) -> np.ndarray:
    """Return a row for each id: it alone."""
    rows = []
    for number in range(int(ids[ids < BACKGROUND_ATOM].max()) + 1):
        places = np.argwhere(ids == number)
        rows.append([order, number, number + 1, *places.min(0), *(places.max(0) + 1), len(places), source])
    return np.array(rows, dtype=np.int32)


def imported(name: str, ids: np.ndarray) -> ImportedMasks:
    order = np.arange(int(ids[ids < BACKGROUND_ATOM].max()) + 1, dtype=np.uint16)[None]
    return ImportedMasks(
        name=name, digest=name, atoms=(ids,), orders=(order,), table=table_of(ids, 0, 0), about={"names": []}
    )


def own_scan(scan_id: str) -> ScanRecord:
    """Return a scan with 320 masks of two trees."""
    ids = tiles(5)
    table = table_of(ids, 0, 0)
    table[::2, -1] = 1
    return replace(
        draw_record(scan_id, shape=SHAPE, layers=1),
        atoms=(ids,),
        orders=(np.arange(len(table), dtype=np.uint16)[None],),
        table=table,
        scores=np.zeros(len(table), dtype=np.float32),
        sources=("tree-a", "tree-b"),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("weights") / "store"
    create_store(folder, spacing_mm=1.5, config={})
    few = np.full(SHAPE, BACKGROUND_ATOM, dtype=np.uint16)
    few[10:20, 10:20, 10:20], few[10:20, 10:20, 22:30] = 0, 1
    both = [imported("sam2", tiles(4)), imported("expert", few)]
    commit_scan(folder, with_imports(own_scan("mixed"), both))
    commit_scan(folder, own_scan("plain"))
    finish(folder)
    return open_store(folder)


def drawn(
    store: Store, weights: dict[str, float], *, scan: str = "mixed", samples: int = 120
) -> Counter[str]:
    """Count the drawn masks by source, own ones together."""
    config = replace(CONFIG, source_weights=weights)
    reader = SampleReader(store.path, [scan], config, seed=1)
    names = store.scan(scan).proposals.source_names
    imports = imported_sources(store.entries[scan].digests)
    counts: Counter[str] = Counter()
    for index in range(samples):
        for mask in reader.read(index).masks:
            counts[str(names[mask]) if names[mask] in imports else "own"] += 1
    return counts


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ({"own": 1, "sam2": 1, "expert": 0}, 1 / 2),
        ({"sam2": 3, "expert": 0}, 3 / 4),
        ({"own": 9, "expert": 0}, 1 / 10),
    ],
)
def test_drawn_shares_follow_the_weights(store: Store, weights: dict[str, float], share: float) -> None:
    counts = drawn(store, weights)
    total = sum(counts.values())
    assert total == 120 * 12
    assert counts["expert"] == 0
    assert counts["sam2"] / total == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / total))


def test_a_group_of_few_masks_is_drawn_as_far_as_it_goes(store: Store) -> None:
    counts = drawn(store, {"own": 1, "sam2": 0, "expert": 1000}, samples=30)
    assert counts["sam2"] == 0
    assert counts["expert"] == 30 * 2  # both of them in every sample, none twice


def test_a_source_of_weight_0_is_never_drawn(store: Store) -> None:
    assert set(drawn(store, {"own": 0, "expert": 0}, samples=20)) == {"sam2"}


def test_without_weights_masks_are_drawn_as_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("weights are not asked for")

    monkeypatch.setattr(sample_reader, "draw_by_group", never)
    counts = drawn(store, {}, samples=20)
    assert set(counts) == {"own", "sam2", "expert"}


def test_only_scans_with_a_source_of_weight_are_drawn(store: Store) -> None:
    entries = list(store.entries.values())
    assert [entry.scan_id for entry in scans_with_weight(entries, {"own": 0})] == ["mixed"]
    assert scans_with_weight(entries, {}) == entries
    with pytest.raises(DataError, match="weight 0"):
        scans_with_weight(entries, {"own": 0, "sam2": 0, "expert": 0})


def test_a_weight_for_a_source_that_is_not_there_names_the_nearest(store: Store) -> None:
    with pytest.raises(DataError, match="did you mean 'sam2'"):
        scans_with_weight(store.entries.values(), {"sam": 2})


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_from_0(weight: float) -> None:
    with pytest.raises(ConfigError, match="source_weights"):
        DataConfig(source_weights={"own": weight})


def test_within_a_group_masks_are_balanced_as_without_weights() -> None:
    voxels = np.array([40] * 100 + [41] + [5000] + [40] * 50)
    sources = np.array([0] * 100 + [1] + [0] + [2] * 50, dtype=np.int32)
    groups = groups_of(("a", "b", "sam2"), ("sam2",), {"own": 1, "sam2": 1})
    generator = np.random.default_rng(0)
    counts = Counter(int(draw_by_group(voxels, sources, groups, 1, generator)[0]) for _ in range(4000))
    assert counts[101] / 4000 == pytest.approx(1 / 4, abs=0.03)
    assert counts[100] / 4000 == pytest.approx(1 / 8, abs=0.03)
    assert sum(counts[index] for index in range(102, 152)) / 4000 == pytest.approx(1 / 2, abs=0.03)


def test_no_mask_is_drawn_twice_and_all_come_in_the_end() -> None:
    generator = np.random.default_rng(0)
    sources = generator.integers(0, 3, 40, dtype=np.int32)
    groups = groups_of(("a", "b", "sam2"), ("sam2",), {"sam2": 5})
    found = draw_by_group(generator.integers(1, 999, 40), sources, groups, 99, generator)
    assert sorted(found.tolist()) == list(range(40))
