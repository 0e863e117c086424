"""Imported masks: attached to a record, found again, taken away without a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage import (
    ImportedMasks,
    InvalidRecord,
    ScanRecord,
    about_imports,
    commit_scan,
    import_digest,
    imported_sources,
    imports_of,
    open_store,
    own_record,
    with_imports,
)
from storage.layout import BACKGROUND_ATOM
from tests.storage.drawn_record import SHAPE, draw_record, measure_run, record_masks, store_bytes


def drawn_masks(name: str, *, seed: int = 0, num_layers: int = 2) -> ImportedMasks:
    """Return boxes: a pair side by side in each layer, and the two together."""
    rng = np.random.default_rng(seed)
    atoms = []
    for _ in range(num_layers):
        layer = np.full(SHAPE, BACKGROUND_ATOM, dtype=np.uint16)
        z, y, x = (int(rng.integers(0, size - 12)) for size in SHAPE)
        layer[z : z + 6, y : y + 9, x : x + 12] = 0
        layer[z + 6 : z + 8, y : y + 9, x : x + 12] = 1
        atoms.append(layer)
    orders = tuple(np.array([[0, 1]], dtype=np.uint16) for _ in atoms)
    runs = [(layer, *run) for layer in range(num_layers) for run in ((0, 1), (1, 2), (0, 2))]
    table = np.array([measure_run(tuple(atoms), orders, *run) for run in runs], dtype=np.int32)
    table[:, -1] = 0
    return ImportedMasks(
        name=name,
        digest=f"{name}-{seed}",
        atoms=tuple(atoms),
        orders=orders,
        table=table,
        about={"names": [f"{name} {row}" for row in range(len(table))]},
    )


def stored(store: Path, record: ScanRecord) -> ScanRecord:
    commit_scan(store, record, replace=True)
    return open_store(store).scan(record.scan_id).record()


def test_own_proposals_keep_their_places_masks_and_scores(record: ScanRecord, empty_store: Path) -> None:
    both = stored(empty_store, with_imports(record, [drawn_masks("sam2")]))
    number = len(record.table)
    np.testing.assert_array_equal(both.scores[:number], record.scores)
    np.testing.assert_array_equal(record_masks(both)[:number], record_masks(record))
    assert both.sources[:-1] == record.sources
    assert set(both.scores[number:].tolist()) == {float(record.scores[-1])}


def test_imported_masks_read_back_as_they_were_given(record: ScanRecord, empty_store: Path) -> None:
    given = [drawn_masks("b"), drawn_masks("a", seed=1, num_layers=1)]
    both = stored(empty_store, with_imports(record, given))
    assert imported_sources(both.digests) == ("a", "b")
    for masks, found in zip(sorted(given, key=lambda masks: masks.name), imports_of(both), strict=True):
        assert (found.name, found.digest, found.about) == (masks.name, masks.digest, masks.about)
        for row, wanted in zip(found.table, masks.table, strict=True):
            mine, theirs = (
                np.isin(one.atoms[r[0]], one.orders[r[0]][0][r[1] : r[2]])
                for one, r in ((found, row), (masks, wanted))
            )
            np.testing.assert_array_equal(mine, theirs)


def test_without_its_imports_a_scan_has_the_bytes_of_before(record: ScanRecord, empty_store: Path) -> None:
    commit_scan(empty_store, record)
    before = store_bytes(empty_store / "scans")
    both = stored(empty_store, with_imports(record, [drawn_masks("sam2"), drawn_masks("a", seed=3)]))
    assert store_bytes(empty_store / "scans") != before
    stored(empty_store, own_record(both))
    assert store_bytes(empty_store / "scans") == before


def test_the_order_of_imports_leaves_no_trace(record: ScanRecord, empty_store: Path) -> None:
    one, other = drawn_masks("one"), drawn_masks("other", seed=1)
    stored(empty_store, with_imports(record, [one, other]))
    at_once = store_bytes(empty_store / "scans")
    late = stored(empty_store, with_imports(record, [other]))
    stored(empty_store, with_imports(late, [*imports_of(late), one]))
    assert store_bytes(empty_store / "scans") == at_once


def test_a_source_that_is_given_again_replaces_itself(record: ScanRecord) -> None:
    first = with_imports(record, [drawn_masks("sam2"), drawn_masks("kept", seed=5)])
    kept = [masks for masks in imports_of(first) if masks.name != "sam2"]
    again = with_imports(first, [*kept, drawn_masks("sam2", seed=2, num_layers=1)])
    assert import_digest(again.digests, "sam2") == "sam2-2"
    assert import_digest(again.digests, "kept") == "kept-5"
    assert len(again.table) == len(record.table) + 6 + 3
    assert list(about_imports(again.attributes)) == ["kept", "sam2"]


@pytest.mark.parametrize("name", ["own", "", "a b", "../x", "-x", "n" * 65])
def test_a_source_needs_a_plain_name(name: str) -> None:
    with pytest.raises(InvalidRecord, match="source"):
        drawn_masks(name)


def test_a_source_of_the_scan_itself_cannot_be_imported(record: ScanRecord) -> None:
    with pytest.raises(InvalidRecord, match="'area'"):
        with_imports(record, [drawn_masks("area")])


def test_masks_on_another_grid_do_not_fit() -> None:
    small = draw_record(shape=(8, 25, 41), layers=1)
    with pytest.raises(InvalidRecord, match="share one grid"):
        with_imports(small, [drawn_masks("sam2")])


def test_a_record_without_imports_is_left_as_it_is(record: ScanRecord) -> None:
    assert with_imports(record, []) is record
    assert own_record(record) is record
    assert imports_of(record) == ()
