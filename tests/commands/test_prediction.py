"""What a scan will take: the curve through prepared scans, and the memory by size."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.many_scans import FAST
from commands.plan import size
from commands.prepare.memory import PROCESS_BYTES, MemoryShares, TooLittleMemory, predicted_peak
from commands.prepare.prediction import Cost, Curve, Point, run_trial, seconds_of_run, stored_share
from commands.prepare.settings import Settings
from pipeline.discovery import discover
from pipeline.ingest import ScanHeader
from storage import IndexEntry
from tests.phantom import phantom

POINTS = (
    Point(voxels=1e6, seconds=10.0, processor_seconds=20.0, num_bytes=4e6),
    Point(voxels=1e4, seconds=1.0, processor_seconds=1.0, num_bytes=4e5),
)


def test_a_curve_goes_through_its_points_and_on() -> None:
    curve = Curve.through(POINTS)
    assert curve.at(1e6, "seconds") == 10.0
    assert curve.at(1e5, "seconds") == pytest.approx(10**0.5)
    assert curve.at(1e5, "processor_seconds") == pytest.approx(20**0.5)
    assert curve.at(1e7, "num_bytes") == pytest.approx(4e6 * 10**0.8)
    assert curve.at(1e7, "seconds") == pytest.approx(10 * 10**0.65)
    assert curve.at(10, "num_bytes") == 4e5


def test_voxels_are_counted_at_the_stores_spacing() -> None:
    header = ScanHeader(shape_zyx=(10, 200, 200), spacing_zyx_mm=(5.0, 0.75, 0.75))
    cost = Curve.through(POINTS).cost(header, Settings.read(None))
    assert header.voxels_at(1.5) == 33 * 100 * 100
    assert cost.seconds == pytest.approx(Curve.through(POINTS).at(330_000, "seconds"))
    assert cost.peak_bytes == predicted_peak(400_000, 330_000)


@pytest.mark.parametrize(
    ("voxels", "gib"), [(256**3, 0.90), (512 * 512 * 500, 2.9), (512 * 512 * 2000, 11.17)]
)
def test_memory_is_predicted_as_it_was_measured(voxels: int, gib: float) -> None:
    assert gib <= predicted_peak(voxels, voxels) / 2**30 <= 1.2 * gib


def test_a_run_takes_as_long_as_its_work_and_its_longest_scan() -> None:
    costs = [Cost(seconds=s, processor_seconds=2 * s, num_bytes=1, peak_bytes=1) for s in (1.0, 2.0, 9.0)]
    assert seconds_of_run(costs, workers=1, cores=2) == 12.0
    assert seconds_of_run(costs, workers=2, cores=4) == 18.0
    assert seconds_of_run(costs[:2], workers=2, cores=4) == 4.0
    assert seconds_of_run(costs[:2], workers=4, cores=1) == 6.0
    assert seconds_of_run(costs[:2], workers=4, cores=1, slowdown=2.0) == 12.0
    assert Curve.through(POINTS).slowdown == 1.0
    busy = [replace(point, seconds=30.0) for point in POINTS]
    assert Curve.through(busy).slowdown == pytest.approx(60 / 21)


def test_the_scans_of_a_store_correct_the_bytes() -> None:
    entry = IndexEntry(
        scan_id="a", shape_zyx=(100, 100, 100), spacing_zyx_mm=(1, 1, 1), modality="ct", dataset="d",
        split="", num_proposals=1, labels=(), digests={}, digest="", num_bytes=6_000_000,
    )  # fmt: skip
    curve = Curve.through(POINTS)
    assert stored_share([entry], curve) == pytest.approx(1.5)
    assert stored_share([replace(entry, num_bytes=0)], curve) == 1.0
    assert stored_share([], curve) == 1.0


def test_a_trial_measures_what_is_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "fast.toml"
    config.write_text(FAST)
    settings = Settings.read(config)
    small = phantom(shape_zyx=(18, 30, 35), spacing_zyx_mm=(6.0, 2.4, 2.6))
    small.write(tmp_path / "raw" / "a_ct.nii")
    phantom().write(tmp_path / "raw" / "b_ct.nii")
    sources = discover(tmp_path / "raw", settings.ingest.series_rules).sources
    curve = run_trial(sources, settings, "cpu")
    assert all(point.seconds > 0 and point.num_bytes > 10_000 for point in curve.points)
    assert curve.points[0].voxels == 27 * 18 * 23


def test_shares_of_memory_are_waited_for_and_a_scan_that_never_fits_is_refused() -> None:
    limit = 4 * PROCESS_BYTES
    shares = MemoryShares(lambda: limit)
    ended: list[str] = []

    taken, seen = threading.Event(), threading.Event()

    def work(name: str, until: threading.Event) -> None:
        with shares.taken(lambda: PROCESS_BYTES + int(1.5 * PROCESS_BYTES)):
            taken.set()
            until.wait()
            ended.append(name)

    first = threading.Thread(target=work, args=("first", seen))
    first.start()
    taken.wait()
    second = threading.Thread(target=work, args=("second", seen))
    second.start()
    second.join(0.3)  # long enough that it would be done, were it not to wait
    assert second.is_alive()
    assert ended == []
    seen.set()
    first.join()
    second.join()
    assert ended == ["first", "second"]
    with pytest.raises(TooLittleMemory) as told, shares.taken(lambda: 7 * PROCESS_BYTES):
        pass
    assert str(told.value) == "needs about 3.4 GiB, and this worker may take 2.0 GiB"
    with MemoryShares(lambda: None).taken(lambda: pytest.fail("nothing to compare with")):
        pass


def test_bytes_are_told_as_people_say_them() -> None:
    assert [size(n) for n in (850_000, 2_440_000_000, 12_300_000)] == ["850 kB", "2.44 GB", "12.3 MB"]
