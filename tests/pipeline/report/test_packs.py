from __future__ import annotations

import gzip
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.quality import proposal_mask, score_scan
from pipeline.report.packs import LeveledScan, PackFacts, Pair, in_8_bits, pack_scan, pairs_of
from pipeline.report.stored import at_level
from storage import Store
from tests.drawn_store import drawn_store

VENDOR = Path(__file__).parents[3] / "pipeline" / "report" / "web" / "vendor"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return drawn_store(tmp_path_factory.mktemp("packs") / "store")


@pytest.fixture(scope="module")
def scan(store: Store) -> LeveledScan:
    return at_level(store.scan("drawn_1"), 0)


def unpack(pack: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    data = gzip.decompress(pack)
    (length,) = struct.unpack("<I", data[:4])
    header = json.loads(data[4 : 4 + length])
    arrays = {}
    for name, one in header["arrays"].items():
        size = int(np.prod(one["shape"]))
        start = 4 + length + one["offset"]
        arrays[name] = np.frombuffer(data, one["dtype"], size, start).reshape(one["shape"])
    return header["about"], arrays


def mask_in_pack(about: dict[str, Any], arrays: dict[str, NDArray[Any]], row: int) -> NDArray[np.bool_]:
    """A proposal's mask, as the browser makes it."""
    tree, first, last = arrays["proposals"][row, :3]
    where = about["trees"][tree]
    segments = np.zeros(65_536, dtype=np.int64)
    line = arrays[f"segments_{where['layer']}"][where["row"]]
    segments[: len(line)] = line
    here = segments[arrays[f"atoms_{where['layer']}"]]
    return np.asarray((here >= first) & (here <= last))


def test_every_mask_in_a_pack_is_that_of_the_store(scan: LeveledScan) -> None:
    about, arrays = unpack(pack_scan(scan))
    for row in range(len(scan.table)):
        np.testing.assert_array_equal(mask_in_pack(about, arrays, row), proposal_mask(scan, row))


def test_segment_0_is_in_no_proposal(scan: LeveledScan) -> None:
    _, arrays = unpack(pack_scan(scan))
    assert arrays["proposals"][:, 1].min() == 1
    assert (arrays["proposals"][:, 1] <= arrays["proposals"][:, 2]).all()


def test_image_and_labels_come_back_bit_for_bit(scan: LeveledScan) -> None:
    about, arrays = unpack(pack_scan(scan))
    np.testing.assert_array_equal(arrays["image"], scan.image)
    np.testing.assert_array_equal(arrays["label_0"], scan.labels[0].array)
    assert about["labels"][0]["names"]["1"] == "liver"
    assert arrays["image"].dtype == np.int16


def test_eight_bits_are_within_half_a_step_of_the_image(scan: LeveledScan) -> None:
    small = in_8_bits(scan)
    assert small.image.dtype == np.uint8
    real = scan.image * scan.scale + scan.offset
    error = np.abs(small.image * small.scale + small.offset - real)
    assert error.max() <= 0.5 * small.scale + 1e-3
    assert small.scale == pytest.approx((int(scan.image.max()) - int(scan.image.min())) / 255)


def test_an_image_of_one_value_is_packed_too(scan: LeveledScan) -> None:
    flat = replace(scan, image=np.full_like(scan.image, 7))
    small = in_8_bits(flat)
    assert small.image.max() * small.scale + small.offset == 7 * scan.scale + scan.offset


def test_a_scan_without_proposals_is_packed_with_two_label_maps_and_their_comparison(
    scan: LeveledScan,
) -> None:
    label = scan.labels[0]
    bare = replace(scan, atoms=(), orders=(), labels=(label, label))
    pair = Pair(name="liver", label=0, value=1, other=1, other_value=1, iou=1.0, dice=1.0)
    about, arrays = unpack(pack_scan(bare, PackFacts(pairs=(pair,))))
    assert set(arrays) == {"image", "label_0", "label_1"}
    assert about["num_layers"] == 0
    assert about["pairs"][0]["other"] == 1


def test_pairs_are_the_structures_of_the_score_the_worst_first(store: Store, scan: LeveledScan) -> None:
    score = score_scan(store.scan("drawn_1").record())
    pairs = pairs_of(score, scan.labels)
    assert [pair.name for pair in pairs] == ["node", "liver"]
    assert pairs[1].iou == 1.0
    assert pairs_of(None, scan.labels) == ()


def test_the_same_scan_gives_the_same_bytes(store: Store) -> None:
    assert pack_scan(at_level(store.scan("drawn_2"), 0)) == pack_scan(at_level(store.scan("drawn_2"), 0))


def test_the_viewers_library_is_the_one_that_its_script_made() -> None:
    library = gzip.decompress((VENDOR / "niivue.mjs.gz").read_bytes())
    assert hashlib.sha256(library).hexdigest() == (VENDOR / "niivue.mjs.sha256").read_text().strip()
    version = json.loads((VENDOR / "package.json").read_text())["devDependencies"]["@niivue/niivue"]
    licences = (VENDOR / "LICENSES.txt").read_text()
    assert f"@niivue/niivue {version} (BSD-2-Clause)" in licences
