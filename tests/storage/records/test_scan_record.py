from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from storage import InvalidRecord, LabelVolume, ScanRecord
from storage.records.proposal_checks import atom_extents, count_atoms
from tests.storage.drawn_record import draw_record


@pytest.mark.parametrize(
    "scan_id",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "-x", "a b", "ä", "a\n", "a" * 129, "a\0b"],
)
def test_an_id_that_could_leave_its_folder_is_refused(record: ScanRecord, scan_id: str) -> None:
    with pytest.raises(InvalidRecord, match="safe id"):
        replace(record, scan_id=scan_id)


@pytest.mark.parametrize("name", ["atoms", "atoms_1", "zarr.json", "..", "a/b", ""])
def test_a_label_may_not_take_the_name_of_the_atoms_or_leave_its_folder(name: str) -> None:
    with pytest.raises(InvalidRecord, match="label name"):
        LabelVolume(name=name, array=np.zeros((2, 2, 2), np.uint8), value_names={})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scale": 0.0}, "scale > 0"),
        ({"offset": float("nan")}, "finite"),
        ({"spacing_zyx_mm": (1.0, -1.0, 1.0)}, "spacings > 0"),
        ({"image": np.zeros((3, 3), np.int16)}, "3 axes"),
        ({"image": np.zeros((70, 50, 90), np.float32)}, "int16"),
        ({"image": np.zeros((70, 50, 91), np.int16)}, "share one grid"),
        ({"modality": ""}, "modality"),
        ({"atoms": (), "orders": ()}, "orders for each atom layer"),
        ({"scores": np.zeros(3, np.float32)}, "scores"),
        ({"scores": np.arange(7, dtype=np.float32)}, "never rise"),
        ({"scores": np.full(7, np.nan, np.float32)}, "finite"),
        ({"sources": ("one",)}, "source must lie in"),
        ({"table": np.zeros((0, 11), np.int32), "scores": np.zeros(0, np.float32)}, "no proposal"),
        ({"table": np.ones((7, 11), np.int64)}, r"table must be int32 \(N, 11\)"),
        ({"table": np.ones((7, 10), np.int32)}, r"table must be int32 \(N, 11\)"),
        ({"attributes": {"x": float("nan")}}, "JSON"),
        ({"attributes": {"x": np.float32(1)}}, "JSON"),
        ({"attributes": {"intensity": {"low": 0}}}, "intensity"),
        ({"attributes": {"intensity": {"low": 0, "high": 1, "mean": 0, "std": 0, "unit": ""}}}, "std > 0"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_by_name(
    record: ScanRecord, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidRecord, match=reason) as caught:
        replace(record, **changes)
    assert "scan-1" in str(caught.value) or "intensity" in str(caught.value)


def test_two_labels_of_one_name_are_refused(record: ScanRecord) -> None:
    with pytest.raises(InvalidRecord, match="two labels"):
        replace(record, labels=record.labels * 2)


@pytest.mark.parametrize(("column", "name"), [(3, "z0"), (5, "x0"), (6, "z1"), (8, "x1"), (9, "voxels")])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_box_or_count_that_is_off_by_one_is_found(
    record: ScanRecord, column: int, name: str, step: int
) -> None:
    table = record.table.copy()
    table[4, column] += step
    with pytest.raises(InvalidRecord, match="proposal 4"):
        replace(record, table=table)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 1), (0, 10_000)])
def test_what_is_no_interval_is_refused(record: ScanRecord, start: int, stop: int) -> None:
    table = record.table.copy()
    table[0, 1:3] = start, stop
    with pytest.raises(InvalidRecord, match="no interval"):
        replace(record, table=table)


def test_an_order_that_repeats_an_atom_is_refused(record: ScanRecord) -> None:
    orders = record.orders[0].copy()
    orders[1, 0] = orders[1, 1]
    with pytest.raises(InvalidRecord, match="none of them twice"):
        replace(record, orders=(orders, record.orders[1]))


def test_a_layer_needs_an_order_of_uint16_rows(record: ScanRecord) -> None:
    one, other = record.orders
    for row in (other.astype(np.int32), other[:, :, None]):
        with pytest.raises(InvalidRecord, match="orders 1: a row must be uint16 with 1 axis"):
            replace(record, orders=(one, row))
    first = [0, 1]  # the proposals of layer 0
    fewer = {"table": record.table[first], "scores": record.scores[first]}
    with pytest.raises(InvalidRecord, match="orders 1: needs a row at least"):
        replace(record, orders=(one, other[:0]), **fewer)
    replace(record, **fewer)  # but an order may be without a proposal


def test_a_record_needs_no_intensity_statistics(record: ScanRecord) -> None:
    assert replace(record, attributes={}).attributes == {}


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2), np.int16), np.zeros((2, 2), np.uint8)])
def test_a_label_is_a_volume_of_small_unsigned_integers(array: np.ndarray) -> None:
    with pytest.raises(InvalidRecord, match=r"must be uint8 or uint16 \(z, y, x\)"):
        LabelVolume(name="organs", array=array, value_names={})


@pytest.mark.parametrize("names", [{256: "liver"}, {-1: "liver"}, {"1": "liver"}, {1: 2}])
def test_only_a_value_that_the_label_can_hold_has_a_name(names: dict[int, str]) -> None:
    with pytest.raises(InvalidRecord, match=r"value_names maps 0\.\.255 to names"):
        LabelVolume(name="organs", array=np.zeros((2, 2, 2), np.uint8), value_names=names)


@pytest.mark.parametrize(
    "volume", [np.zeros((2, 2, 2), np.int32), np.zeros((2, 2), np.uint16), np.zeros((0, 2, 2), np.uint16)]
)
def test_what_is_no_uint16_volume_has_no_atoms(volume: np.ndarray) -> None:
    with pytest.raises(InvalidRecord, match=r"atom layer 1: must be uint16 \(z, y, x\)"):
        count_atoms(1, volume)


def test_an_id_beyond_the_number_of_atoms_is_refused() -> None:
    volume = np.array([[[0, 1, 2, 65_534]]], np.uint16)
    with pytest.raises(InvalidRecord, match=r"ids must lie in 0\.\.1, got 2"):
        atom_extents(volume, 2, has_background=True)
    with pytest.raises(InvalidRecord, match=r"ids must lie in 0\.\.2, got 65534"):
        atom_extents(volume, 3, has_background=False)


@pytest.mark.parametrize("stranger", [65_535, 65_534, 5_000])
def test_layer_0_must_cover_every_voxel_with_a_known_atom(record: ScanRecord, stranger: int) -> None:
    atoms = record.atoms[0].copy()
    atoms[1, 2, 3] = stranger
    reason = "has no voxel" if stranger == 5_000 else f"got {stranger}"
    with pytest.raises(InvalidRecord, match=reason):
        replace(record, atoms=(atoms, record.atoms[1]))


def test_an_atom_without_a_voxel_is_refused(record: ScanRecord) -> None:
    atoms = record.atoms[0].copy()
    atoms[atoms == 7] = 8
    with pytest.raises(InvalidRecord, match="atom 7 of"):
        replace(record, atoms=(atoms, record.atoms[1]))


def test_extents_are_those_of_every_voxel() -> None:
    volume = np.random.default_rng(0).integers(0, 30, (5, 6, 7)).astype(np.uint16)
    volume[0, 0] = 65_534
    sizes, lows, highs = atom_extents(volume, 30, has_background=True)
    for atom in range(30):
        places = np.argwhere(volume == atom)
        assert sizes[atom] == len(places)
        assert (lows[atom] == places.min(axis=0)).all()
        assert (highs[atom] == places.max(axis=0) + 1).all()


def test_a_one_voxel_scan_is_a_scan() -> None:
    one = np.zeros((1, 1, 1), np.uint16)
    record = draw_record(layers=1)
    replace(
        record,
        image=one.astype(np.int16),
        labels=(),
        atoms=(one,),
        orders=(np.zeros((1, 1), np.uint16),),
        table=np.array([[0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0]], np.int32),
        scores=np.ones(1, np.float32),
    )
