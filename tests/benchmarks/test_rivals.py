"""Few-shot beside copying and registration: methods on drawn scans, pairs, the cells that are kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from benchmarks import rivals
from benchmarks.registration import METHODS, affine, affine_demons, copied, majority
from benchmarks.rivals import WHOLE, cut_to_border, draw_pairs, patient_of, run, structures_of, to_markdown
from storage import Store
from tests.training.phantom_store import make_phantom_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_phantom_store(tmp_path_factory.mktemp("rivals") / "store")


def options(**changes: object) -> argparse.Namespace:
    values = {"targets": 1, "references": 2, "shots": 1, "keep_out": None, "seed": 0}
    return argparse.Namespace(**values | changes)


def scan(shift: tuple[int, int, int] = (0, 0, 0), noise: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright box in a body, moved."""
    labels = np.zeros((24, 40, 40), np.uint16)
    labels[8:16, 12:24, 14:26] = 2
    labels = np.roll(labels, shift, (0, 1, 2))
    body = np.zeros(labels.shape)
    body[3:21, 5:35, 5:35] = 1
    image = ndimage.gaussian_filter(np.roll(body, shift, (0, 1, 2)) + 2.0 * (labels > 0), 1.0)
    image += np.random.default_rng(noise).normal(0, 0.02, image.shape)
    return image.astype(np.float32), labels


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float(((a > 0) & (b > 0)).sum()) / float((a > 0).sum() + (b > 0).sum())


@pytest.mark.parametrize("name", METHODS)
def test_a_scan_shown_to_itself_keeps_its_labels(name: str) -> None:
    image, labels = scan()
    found = METHODS[name]([(image, labels)], image)
    assert found.shape == image.shape
    assert set(np.unique(found)) == {0, 2}
    assert dice(found, labels) > 0.97


def test_registration_finds_what_was_moved_and_copying_does_not() -> None:
    reference, labels = scan()
    target, truth = scan((1, 5, -6), noise=1)
    lost = dice(copied(reference, labels, target), truth)
    assert lost < 0.5
    assert dice(affine(reference, labels, target), truth) > 0.85
    assert dice(affine_demons(reference, labels, target), truth) > 0.85


def test_copying_puts_middle_on_middle_and_leaves_the_rest_empty() -> None:
    labels = np.arange(1, 6, dtype=np.uint16)[:, None, None] * np.ones((1, 2, 2), np.uint16)
    image = np.zeros(labels.shape, np.float32)
    longer = copied(image, labels, np.zeros((9, 2, 2), np.float32))
    assert longer[:, 0, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0]
    shorter = copied(image, labels, np.zeros((3, 2, 2), np.float32))
    assert shorter[:, 0, 0].tolist() == [2, 3, 4]


def test_the_majority_decides_and_of_equals_the_lowest() -> None:
    answers = [np.array(values, np.uint16) for values in ([0, 2, 2], [0, 3, 3], [5, 3, 0])]
    assert majority(answers).tolist() == [0, 3, 0]
    shown = [(np.zeros((1, 1, 3), np.float32), answer[None, None]) for answer in answers]
    assert METHODS["copied"](shown, shown[0][0]).ravel().tolist() == [0, 3, 0]


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_keeps_the_structures_whole_and_brings_them_to_the_border(seed: int) -> None:
    image, labels = scan((0, -6, 8))
    part, kept = cut_to_border(image, labels, seed)
    assert part.shape == kept.shape == (24, 26, 26)
    assert (kept > 0).sum() == (labels > 0).sum()
    for axis in (1, 2):
        inside = np.flatnonzero((kept > 0).any(axis=tuple({0, 1, 2} - {axis})))
        assert min(inside[0], kept.shape[axis] - 1 - inside[-1]) <= rivals.MARGIN_VOXELS


def test_no_patient_is_shown_to_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "patient_of", lambda scan_id: scan_id[-1] in "13579")  # two patients
    pairs = draw_pairs(store, options(references=1))
    for target in pairs.targets:
        for ids in pairs.of(target):
            assert rivals.patient_of(target) not in map(rivals.patient_of, ids)
    assert patient_of("acdc_patient003_frame02") == "acdc_patient003"


def test_too_few_patients_are_said_to_be_too_few(store: Store) -> None:
    with pytest.raises(SystemExit, match="too few labelled patients"):
        draw_pairs(store, options(references=50, shots=5))


def test_cells_are_kept_and_not_computed_again(store: Store, tmp_path: Path) -> None:
    pairs = draw_pairs(store, options())
    structures = structures_of(store, pairs, 3)
    calls = []

    def method(shown, target):  # type: ignore[no-untyped-def]
        calls.append(1)
        return METHODS["copied"](shown, target)

    path = tmp_path / "cells.jsonl"
    first = run(store, pairs, {"copied": method}, structures, ["stored"], path)
    assert len(calls) == len(first) == 2
    again = run(store, pairs, {"copied": method}, structures, ["stored"], path)
    assert (len(calls), again) == (2, first)
    run(store, pairs, {"copied": method}, structures, ["border"], path)
    assert len(calls) == 4
    assert len({json.loads(line)["key"] for line in path.read_text().splitlines()}) == 4
    table = to_markdown(first, ["copied"], structures, ["stored"])
    assert table.splitlines()[2].startswith("| copied | 1.00 (1.00-1.00)")  # phantoms are all alike
    assert WHOLE in table or len(structures) == 1
