from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings, strategies as st

from storage import InvalidSelection, Scan, ScanRecord, commit_scan, create_store, open_store
from storage.records.regions import Region, parse_region, touched_chunks
from tests.storage.drawn_record import SHAPE, draw_record, record_masks


def regions(shape: tuple[int, ...] = SHAPE) -> st.SearchStrategy[Region]:
    axes = [
        st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda ends: slice(*sorted(ends)))
        for size in shape
    ]
    return st.tuples(*axes)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    path = tmp_path_factory.mktemp("scans") / "store"
    create_store(path, spacing_mm=1.5, config={})
    commit_scan(path, draw_record())
    return open_store(path).scan("scan-1")


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return record_masks(draw_record())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(region=regions(), ids=st.lists(st.integers(0, 6), max_size=16))
def test_bit_k_of_a_word_is_mask_k(scan: Scan, truth: np.ndarray, region: Region, ids: list[int]) -> None:
    words = scan.words(ids, region)
    assert words.dtype == np.uint16
    expected = np.zeros(words.shape, dtype=np.uint16)
    for bit, proposal in enumerate(ids):
        expected |= truth[proposal][region].astype(np.uint16) << bit
    np.testing.assert_array_equal(words, expected)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(region=regions(), ids=st.lists(st.integers(0, 6), max_size=20))
def test_masks_are_those_of_the_definition(
    scan: Scan, truth: np.ndarray, region: Region, ids: list[int]
) -> None:
    np.testing.assert_array_equal(scan.masks(ids, region), truth[ids][(slice(None), *region)])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(region=regions())
def test_a_region_is_what_slicing_the_whole_gives(scan: Scan, record: ScanRecord, region: Region) -> None:
    np.testing.assert_array_equal(scan.image_codes(region), record.image[region])
    np.testing.assert_array_equal(scan.atoms(0, region), record.atoms[0][region])
    np.testing.assert_array_equal(scan.atoms(1, region), record.atoms[1][region])
    np.testing.assert_array_equal(scan.labels("organs", region), record.labels[0].array[region])
    crop = scan.crop([0, 5], region)
    np.testing.assert_array_equal(crop.image, scan.image(normalize=True)[region])
    np.testing.assert_array_equal(crop.words, scan.words([0, 5])[region])


@settings(max_examples=200)
@given(
    data=st.data(),
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    chunk=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_touched_chunks_cover_every_voxel_of_a_region_once(
    data: st.DataObject, shape: tuple[int, ...], chunk: tuple[int, ...]
) -> None:
    region = data.draw(regions(shape))
    count = np.zeros(shape, int)
    for place, inside, target in touched_chunks(region, chunk):
        absolute = tuple(
            slice(p * c + s.start, p * c + s.stop) for p, c, s in zip(place, chunk, inside, strict=True)
        )
        counted = tuple(
            slice(t.start + r.start, t.stop + r.start) for t, r in zip(target, region, strict=True)
        )
        assert absolute == counted
        count[absolute] += 1
    assert count.sum() == count[region].size
    assert (count[region] == 1).all()


def test_a_scan_comes_back_as_it_was_committed(scan: Scan, record: ScanRecord) -> None:
    again = scan.record()
    for field in fields(ScanRecord):
        if field.name in ("labels", "orders", "table"):
            continue
        np.testing.assert_equal(getattr(again, field.name), getattr(record, field.name))
    np.testing.assert_array_equal(again.table[:, 3:], record.table[:, 3:])
    np.testing.assert_array_equal(record_masks(again), record_masks(record))
    assert again.labels[0].name == "organs"
    assert again.labels[0].value_names == {1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(again.labels[0].array, record.labels[0].array)


def test_a_scan_read_back_is_the_very_same_scan(scan: Scan) -> None:
    assert commit_scan(scan.path.parents[2], scan.record()) == scan.entry


def test_zarr_python_reads_the_same_voxels(scan: Scan, record: ScanRecord) -> None:
    group = zarr.open_group(scan.path, mode="r")
    np.testing.assert_array_equal(group["0"][:], record.image)
    np.testing.assert_array_equal(group["labels/atoms/0"][:], record.atoms[0])
    np.testing.assert_array_equal(group["labels/atoms_1/0"][:], record.atoms[1])
    np.testing.assert_array_equal(group["labels/organs/0"][:], record.labels[0].array)
    np.testing.assert_array_equal(group["segments/1"][:], [[2], [1]])
    np.testing.assert_array_equal(group["proposals"][:], scan.proposals.table)
    np.testing.assert_array_equal(group["level_voxels"][:], scan.level_voxels)
    np.testing.assert_array_equal(group["scores"][:], record.scores)
    assert group["labels/atoms/0"].fill_value == 65_535


def test_image_is_in_real_units_and_z_scores_on_request(scan: Scan, record: ScanRecord) -> None:
    real = record.image.astype(np.float64) * 0.5 - 3.0
    assert scan.image().dtype == np.float32
    np.testing.assert_allclose(scan.image(), real, rtol=1e-6)
    intensity = scan.intensity
    np.testing.assert_allclose(
        scan.image(normalize=True), (real - intensity.mean) / intensity.std, rtol=1e-4, atol=1e-5
    )
    assert intensity.unit == "HU"


def test_columns_have_their_names(scan: Scan, record: ScanRecord) -> None:
    proposals = scan.proposals
    assert len(proposals) == 7
    np.testing.assert_array_equal(proposals.order, record.table[:, 0])
    np.testing.assert_array_equal(record.proposals.layer, proposals.layer)
    np.testing.assert_array_equal(proposals.stop - proposals.start, record.table[:, 2] - record.table[:, 1])
    np.testing.assert_array_equal(proposals.boxes, record.table[:, 3:9])
    np.testing.assert_array_equal(proposals.voxels, record_masks(record).sum(axis=(1, 2, 3)))
    assert proposals.layer.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert proposals.source_names.tolist() == ["linkage"] * 2 + ["area"] * 2 + ["components"] * 3
    with pytest.raises(ValueError, match="read-only"):
        proposals.table[0, 0] = 1


@pytest.mark.parametrize(
    "region",
    [
        (slice(0, 71), slice(None), slice(None)),
        (slice(-1, 5), slice(None), slice(None)),
        (slice(5, 3), slice(None), slice(None)),
        (slice(0, 9, 2), slice(None), slice(None)),
        (slice(0, 9), slice(None)),
        (3, slice(None), slice(None)),
    ],
)
def test_a_region_outside_the_scan_is_refused_not_clipped(scan: Scan, region: Region) -> None:
    with pytest.raises(InvalidSelection, match="scan-1"):
        scan.image(region)


def test_open_ends_are_the_scans_own() -> None:
    assert parse_region((slice(None), slice(2, None), slice(None, 3)), (4, 5, 6), where="") == (
        slice(0, 4),
        slice(2, 5),
        slice(0, 3),
    )


def test_what_the_scan_lacks_is_named(scan: Scan) -> None:
    with pytest.raises(InvalidSelection, match="no label 'bones'; it has organs"):
        scan.labels("bones")
    with pytest.raises(InvalidSelection, match=r"proposal 7 is not in 0\.\.6"):
        scan.words([7])
    with pytest.raises(InvalidSelection, match="proposal -1"):
        scan.masks([-1])
    with pytest.raises(InvalidSelection, match="atom layer 2"):
        scan.atoms(2)
    with pytest.raises(InvalidSelection, match="16 masks, got 17"):
        scan.words(range(17))


def test_a_scan_tells_how_many_atoms_each_layer_has(scan: Scan, record: ScanRecord) -> None:
    assert [scan.num_atoms(layer) for layer in range(scan.num_layers)] == [int(record.atoms[0].max()) + 1, 2]
    with pytest.raises(InvalidSelection, match="atom layer 2"):
        scan.num_atoms(2)


def test_a_scan_and_its_store_show_which_they_are(scan: Scan) -> None:
    assert repr(scan) == "Scan('scan-1', shape_zyx=(70, 50, 90), num_proposals=7)"
    root = scan.path.parents[2]
    assert repr(open_store(root)) == f"Store({str(root)!r})"


def test_no_masks_are_no_bits(scan: Scan) -> None:
    assert not scan.words([]).any()
    assert scan.masks([]).shape == (0, *SHAPE)


def _sum_words(scan: Scan) -> int:
    return int(scan.words([0, 1, 4]).sum())


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pickled_scan_reads_in_a_fresh_process(scan: Scan, method: str) -> None:
    expected = _sum_words(scan)  # with its readers in use
    assert len(pickle.dumps(scan)) < 2_000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_sum_words, (scan,)) == expected


def test_reading_does_not_import_zarr(scan: Scan) -> None:
    code = (
        "import sys; from storage import open_store; "
        f"scan = open_store({str(scan.path.parents[2])!r}).scan('scan-1'); scan.crop([0, 4]); "
        "print('zarr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_reader_starts_no_blosc_threads(scan: Scan) -> None:
    code = (
        "import numcodecs.blosc as blosc; from storage import open_store; "
        f"open_store({str(scan.path.parents[2])!r}).scan('scan-1').crop([0]); print(blosc.use_threads)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_storage_imports_nothing_heavy() -> None:
    code = (
        "import sys, storage; heavy = {'zarr', 'numpy', 'numcodecs', 'storage.reading.scans'}; "
        "print(sorted(heavy & set(sys.modules)), all(getattr(storage, name) for name in storage.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_chunks_outside_the_masks_boxes_are_not_read(tmp_path: Path) -> None:
    record = draw_record(shape=(130, 10, 10))
    create_store(tmp_path / "store", spacing_mm=1.5, config={})
    commit_scan(tmp_path / "store", record)
    scan = open_store(tmp_path / "store").scan("scan-1")
    inside = int(np.flatnonzero(record.table[:, 6] <= 64)[0])
    shard = scan.path / "labels/atoms/0/c.0.0.0"
    scan.words([0])
    data = bytearray(shard.read_bytes())
    start = int(scan._files.array("labels/atoms/0")._table.offsets[1, 0, 0])
    data[start + 20] ^= 1  # the second chunk
    shard.write_bytes(data)
    np.testing.assert_array_equal(scan.words([inside]).astype(bool), record_masks(record)[inside])
