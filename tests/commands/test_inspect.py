"""`mass inspect STORE`: which scans a page carries, and what happens to damaged ones."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from commands.inspect import inspect_store, spread, to_pack
from commands.main import main
from commands.survey import level_within, pack_of, packs_within, survey
from storage import Store
from tests.drawn_store import drawn_store
from tests.pipeline.drawn_scan import DrawnScan, drawn_scan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return drawn_store(tmp_path / "store")


def carried(page: Path) -> list[str]:
    return re.findall(r'class="pack" data-scan="([^"]*)"', page.read_text(encoding="utf-8"))


def enlarged(scan: DrawnScan) -> DrawnScan:
    """The scan with each voxel four times along each axis: it has coarser levels."""
    from dataclasses import replace

    def grow(array: np.ndarray) -> np.ndarray:
        return np.kron(array, np.ones((4, 4, 4), dtype=array.dtype))

    table = scan.table.copy()
    table[:, 3:9] *= 4
    table[:, 9] *= 64
    return replace(
        scan,
        image=grow(scan.image),
        atoms=tuple(grow(atoms) for atoms in scan.atoms),
        table=table,
        labels=tuple(replace(label, array=grow(label.array)) for label in scan.labels),
    )


def test_a_page_carries_the_scans_in_full_first_then_the_others_while_there_is_room(store: Store) -> None:
    page = store.path.parent / "report.html"
    inspect_store(store.path, [], page, full=1)
    assert carried(page) == ["bare", "drawn_1", "drawn_2"]
    inspect_store(store.path, [], page, full=0, megabytes=0)
    assert carried(page) == []


def test_packs_fit_into_the_bytes_given(store: Store) -> None:
    sizes = [len(pack_of(store.scan(scan_id), 0, small=True)) for scan_id in store.scan_ids]
    packs = dict(packs_within(store, store.scan_ids, sizes[0] + sizes[1]))
    assert list(packs) == ["bare", "drawn_1"]
    assert list(dict(packs_within(store, store.scan_ids, sizes[0] - 1))) == []


def test_a_scan_that_is_too_large_is_carried_at_a_coarser_level(tmp_path: Path) -> None:
    store = drawn_store(tmp_path / "large", [enlarged(drawn_scan())])
    scan = store.scan("drawn_1")
    assert [level.shape_zyx for level in scan.levels][:2] == [(72, 160, 192), (36, 80, 96)]
    assert level_within(scan, 72 * 160 * 192) == 0
    assert level_within(scan, 72 * 160 * 192 - 1) == 1
    assert level_within(scan, 1) == scan.num_levels - 1
    coarse = len(pack_of(scan, 1, small=True))
    assert len(pack_of(scan, 0, small=True)) > coarse
    assert len(dict(packs_within(store, ["drawn_1"], coarse))["drawn_1"]) <= coarse


def test_a_damaged_scan_is_listed_with_what_to_do_and_the_others_are_shown(store: Store) -> None:
    damaged = store.scan("drawn_1").path / "c.0.0.0"
    damaged = damaged if damaged.exists() else store.scan("drawn_1").path / "0" / "c.0.0.0"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    page = store.path.parent / "report.html"
    assert main(["inspect", str(store.path), "--out", str(page), "--full", "0"]) == 1
    assert carried(page) == ["bare", "drawn_2"]
    assert "mass verify" in page.read_text(encoding="utf-8")


def test_one_scan_has_a_page_of_its_own_with_the_viewer(store: Store) -> None:
    page = store.path.parent / "scan.html"
    assert main(["inspect", str(store.path), "--scan", "drawn_2", "--out", str(page)]) == 0
    assert carried(page) == ["drawn_2"]
    assert 'id="scan-table"' not in page.read_text(encoding="utf-8")


def test_two_workers_see_what_one_sees(store: Store) -> None:
    ids = list(store.scan_ids)
    one, _ = survey(store.path, ids, set(), workers=1)
    two, _ = survey(store.path, ids, set(), workers=2)
    assert [each.row for each in one] == [each.row for each in two]


def test_unusual_scans_are_carried_before_others(store: Store) -> None:
    done, _ = survey(store.path, list(store.scan_ids), set(), workers=1)
    # All three have many proposals outside of the body, so all are unusual; those in full go first.
    assert to_pack(done, {"drawn_2"}) == ["drawn_2", "bare", "drawn_1"]


def test_without_a_page_or_a_server_the_command_says_what_it_needs(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(store.path)]) == 2
    assert "--out report.html" in capsys.readouterr().err


def test_the_same_store_gives_the_same_page(store: Store) -> None:
    pages = [store.path.parent / name for name in ("a.html", "b.html")]
    for page in pages:
        inspect_store(store.path, [], page, full=1)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_names_are_taken_evenly() -> None:
    assert spread(["a", "b", "c", "d"], 2) == ["a", "c"]
    assert spread(["a"], 3) == ["a"]


def test_a_store_that_is_gone_is_said_before_anything_is_served(tmp_path: Path) -> None:
    from commands.inspect import run_inspect
    from storage import StoreNotFound

    with pytest.raises(StoreNotFound):
        run_inspect(Namespace(serve=True, store=tmp_path / "nowhere", port=0, against=None))
