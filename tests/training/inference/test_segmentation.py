"""Raw scan in, segmentation on its own grid out, with a network whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from pipeline.ingest.config import IngestConfig
from pipeline.ingest.loading import LoadedScan, find_one, read_scan
from pipeline.ingest.reading import read_source
from pipeline.ingest.standard_scan import standardize
from pipeline.toml_settings import config_values
from storage import commit_scan, create_store, open_store
from tests.phantom import Phantom, phantom, write_dicom
from tests.storage.drawn_record import draw_record
from tests.training.like_intensity import LikeInside
from training.data.whole_scans import labels_to_window
from training.errors import ConfigError, DataError
from training.inference.prompts import WHOLE_SCAN_THRESHOLD, InferenceConfig, Reference, inference_for
from training.inference.raw_scans import installed_reader
from training.inference.results import Segmentation
from training.inference.segmentation import SegmentConfig, Segmenter, segment
from training.network import SHIPPED, Iris, TrainedOn, load_checkpoint

WINDOW = InferenceConfig(window_voxels=(48, 64, 48), reference_voxels=(96, 96, 96))
CONFIG = SegmentConfig(inference=WINDOW)
INGEST = {"spacing_mm": 2.0}

AXES = [
    np.array(
        [[sign * (axis == row) for axis, sign in zip(order, signs, strict=True)] for row in range(3)], float
    )
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
"""All 48 ways in which index axes can lie along the patient's."""


def rotation(degrees: float) -> np.ndarray:
    """A rotation about no particular axis."""
    axis = np.array([0.5, 0.3, 0.8]) / np.linalg.norm([0.5, 0.3, 0.8])
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def patient(direction: np.ndarray, **more) -> Phantom:
    """The phantom on anisotropic voxels with these axes, in a shape that shows all of it.

    There is nothing but lung (3), bone (4) and what lies between in brightness: no edge between two other
    things looks like one of them.
    """
    size_mm = {0: 92.0, 1: 72.0, 2: 108.0}  # left-right, front-back, feet-head
    spacing_xyz = (1.9, 2.3, 3.1)
    lengths = [size_mm[int(np.abs(direction[:, j]).argmax())] for j in range(3)]
    x, y, z = (int(n / s) for n, s in zip(lengths, spacing_xyz, strict=True))
    drawn = phantom(shape_zyx=(z, y, x), spacing_zyx_mm=spacing_xyz[::-1], direction=direction, **more)
    return drawn.replace(image=np.where(np.isin(drawn.labels, (3, 4)), drawn.image, 40).astype(np.int16))


def read(path: Path, mask: Path | None = None, **settings) -> LoadedScan:
    return read_scan(path, mask=mask, ingest={**INGEST, **settings}, modality="ct")


def name_of(direction: np.ndarray) -> str:
    return "".join("LPSRAI"[int(np.abs(column).argmax()) + 3 * (column.sum() < 0)] for column in direction.T)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scan of the phantom with its bone (4), which lies off-centre, and lung (3)."""
    folder = tmp_path_factory.mktemp("reference")
    drawn = patient(AXES[0], seed=5)
    kept = np.where(np.isin(drawn.labels, (3, 4)), drawn.labels, 0).astype(np.uint8)
    return drawn.write(folder / "ref.nii.gz"), drawn.replace(labels=kept).write_labels(folder / "mask.nii.gz")


@pytest.fixture(scope="module")
def segmenter(reference: tuple[Path, Path]) -> Segmenter:
    scan = read(*reference)
    return Segmenter.from_references(LikeInside(), [scan], CONFIG)


def geometry(path: Path) -> tuple[np.ndarray, ...]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return tuple(
        np.array(v)
        for v in (reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    )


def expected_dice(result: Segmentation, drawn: Phantom) -> list[float]:
    return [dice(result.labels == value, drawn.labels == value) for value in (3, 4)]


@pytest.mark.parametrize("direction", AXES, ids=name_of)
def test_every_axis_order_and_flip_comes_back_on_its_own_grid(
    direction: np.ndarray, segmenter: Segmenter, tmp_path: Path
) -> None:
    drawn = patient(rotation(9) @ direction)
    path = drawn.write(tmp_path / "scan.mha")
    result = segmenter.segment(read(path))
    assert min(expected_dice(result, drawn)) > 0.85
    for axis in range(3):  # and a mirrored one would not pass
        mirrored = np.flip(result.labels, axis)
        assert dice(mirrored == 3, drawn.labels == 3) < 0.6
    result.save(tmp_path / "out.mha")
    for own, written in zip(geometry(path), geometry(tmp_path / "out.mha"), strict=True):
        np.testing.assert_array_equal(own, written)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.mha"))), result.labels
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_each_format_keeps_its_grid_to_the_last_digit(
    suffix: str, segmenter: Segmenter, tmp_path: Path
) -> None:
    path = patient(rotation(25) @ AXES[29]).write(tmp_path / f"scan{suffix}")
    scan = read(path)
    assert scan.suffix == suffix
    segmenter.segment(scan).save(tmp_path / f"out{suffix}")
    for own, written in zip(geometry(path), geometry(tmp_path / f"out{suffix}"), strict=True):
        np.testing.assert_allclose(own, written, rtol=0, atol=1e-6)


def test_a_dicom_folder_is_answered_in_nifti_on_the_slices_grid(segmenter: Segmenter, tmp_path: Path) -> None:
    drawn = patient(rotation(7) @ AXES[0])
    write_dicom(tmp_path / "series", drawn)
    scan = read(tmp_path / "series")
    assert scan.suffix == ".nii.gz"
    result = segmenter.segment(scan)
    assert min(expected_dice(result, drawn)) > 0.85
    result.save(tmp_path / "out.nii.gz")
    drawn.write(tmp_path / "same.nii.gz")
    for own, written in zip(
        geometry(tmp_path / "same.nii.gz"), geometry(tmp_path / "out.nii.gz"), strict=True
    ):
        np.testing.assert_allclose(own, written, rtol=0, atol=1e-4)


def test_what_the_network_sees_is_what_a_store_gives_it(reference: tuple[Path, Path], tmp_path: Path) -> None:
    drawn = patient(AXES[17])
    image, mask = drawn.write(tmp_path / "a.nii.gz"), drawn.write_labels(tmp_path / "a_seg.nii.gz")
    config = IngestConfig(spacing_mm=2.5, ct_window_hu=(-900.0, 400.0), margin_mm=3.0)
    source = replace(find_one(image, config), modality="ct")
    scan = standardize(read_source(source, config), config)
    record = replace(
        draw_record("a", shape=scan.image.shape),
        image=scan.image,
        scale=scan.scale,
        offset=scan.offset,
        attributes={"intensity": scan.intensity.to_dict()},
    )
    values = json.loads(json.dumps(config_values(config)))
    create_store(tmp_path / "store", spacing_mm=config.spacing_mm, config={"ingest": values})
    commit_scan(tmp_path / "store", record)
    store = open_store(tmp_path / "store")
    told = TrainedOn.from_json(json.loads(json.dumps(TrainedOn.of_store(store, (48, 48, 48)).to_json())))
    assert told is not None
    loaded = read_scan(image, mask=mask, ingest=told.ingest_settings, modality="ct")
    np.testing.assert_array_equal(loaded.image, store.scan("a").image(normalize=True))
    assert loaded.labels.shape == loaded.image.shape
    assert loaded.image.max() < read(image, spacing_mm=2.5).image.max()


def test_probabilities_come_on_the_own_grid_and_agree_with_the_labels(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    drawn = patient(rotation(9) @ AXES[11])
    kept: dict[int, np.ndarray] = {}
    scan = read(drawn.write(tmp_path / "scan.mha"))
    result = segmenter.segment(scan, on_probability=lambda s, p: kept.update({s.values[0]: p}))
    plain = segmenter.segment(scan)
    np.testing.assert_array_equal(result.labels, plain.labels)
    assert set(kept) == {3, 4}
    for value, probability in kept.items():
        assert probability.shape == drawn.labels.shape
        assert ((probability >= 0.5) >= (result.labels == value)).all()
        assert dice(probability >= 0.5, drawn.labels == value) > 0.85


def test_only_the_largest_part_of_each_structure_is_kept_on_request(
    reference: tuple[Path, Path], tmp_path: Path
) -> None:
    drawn = patient(AXES[0])
    image = drawn.image.copy()
    image[1:5, 1:6, 1:6] = 700  # a second piece as bright as bone
    path = drawn.replace(image=image).write(tmp_path / "scan.mha")
    two, one = (
        Segmenter.from_references(
            LikeInside(), [read(*reference)], SegmentConfig(inference=WINDOW, largest_component=largest)
        ).segment(read(path))
        for largest in (False, True)
    )
    assert (two.labels[1:5, 1:6, 1:6] == 4).mean() > 0.5
    assert not (one.labels[1:5, 1:6, 1:6] == 4).any()
    elsewhere = np.ones(image.shape, bool)
    elsewhere[:7, :8, :8] = False
    np.testing.assert_array_equal(one.labels[elsewhere], two.labels[elsewhere])


def test_a_memory_bound_and_mirroring_change_nothing_of_the_place(
    segmenter: Segmenter, reference: tuple[Path, Path], tmp_path: Path
) -> None:
    scan = read(patient(AXES[40]).write(tmp_path / "scan.mha"))
    usual = segmenter.segment(scan)
    for changes in ({"max_accumulator_bytes": 1}, {"mirror": True}, {"masks_at_once": 1}):
        config = SegmentConfig(inference=replace(WINDOW, **changes))
        other = Segmenter.from_references(LikeInside(), [read(*reference)], config).segment(scan)
        np.testing.assert_array_equal(other.labels, usual.labels)


def test_references_are_averaged_and_one_label_can_be_asked_for(
    reference: tuple[Path, Path], tmp_path: Path
) -> None:
    second = patient(AXES[8], seed=9)
    lung = np.where(second.labels == 3, 3, 0).astype(np.uint8)
    pair = (
        second.write(tmp_path / "b.mha"),
        second.replace(labels=lung).write_labels(tmp_path / "b_seg.mha"),
    )
    both = [read(*reference), read(*pair)]
    segmenter = Segmenter.from_references(LikeInside(), both, CONFIG, labels=[3])
    assert [structure.values for structure in segmenter.prompt.structures] == [(3,)]
    alone = [Segmenter.from_references(LikeInside(), [one], CONFIG, labels=[3]).prompt for one in both]
    means = [float(prompt.priors[0][0][0].mean()) for prompt in (segmenter.prompt, *alone)]
    assert means[0] == pytest.approx((means[1] + means[2]) / 2)
    drawn = patient(AXES[31])
    found = segmenter.segment(read(drawn.write(tmp_path / "t.mha")))
    assert set(np.unique(found.labels)) == {0, 3}
    assert dice(found.labels == 3, drawn.labels == 3) > 0.85


def test_large_label_values_are_kept(tmp_path: Path) -> None:
    drawn = patient(AXES[0])
    mask = np.where(drawn.labels == 4, 4096, 0).astype(np.uint16)
    pair = (drawn.write(tmp_path / "r.mha"), drawn.replace(labels=mask).write_labels(tmp_path / "m.mha"))
    result = Segmenter.from_references(LikeInside(), [read(*pair)], CONFIG).segment(read(pair[0]))
    assert result.labels.dtype == np.uint16
    assert set(np.unique(result.labels)) == {0, 4096}


@pytest.mark.usefixtures("quick_registration")
def test_a_few_lines_of_python_do_all_of_it(reference: tuple[Path, Path], tmp_path: Path) -> None:
    assert installed_reader() is read_scan
    drawn = patient(AXES[20])
    target = drawn.write(tmp_path / "scan.nii.gz")
    net = LikeInside()
    net.trained_on = TrainedOn(spacing_mm=3.0, crop_voxels=(48, 48, 48))
    result = segment(net, references=[reference], target=target, modality="ct", probabilities=True)
    assert min(expected_dice(result, drawn)) > 0.8
    assert set(result.probabilities) == {3, 4}
    assert result.scan.spacing_zyx_mm == (3.0, 3.0, 3.0)
    assert [case.prediction.any() for case in result.cases()] == [True, True]
    coarser = segment(net, references=[reference], target=target, modality="ct", spacing_mm=4.0)
    assert coarser.scan.spacing_zyx_mm == (4.0, 4.0, 4.0)


def test_windows_are_those_of_the_training() -> None:
    assert inference_for(TrainedOn()).window_voxels == (128, 128, 128)
    config = inference_for(TrainedOn(crop_voxels=(32, 48, 160)), mirror=True)
    assert (config.window_voxels, config.reference_voxels) == ((32, 48, 160), (32, 48, 128))
    assert config.mirror


def test_a_network_shown_whole_scans_draws_from_a_lower_probability_on() -> None:
    whole = TrainedOn(crop_voxels=(16, 64, 64), whole_scans=True)
    assert inference_for(whole).whole_scans
    assert inference_for(whole).threshold == WHOLE_SCAN_THRESHOLD < inference_for(TrainedOn()).threshold
    assert inference_for(whole, threshold=0.5).threshold == 0.5


@pytest.mark.usefixtures("quick_registration")
def test_what_is_carried_over_keeps_its_threshold(reference) -> None:
    shown = read(*reference, spacing_mm=4.0)
    drawn = {}
    for threshold in (0.2, 0.5):
        config = SegmentConfig(inference=replace(WINDOW, threshold=threshold), by="registration")
        drawn[threshold] = Segmenter.from_references(None, [shown], config).segment(shown).labels
    assert drawn[0.5].any()
    np.testing.assert_array_equal(drawn[0.2], drawn[0.5])


def test_a_label_that_no_mask_has_is_named_with_those_there_are(reference: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"ref.nii.gz: there is no label 7 in the mask, which holds 3, 4\."):
        Segmenter.from_references(LikeInside(), [read(*reference)], CONFIG, labels=[3, 7])


def test_a_structure_lost_to_the_spacing_is_said_to_be_lost(reference: tuple[Path, Path]) -> None:
    scan = read(*reference)
    gone = replace(scan, labels=np.zeros_like(scan.labels))
    with pytest.raises(DataError, match="nothing of label 3, 4 is left at 2 x 2 x 2 mm"):
        Segmenter.from_references(LikeInside(), [gone], CONFIG)
    half = replace(scan, labels=np.where(scan.labels == 4, 4, 0).astype(np.uint8))
    result = Segmenter.from_references(LikeInside(), [half], CONFIG).segment(scan)
    assert result.notes[-1].startswith("nothing of label 3 is left in the references")


def test_a_target_of_another_modality_is_refused_unless_it_is_wanted(
    segmenter: Segmenter, reference: tuple[Path, Path]
) -> None:
    other = replace(read(reference[0]), modality="mr", modality_origin="guess: no air")
    with pytest.raises(DataError, match=r"the target is MR \(guess: no air\), the references are CT\."):
        segmenter.segment(other)
    allowed = SegmentConfig(inference=WINDOW, across_modalities=True)
    found = Segmenter.from_references(LikeInside(), [read(*reference)], allowed).segment(other)
    assert found.labels.any()


def test_a_reference_without_a_mask_is_refused(reference: tuple[Path, Path]) -> None:
    bare = replace(read(reference[0]), label_values=(3,))
    with pytest.raises(DataError, match="a reference needs a mask"):
        Segmenter.from_references(LikeInside(), [bare], CONFIG)
    with pytest.raises(DataError, match="no reference"):
        Segmenter.from_references(LikeInside(), [], CONFIG)


def test_without_an_installed_reader_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.inference.raw_scans.entry_points", lambda group: ())
    with pytest.raises(ConfigError, match="none installed"):
        installed_reader()


def test_a_prompt_without_a_reference_draws_the_target_alone(segmenter: Segmenter, reference) -> None:
    bare = Segmenter(LikeInside(), segmenter.prompt, CONFIG)
    result = bare.segment(read(reference[0]))
    case = result.cases()[0]
    assert not case.mask.any()
    assert case.prediction.any()
    assert isinstance(segmenter.references[0], Reference)


@pytest.mark.usefixtures("quick_registration")
def test_registration_answers_in_place_of_the_network(segmenter: Segmenter, reference) -> None:
    shown = read(*reference, spacing_mm=3.0)
    by = SegmentConfig(inference=WINDOW, by="registration")
    result = Segmenter.from_references(LikeInside(), [shown], by).segment(shown)
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(reference[1])))
    assert result.agreement is not None
    assert result.agreement > 0.99
    assert any("registration" in note and "low" not in note for note in result.notes)
    assert all(one.confidence is not None and one.confidence > 0.7 for one in result.found)
    inverted = replace(shown, image=np.roll(-shown.image, 7, axis=1))
    doubted = Segmenter.from_references(LikeInside(), [shown], by).segment(inverted)
    assert any(note.startswith("low confidence") for note in doubted.notes)
    assert min(result.dice(own).values()) > 0.8
    alone = segmenter.segment(shown)
    assert alone.agreement is None
    assert all(one.confidence is None for one in alone.found)


@pytest.mark.usefixtures("quick_registration")
def test_registration_tries_the_place_where_the_network_sees_the_structures(
    reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.inference.poses.NUM_PEAKS", 0)
    shown = read(*reference, spacing_mm=3.0)
    moved = replace(shown, image=np.roll(shown.image, (0, 6, -5), axis=(0, 1, 2)))
    agreements = {}
    for by in ("registration", "both"):
        config = SegmentConfig(inference=WINDOW, by=by)
        agreements[by] = Segmenter.from_references(LikeInside(), [shown], config).segment(moved).agreement
    assert agreements["both"] > agreements["registration"]


def test_registration_asks_for_a_reference(segmenter: Segmenter) -> None:
    with pytest.raises(ConfigError, match="no reference"):
        Segmenter(LikeInside(), segmenter.prompt, SegmentConfig(inference=WINDOW, by="registration"))


@pytest.mark.usefixtures("quick_registration")
def test_no_network_is_needed_to_carry_masks_over(reference) -> None:
    image, mask = reference
    result = segment(None, references=[(image, mask)], target=image, spacing_mm=2.5, modality="ct")
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    assert min(result.dice(own).values()) > 0.8
    with pytest.raises(ConfigError, match="no network to ask"):
        Segmenter.from_references(None, [read(*reference)], SegmentConfig(inference=WINDOW, by="both"))


@pytest.mark.usefixtures("quick_registration")
def test_a_structure_that_the_network_cannot_see_is_carried_over_all_the_same(reference) -> None:
    shown = read(*reference)
    labels = np.zeros_like(shown.labels)
    middle = tuple(side // 2 for side in labels.shape)
    labels[middle] = 3  # one voxel: nothing of it is left in a coarse window
    tiny = replace(shown, labels=labels)
    window = replace(WINDOW, whole_scans=True, window_voxels=(16, 16, 16))
    assert labels_to_window(labels, window.window_voxels).max() == 0
    with pytest.raises(DataError, match="1 references shows"):
        Segmenter.from_references(LikeInside(), [tiny], SegmentConfig(inference=window))
    segmenter = Segmenter.from_references(LikeInside(), [tiny], SegmentConfig(inference=window, by="both"))
    assert segmenter.prompt is None
    assert [structure.values for structure in segmenter.structures] == [(3,)]
    assert [structure.values for structure in segmenter.missing] == [(4,)]
    assert [one.structure.values for one in segmenter.segment(shown).found] == [(3,)]


def test_the_shipped_weights_show_large_structures_of_another_head() -> None:
    """Left at its default, `SegmentConfig.inference` shows scans as the network's training did."""
    heads, net = SHIPPED["small-v1"].parents[2] / "heads", load_checkpoint("small-v1")
    truth = sitk.GetArrayFromImage(sitk.ReadImage(heads / "head_03_label.nii.gz"))
    torch.manual_seed(0)
    drawn = Iris(net.channels, net.num_tasks).eval()
    drawn.trained_on = net.trained_on

    def mean_dice(network: Iris) -> float:
        """Of both halves of the white matter and of the cerebellar cortex."""
        found = segment(
            network,
            references=[(heads / "head_01.nii.gz", heads / "head_01_label.nii.gz")],
            target=heads / "head_03.nii.gz",
            config=SegmentConfig(by="network"),
            modality="mr",
        )
        own = [(found.labels == value, truth == value) for value in (2, 41, 8, 47)]
        return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in own]))

    assert mean_dice(net) > 0.3
    assert mean_dice(drawn) < 0.1
