"""Files of carried label maps: read as they were written, in any box and level; what is wrong is named."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import Store
from training.errors import DataError
from training.finetuning.carried_labels import (
    CarriedLabels,
    Question,
    file_name,
    read_carried,
    read_carried_table,
    write_carried,
)

LABEL = "structures"
QUESTION = Question(label=LABEL, names={1: "organ", 3: "lung"}, references={"phantom-0": "a"})


def drawn_map(labels: np.ndarray, scan_id: str = "phantom-1", **changes: object) -> CarriedLabels:
    about = {
        "scan_id": scan_id,
        "digest": "b",
        "question": QUESTION,
        "confidences": {1: 0.8, 3: 0.6},
        "agreement": 0.5,
    }
    return CarriedLabels.of(labels.astype(np.uint16), **{**about, **changes})


def test_a_map_is_read_as_the_label_map_of_a_scan_is_in_every_box_and_level(phantom_store: Store) -> None:
    scan = phantom_store.scan("phantom-0")
    labels = scan.labels(LABEL)
    labels[:9] = labels[:, :5] = 0
    carried = drawn_map(labels)
    assert carried.box.size < labels.size
    np.testing.assert_array_equal(carried.labels(), labels)
    whole = drawn_map(scan.labels(LABEL))
    generator = np.random.default_rng(0)
    for window in (64, 16, 12, 7, 3):
        level = scan.level_for((window,) * 3)
        np.testing.assert_array_equal(whole.labels(level=level), scan.labels(LABEL, level=level))
        for _ in range(20):
            ends = np.sort(generator.integers(0, np.array(level.shape_zyx) + 1, (2, 3)), axis=0)
            region = tuple(slice(int(low), int(high)) for low, high in ends.T)
            expected = scan.labels(LABEL, region, level=level)
            np.testing.assert_array_equal(whole.labels(region, level), expected, err_msg=f"{window} {region}")


def test_a_map_without_a_structure_is_empty_everywhere(tmp_path: Path) -> None:
    carried = drawn_map(np.zeros((4, 6, 5)))
    write_carried(tmp_path, carried)
    again = read_carried(tmp_path / file_name("phantom-1"))
    assert again.labels().shape == (4, 6, 5)
    assert not again.labels().any()
    assert not again.labels((slice(1, 3), slice(0, 6), slice(2, 5))).any()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    labels = np.zeros((6, 7, 8), np.uint16)
    labels[2:4, 3:6, 1:7] = 3
    labels[3, 4, 2] = 40_000
    carried = drawn_map(labels)
    write_carried(tmp_path, carried)
    again = read_carried(tmp_path / file_name("phantom-1"))
    np.testing.assert_array_equal(again.labels(), labels)
    assert again.question == QUESTION
    assert (again.confidences, again.confidence, again.agreement) == ({1: 0.8, 3: 0.6}, 0.7, 0.5)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "phantom-1.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"phantom-1\.npz: damaged"):
        read_carried(tmp_path / "phantom-1.npz")


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    write_carried(tmp_path, drawn_map(np.ones((2, 2, 2))))
    (tmp_path / "phantom-1.npz").rename(tmp_path / "phantom-2.npz")
    with pytest.raises(DataError, match="of another scan"):
        read_carried(tmp_path / "phantom-2.npz")


def test_a_folder_is_only_trained_on_as_long_as_it_is_of_these_scans(tmp_path: Path) -> None:
    write_carried(tmp_path, drawn_map(np.ones((2, 2, 2))))
    digests = {"phantom-0": "a", "phantom-1": "b"}
    table = read_carried_table(tmp_path, digests)
    assert table.confidences == {"phantom-1": 0.7}
    for changed in ("phantom-0", "phantom-1"):
        with pytest.raises(DataError, match="all 1 label maps are out of date"):
            read_carried_table(tmp_path, digests | {changed: "c"})
    with pytest.raises(DataError, match="prepared anew since or removed"):
        read_carried_table(tmp_path, {"phantom-1": "b"})
    with pytest.raises(DataError, match="no labels here that are carried over to scans of this store"):
        read_carried_table(tmp_path, {"phantom-7": "b"})
    other = replace(QUESTION, names={1: "organ"})
    write_carried(tmp_path, drawn_map(np.ones((2, 2, 2)), "phantom-2", question=other))
    with pytest.raises(DataError, match="a folder of its own"):
        read_carried_table(tmp_path, digests | {"phantom-2": "b"})
    with pytest.raises(DataError, match="no folder of carried labels"):
        read_carried_table(tmp_path / "none", digests)


def test_the_checksum_follows_what_is_drawn_and_where(tmp_path: Path) -> None:
    labels = np.zeros((6, 6, 6))
    labels[1:3, 1:3, 1:3] = 1
    sums = set()
    for drawn in (labels, np.roll(labels, 1, axis=0), labels * 3):
        write_carried(tmp_path, drawn_map(drawn))
        digests = {"phantom-0": "a", "phantom-1": "b"}
        sums.add(read_carried_table(tmp_path, digests).checksums["phantom-1"])
    assert len(sums) == 3


def test_a_map_that_is_out_of_date_is_left_out(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_carried(tmp_path, drawn_map(np.ones((2, 2, 2)), f"phantom-{number}"))
    digests = {"phantom-0": "a", "phantom-1": "c", "phantom-2": "b", "phantom-3": "b"}
    table = read_carried_table(tmp_path, digests)
    assert table.stale == ("phantom-1",)
    assert set(table.confidences) == set(table.checksums) == {"phantom-2", "phantom-3"}


def is_named_damaged(path: Path) -> bool:
    try:
        read_carried(path)
    except DataError as error:
        return "damaged" in str(error)
    return False


def test_a_flipped_bit_anywhere_is_named_and_no_other_error(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 9, 9))
    write_carried(tmp_path, drawn_map(labels))
    path = tmp_path / file_name("phantom-1")
    whole = path.read_bytes()
    named = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        named += is_named_damaged(path)
    assert named > len(whole) // 14


def test_the_table_keeps_no_label_map_in_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (60, 60, 60))  # 432 kB a map
    digests = {"phantom-0": "a"}
    for number in range(1, 11):
        write_carried(tmp_path, drawn_map(noise, f"phantom-{number}"))
        digests[f"phantom-{number}"] = "b"
    tracemalloc.start()
    try:
        read_carried_table(tmp_path, digests)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2 * noise.size
    finally:
        tracemalloc.stop()
