"""The page of `mass inspect` in Chromium: the viewer draws, the table sorts, nothing else is loaded."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from commands.inspect import inspect_store
from commands.pages.evaluation import compare_one, results_page
from commands.serve import StoreServer
from pipeline.report import ScanRow, StoreContents, index_row, store_page
from storage import Store
from tests.browser import LOW_CONTRAST, Tab, browser, chromium
from tests.drawn_store import drawn_store
from tests.pipeline.drawn_scan import DrawnLabel, drawn_scan

SCANS = "[...document.querySelectorAll('.vtable [data-key=scan]')].map((cell) => cell.textContent)"
ROWS = "[...document.querySelectorAll('.vtable .spacer .tr')]"
CUT = """[...document.querySelectorAll('.vtable, .vtable .head > div, .vtable .spacer :is(.tr, .tr > div)')]
.filter((e) => e.checkVisibility() && (e.scrollWidth > e.clientWidth + 1
  || !e.classList.contains('vtable') && e.scrollHeight > e.clientHeight + 1)).map((e) => e.textContent)"""
"""Texts of the table of which a part cannot be seen."""
HOSTILE = '<img src=x onerror="globalThis.harmed = 1">'


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser(chromium()) as tab:
        yield tab


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three scans; one has names in it that are markup."""
    label = drawn_scan().labels[0]
    hostile = replace(
        drawn_scan(2, "hostile", HOSTILE),
        labels=(DrawnLabel(name="parts", array=label.array, value_names={1: HOSTILE, 2: "node"}),),
        sources=(HOSTILE, "b", "c"),
        attributes={"notes": [HOSTILE]},
    )
    folder = tmp_path_factory.mktemp("page") / "store"
    return drawn_store(folder, [drawn_scan(), drawn_scan(1, "drawn_2"), hostile])


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    inspect_store(store.path, [], out, full=1)
    return out.as_uri()


def open_viewer(tab: Tab, page: str, scan_id: str = "drawn_1", *, anew: bool = False) -> None:
    """Open a scan by its row in the table; go on in the page that is open if it has the scan already."""
    opened = f"document.querySelector('h3.opened')?.textContent === '{scan_id}'"
    tab.size(1000, 620)
    if anew or tab.run("location.href") != page or not tab.run(opened):
        tab.open(page)
        tab.wait(f"{ROWS}.length > 0")
        tab.run(f"{ROWS}.find((row) => row.firstChild.textContent === '{scan_id}').click()")
        tab.wait(f"{opened} && !document.querySelector('[aria-busy]')")
    tab.run("document.getElementById('tab-ladder').click()")
    for name in ("atoms", "labels"):
        tab.run(
            f"(() => {{ const b = document.querySelector('input[name={name}]'); b.checked && b.click(); }})()"
        )
    settle(tab)


def settle(tab: Tab) -> None:
    """Wait until what was asked for is drawn."""
    tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def enter(tab: Tab, selector: str, value: str, *, event: str = "input") -> None:
    """Give a field a value, as a reader does."""
    tab.run(
        f"(() => {{ const s = document.querySelector({selector!r}); s.value = {value!r}; "
        f"s.dispatchEvent(new Event({event!r})); }})()"
    )


def stage(tab: Tab) -> NDArray[np.uint8]:
    """A picture of the viewer, not covered by the navigation."""
    tab.run("document.querySelector('.stage').scrollIntoView({ block: 'end' })")
    settle(tab)
    return tab.pixels(".stage")


def blueish(picture: NDArray[np.uint8]) -> int:
    """Number of pixels in the colour of the region at the cross: more blue than red."""
    return int(np.count_nonzero(picture[..., 2].astype(int) - picture[..., 0] > 40))


def white(picture: NDArray[np.uint8]) -> int:
    """Number of white pixels."""
    return int(np.count_nonzero((picture > 252).all(axis=2)))


def test_the_page_loads_nothing_but_itself_and_has_no_error(tab: Tab, page: str) -> None:
    tab.messages.clear()
    tab.requests.clear()
    open_viewer(tab, page, anew=True)
    assert tab.messages == []
    assert set(tab.requests) == {page}


def test_the_viewer_draws_three_planes_and_a_rendering(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    picture = stage(tab)
    height, width, _ = picture.shape
    quarters = [
        picture[y : y + height // 2, x : x + width // 2] for y in (0, height // 2) for x in (0, width // 2)
    ]
    for quarter in quarters:
        assert len(np.unique(quarter.reshape(-1, 3), axis=0)) > 50
        assert np.mean(quarter.max(axis=2) > 40) > 0.05


def test_the_slider_goes_from_an_atom_to_the_largest_region_at_the_cross(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    areas, words = [], []
    for step in ("0", tab.run("document.querySelector('#ladder').max")):
        enter(tab, "#ladder", step)
        areas.append(blueish(stage(tab)))
        words.append(tab.run("document.querySelector('.rung').textContent"))
    assert 0 < areas[0] < areas[1] / 4
    assert words[0].startswith("atom · ")
    steps = int(tab.run("document.querySelector('#ladder').max"))
    assert words[1].startswith(f"{steps} of {steps} · ")


def test_a_click_in_a_plane_moves_the_cross_and_all_planes(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    before, readout = stage(tab), tab.run("document.querySelector('.readout').textContent")
    x, y, width, height = tab.run(
        "(() => { const r = document.querySelector('.stage').getBoundingClientRect(); "
        "return [r.x, r.y, r.width, r.height]; })()"
    )
    tab.click(x + width * 0.2, y + height * 0.2)
    tab.wait(f"document.querySelector('.readout').textContent !== {readout!r}")
    after = stage(tab)
    half = height / 2
    assert np.any(before[: int(half)] != after[: int(half)])
    assert np.any(before[int(half) :, : int(width / 2)] != after[int(half) :, : int(width / 2)])


def test_keys_move_the_cross_and_climb(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    tab.run("document.querySelector('.stage canvas').focus()")
    places = []
    for key in ("ArrowLeft", "PageUp", "ArrowUp"):
        tab.press(key)
        readout = tab.run("document.querySelector('.readout').textContent")
        places.append([int(n) for n in readout.split("voxel ")[1].split(" (")[0].split(", ")])
    steps = np.diff(np.array(places), axis=0)
    np.testing.assert_array_equal(steps, [[1, 0, 0], [0, 1, 0]])
    step = int(tab.run("document.querySelector('#ladder').value"))
    tab.press("[", text="[")
    assert int(tab.run("document.querySelector('#ladder').value")) == step - 1


def test_outlines_of_atoms_are_drawn_and_taken_away(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    plain = stage(tab)
    tab.click_on("input[name=atoms]")
    outlined = stage(tab)
    assert np.count_nonzero(np.any(plain != outlined, axis=2)) > 2000
    tab.click_on("input[name=atoms]")
    np.testing.assert_array_equal(stage(tab), plain)


def test_a_label_shows_what_its_best_proposal_has_misses_and_adds(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    tab.click_on("#tab-labels")
    before = stage(tab)
    tab.run(
        "[...document.querySelectorAll('.pairs button')]"
        ".find((b) => b.textContent.startsWith('node')).click()"
    )
    legend = tab.run("document.querySelector('.legend').innerText")
    assert "node: IoU 0.2" in legend
    assert all(word in legend for word in ("both: ", "missed: ", "beyond the label: "))
    after = stage(tab)
    assert np.any(before != after)
    orange = (after[..., 0].astype(int) - after[..., 2] > 60) & (after[..., 1] > 80)
    assert np.count_nonzero(orange) > 20


def test_chosen_proposals_are_listed_and_hidden_one_by_one(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    tab.click_on("#tab-proposals")
    assert tab.run("document.querySelectorAll('.chosen li').length") > 2
    shown = stage(tab)
    tab.click_on(".chosen li:first-child input")
    assert np.any(stage(tab) != shown)


def test_a_proposal_is_gone_to_by_its_number(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    tab.click_on("#tab-proposals")
    readout = "document.querySelector('.readout').textContent"
    tab.click_on(".chosen li:nth-child(1) button")
    settle(tab)
    first = tab.run(readout)
    tab.click_on(".chosen li:nth-child(2) button")
    tab.wait(f"{readout} !== {first!r}")


def test_a_plane_alone_takes_the_whole_viewer(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    pictures = []
    for layout in ("axial", "coronal", "render", "planes"):
        enter(tab, "select[name=layout]", layout, event="change")
        pictures.append(stage(tab))
    for one, other in combinations(pictures, 2):
        assert np.count_nonzero(np.any(one != other, axis=2)) > 5000


def test_the_keys_a_and_l_switch_outlines(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    tab.run("document.querySelector('.stage canvas').focus()")
    for key, name in (("a", "atoms"), ("l", "labels")):
        for shown in (True, False):
            tab.press(key, text=key)
            assert tab.run(f"document.querySelector('input[name={name}]').checked") is shown


def test_an_unusual_scan_opens_from_its_card(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    tab.click_on(".card a.open[data-scan=drawn_2]")
    tab.wait("document.querySelector('h3.opened').textContent === 'drawn_2'")
    tab.wait("!document.querySelector('[aria-busy]')")
    reasons = tab.run("document.querySelector('.reasons').textContent")
    assert re.fullmatch(r"Unusual: \d+% of the proposals outside the body", reasons)
    for name in ("clientWidth", "title"):  # the table has the kind only where a value follows it
        assert tab.run(f"document.querySelector('.vtable [data-key=unusual]').{name}")


def test_a_result_is_shown_beside_its_label_and_its_colours_tell_both(
    tab: Tab, store: Store, tmp_path: Path
) -> None:
    scan = store.scan("drawn_1")
    (name,) = scan.label_names
    drawn = np.roll(scan.labels(name), 2, axis=2)
    compared = compare_one(scan, drawn)
    out = tmp_path / "results.html"
    out.write_text(results_page(store, tmp_path, [compared], 10**7), encoding="utf-8")
    tab.size(1000, 620)
    tab.open(out.as_uri())
    tab.run("document.getElementById('viewer').scrollIntoView()")
    tab.wait("document.querySelector('h3.opened')?.textContent === 'drawn_1'")
    tab.wait("!document.querySelector('[aria-busy]')")
    assert tab.run("document.getElementById('tab-ladder').hidden")  # it has no proposals
    # The worst structure is shown at once.
    assert tab.run("document.querySelector('.pairs li:nth-child(2) button').ariaPressed") == "true"
    before = tab.run("document.querySelector('.legend').innerText")
    pair = compared.pairs[0]
    assert f"{pair.name}: IoU {pair.iou:.3f}, Dice {pair.dice:.3f}" in before
    figures = dict(re.findall(r"(both|missed|beyond the label): ([\d.]+)", before))
    mask, other = scan.labels(name) == pair.value, drawn == pair.value
    ml = float(np.prod(scan.spacing_zyx_mm)) / 1000
    expected = {"both": mask & other, "missed": mask & ~other, "beyond the label": other & ~mask}
    assert {k: float(v) for k, v in figures.items()} == pytest.approx(
        {k: float(v.sum()) * ml for k, v in expected.items()}, rel=0.01
    )
    # All labels: what was drawn has outlines in white.
    tab.click_on(".pairs li:first-child button")
    assert "White outlines" in tab.run("document.querySelector('.legend').innerText")
    outlined = white(stage(tab))
    tab.run("document.querySelector('input[name=labels]').click()")
    assert white(stage(tab)) < outlined - 20


def test_names_in_a_scan_stay_text(tab: Tab, page: str) -> None:
    open_viewer(tab, page, "hostile")
    tab.click_on("#tab-labels")
    tab.click_on("#tab-proposals")
    tab.run("document.querySelector('details summary').click()")
    assert tab.run("globalThis.harmed") is None
    assert HOSTILE in tab.run("document.body.innerText")


def test_text_has_contrast_in_both_themes_and_nothing_is_wider_than_the_window(tab: Tab, page: str) -> None:
    open_viewer(tab, page)
    for dark in (False, True):
        tab.size(1000, 620, dark=dark)
        for mode in ("ladder", "proposals", "labels"):
            tab.run(f"document.getElementById('tab-{mode}').click()")
            assert tab.run(LOW_CONTRAST) == []
    for width in (1600, 1400, 1366, 1280, 1024, 800, 390, 320):
        tab.size(width, 800)
        settle(tab)
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(CUT) == [], width


def many_rows(store: Store, number: int) -> list[ScanRow]:
    rng = np.random.default_rng(0)
    row = index_row(store.entries["drawn_1"])
    return [
        replace(
            row,
            scan_id=f"scan_{k:06}",
            dataset=f"collection_{k % 7}",
            shape_zyx=(1200, 512, 512),
            modality=("ct", "mr", "pet")[k % 3],
            num_proposals=int(rng.integers(200, 2000)),
            covered=float(rng.uniform(0.5, 1)),
            mean_iou=float(rng.uniform(0, 1)) if k % 2 else None,
        )
        for k in range(number)
    ]


@pytest.fixture(scope="module")
def long_page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("long") / "report.html"
    path.write_text(store_page(StoreContents(name="S", rows=many_rows(store, 5000))), encoding="utf-8")
    return path.as_uri()


def first_cells(tab: Tab, column: str, number: int = 5) -> list[str]:
    cells: list[str] = tab.run(
        f"[...document.querySelectorAll('.vtable .spacer [data-key={column}]')].slice(0, {number})"
        ".map((cell) => cell.textContent)"
    )
    return cells


def test_5000_scans_take_less_than_3_seconds_of_work(tab: Tab, long_page: str) -> None:
    with browser(chromium()) as fresh:  # its count of work begins at 0
        fresh.open(long_page)
        fresh.wait(f"{ROWS}.length > 0")
        assert 0.01 < fresh.work_seconds() < 3
    tab.size(1400, 1000)
    tab.open(long_page)
    tab.wait(f"{ROWS}.length > 0")
    assert tab.run(f"{ROWS}.length") < 80
    assert tab.run(CUT) == []
    tab.run("document.querySelector('.vtable').scrollTop = 1e9")
    tab.wait(f"{SCANS}.includes('scan_004999')")


def test_the_table_sorts_by_a_heading_and_missing_values_come_last(tab: Tab, long_page: str) -> None:
    tab.size(1400, 1000)
    tab.open(long_page)
    for _ in range(2):
        tab.run(
            "[...document.querySelectorAll('.vtable .head button')]"
            ".find((b) => b.textContent === 'best IoU').click()"
        )
    values = [float(text) for text in first_cells(tab, "iou")]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.99
    heading = (
        "[...document.querySelectorAll('[role=columnheader]')].find((h) => h.textContent === 'best IoU')"
    )
    assert tab.run(f"{heading}.getAttribute('aria-sort')") == "descending"
    tab.run("document.querySelector('.vtable').scrollTop = 1e9")
    settle(tab)
    assert first_cells(tab, "iou", 100)[-1] == ""


def test_search_and_filters_must_all_hold(tab: Tab, long_page: str) -> None:
    tab.size(1400, 1000)
    tab.open(long_page)

    def found(words: str) -> str:
        enter(tab, "input[type=search]", words)
        return str(tab.run("document.querySelector('.tools [role=status]').textContent"))

    assert found("scan_000007") == "1 of 5,000 scans"
    assert found("modality=ct proposals<300 iou>=0.5").endswith("of 5,000 scans")
    settle(tab)
    rows = list(zip(*(first_cells(tab, key, 20) for key in ("modality", "proposals", "iou")), strict=True))
    assert rows
    assert all(m == "CT" and int(p) < 300 and float(i) >= 0.5 for m, p, i in rows)
    assert found("collection_3") == "714 of 5,000 scans"
    assert found("nothing like it") == "0 of 5,000 scans"


def test_the_table_is_gone_through_by_keys(tab: Tab, long_page: str) -> None:
    tab.size(1400, 1000)
    tab.open(long_page)
    tab.run("document.querySelector('.vtable').focus()")
    for key in ("End", "ArrowUp"):
        tab.press(key)
    chosen = "document.querySelector('.vtable [aria-selected=true] [data-key=scan]').textContent"
    assert tab.run(chosen) == "scan_004998"
    tab.press("Enter")
    tab.wait(
        "document.getElementById('viewer-note').textContent.startsWith('scan_004998 is not in this page')"
    )


@pytest.mark.parametrize("number", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_as_many_scans_as_there_are_do_not_break_the_table(
    number: int, tab: Tab, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "many.html"
    path.write_text(store_page(StoreContents(name="S", rows=many_rows(store, number))), encoding="utf-8")
    tab.size(1400, 1000)
    tab.open(path.as_uri())
    tab.run("document.querySelector('.vtable').scrollTop = 1e9")
    tab.wait(f"{SCANS}.includes('scan_{number - 1:06}')")


def test_on_a_telephone_each_scan_is_a_card(tab: Tab, long_page: str) -> None:
    tab.size(390, 800)
    tab.open(long_page)
    tab.wait("document.querySelectorAll('.vtable .spacer .tr').length > 0")
    out = (
        "[...document.querySelectorAll('.vtable .spacer .tr > div')].filter((d) => d.checkVisibility())"
        ".some((d) => d.getBoundingClientRect().right > 390)"
    )
    assert not tab.run(out)


def test_a_served_store_opens_every_scan(tab: Tab, store: Store) -> None:
    tab.messages.clear()
    tab.requests.clear()
    with StoreServer(store, [], port=0) as server:
        server.survey.read(threading.Event())
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            for scan_id in ("drawn_2", "hostile"):
                open_viewer(tab, server.address, scan_id)
                assert blueish(stage(tab)) > 100
            assert tab.messages == []
            assert all(url.startswith(server.address) for url in tab.requests)
            assert tab.run("globalThis.harmed") is None
        finally:
            server.shutdown()
            thread.join()
