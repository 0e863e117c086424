from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.quality import score_scan, summarize
from pipeline.report.overview import InspectConfig, describe_scan, overview_scan
from pipeline.report.rows import ScanRow, full_row, index_row, table_row
from pipeline.report.store_page import StoreContents, store_page
from storage import Store
from tests.drawn_store import drawn_store
from tests.pipeline.report.markup import checked

SMALL = InspectConfig(plane_pixels=60, sheet_pixels=40, tile_pixels=40, examples=2)
HOSTILE = '</script><script>alert("x")</script>'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return drawn_store(tmp_path_factory.mktemp("page") / "store")


def rows_of(store: Store) -> list[ScanRow]:
    return [
        table_row(index_row(store.entries[scan_id]), store.scan(scan_id), 1000) for scan_id in store.scan_ids
    ]


def table_in(text: str) -> list[list[object]]:
    found = re.search(r'id="rows">(.*?)</script>', text)
    assert found is not None
    rows: list[list[object]] = json.loads(found[1])
    return rows


def test_the_page_has_every_scan_in_its_table_and_those_in_full_below(store: Store) -> None:
    records = [store.scan(scan_id).record() for scan_id in store.scan_ids]
    scores = [score_scan(record) for record in records]
    report = describe_scan(records[1], scores[1], SMALL)
    overviews = [overview_scan(r, s, SMALL) for r, s in zip(records, scores, strict=True)]
    rows = [full_row(row, overview) for row, overview in zip(rows_of(store), overviews, strict=True)]
    contents = StoreContents(
        name="STORE",
        facts=(("spacing", "1.5 mm"),),
        failures=(("bad", "cut short", "copy it"),),
        rows=rows,
        score=summarize(scores),
        thumbnails={"bare": overviews[0].thumbnail},
        reports=[report],
        packs={"bare": b"pack"},
    )
    text = store_page(contents)
    page = checked(text)
    assert [row[0] for row in table_in(text)] == ["bare", "drawn_1", "drawn_2"]
    assert table_in(text)[1][11] == pytest.approx(rows[1].mean_iou, abs=1e-4)
    assert "scan-drawn_1" in page.ids
    shown = " ".join(page.words)
    assert all(word in shown for word in ("cut short", "copy it", "STORE", "1 of 3 scans can be opened"))
    assert text == store_page(contents)


def test_a_page_of_what_the_index_knows_leaves_out_what_is_not_known(store: Store) -> None:
    text = store_page(StoreContents(name="S", rows=[index_row(line) for line in store.entries.values()]))
    checked(text)
    row = table_in(text)[0]
    assert row[6] == 720
    assert row[7:13] == [None] * 6
    assert "Proposals by size" not in text
    assert "Volume of the scans" in text


def test_an_empty_store_has_a_page_too() -> None:
    assert "The store has no scan yet" in store_page(StoreContents(name="S"))


def test_names_from_files_cannot_inject_markup_or_end_a_script(store: Store) -> None:
    row = replace(rows_of(store)[0], scan_id=HOSTILE, dataset=HOSTILE, split=HOSTILE, num_proposals=3)
    contents = StoreContents(
        name=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        failures=((HOSTILE, HOSTILE, HOSTILE),),
        rows=[row],
        packs={HOSTILE: b"x"},
        notice=HOSTILE,
    )
    text = store_page(contents)
    checked(text)
    assert "<script>alert" not in text
    assert table_in(text)[0][0] == HOSTILE


def test_failures_are_counted_by_reason_and_a_long_list_is_cut_with_a_word() -> None:
    failures = tuple((f"scan {k:04}", "empty" if k % 2 else "no voxels", "send it again") for k in range(300))
    shown = " ".join(checked(store_page(StoreContents(name="S", failures=failures))).words)
    assert "150" in shown
    assert "100 more" in shown
    assert "scan 0199" in shown
    assert "scan 0200" not in shown


def test_every_file_that_a_page_names_lies_beside_it() -> None:
    import pipeline.report.assets as assets

    web = Path(assets.__file__).parent / "web"
    imported = {
        name
        for file in web.glob("*.js")
        for name in re.findall(r'from "mass3d/(\w+)\.js"', file.read_text(encoding="utf-8"))
    }
    assert imported <= set(assets.MODULES)
    assert {file.stem for file in web.glob("*.js")} == {*assets.MODULES, "sorting"}
