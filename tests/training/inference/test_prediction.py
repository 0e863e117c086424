"""Inference puts every voxel where it belongs, whatever the windows, and shows references as it should."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training.like_intensity import WIDTH, LikeIntensity
from tests.training.phantom_store import make_phantom_store
from training.data import window_boxes, window_weights, windows_at_once
from training.data.augmentation import ViewAugmentation
from training.errors import ConfigError, DataError
from training.finetuning.labelled_samples import (
    LabelledDataConfig,
    LabelReader,
    augment_labelled,
    collate_labelled,
)
from training.inference.prediction import predict, predict_labels, predict_probabilities
from training.inference.prompts import InferenceConfig, Prompt, Reference, Structure, encode_references
from training.inference.window_sums import accumulator_bytes

SMALL = InferenceConfig(window_voxels=(16, 32, 16), reference_voxels=(16, 16, 32))
LIVER, SPLEEN = Structure(name="liver", values=(3,)), Structure(name="spleen", values=(7, 9))


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Two bright blocks in the dark, at places that no flip or transposition maps onto each other."""
    image, labels = np.zeros((21, 35, 50), np.float32), np.zeros((21, 35, 50), np.uint8)
    for box, value, bright in (
        ((slice(2, 9), slice(3, 9), slice(30, 44)), 3, 1.0),
        ((slice(10, 19), slice(22, 33), slice(5, 8)), 7, 2.0),
        ((slice(10, 19), slice(22, 33), slice(8, 11)), 9, 2.0),
    ):
        image[box], labels[box] = bright, value
    return image, labels


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_voxels": (128, 128, 128)},
        {"overlap_fraction": 0.0},
        {"windows_at_once": 3},
        {"masks_at_once": 1},
        {"max_accumulator_bytes": 1},
        {"whole_mask": False},
        {"mirror": True},
        {"reference_voxels": (16, 16, 16)},
    ],
)
def test_structures_are_found_where_they_are_whatever_the_windows(scan, changes):
    image, labels = scan
    config, net = replace(SMALL, **changes), LikeIntensity()
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [LIVER, SPLEEN], config)
    found = predict_probabilities(net, image, prompt, config)
    assert found.shape == (2, *image.shape)
    assert found.dtype == np.float32
    assert ((found[0] > 0.5) == (labels == 3)).all()
    assert ((found[1] > 0.5) == np.isin(labels, (7, 9))).all()
    assert (predict_labels(net, image, prompt, config) == np.select([labels == 3, labels > 3], [1, 2])).all()


def test_probabilities_are_those_of_the_network_and_not_of_the_tiling():
    image = np.random.default_rng(0).uniform(0, 1, (21, 35, 50)).astype(np.float32)
    labels = (image > 0.7).astype(np.uint8)
    net, structure = LikeIntensity(), Structure(name="bright", values=(1,))
    whole = InferenceConfig(whole_mask=False, reference_voxels=(48, 48, 64))
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [structure], whole)
    mean = image[labels > 0].mean()
    expected = 1 / (1 + np.exp(-20 * (WIDTH - abs(image - mean))))
    tiled = replace(whole, window_voxels=(16, 16, 16), overlap_fraction=0.4)
    for config in (whole, tiled):
        assert predict_probabilities(net, image, prompt, config)[0] == pytest.approx(expected, abs=1e-4)


def test_references_are_averaged_as_priors_each_counting_the_same(scan):
    image, labels = scan
    net = LikeIntensity()
    references = [
        Reference(image=image * brightness, labels=labels * (values > 0))
        for brightness, values in ((1, 1), (3, 1))
    ]
    lacking = Reference(image=image * 100, labels=np.where(labels == 3, labels, 0))
    prompt = encode_references(net, [*references, lacking], [SPLEEN], SMALL)
    # Bright 2 and 6: the third reference does not show the spleen and says nothing about it.
    assert prompt.priors[0][0].shape == (2, 11, 4)
    assert prompt.priors[0][0][0] == pytest.approx(4.0)


def test_a_structure_that_no_reference_shows_is_missing_and_the_others_keep_their_places(scan):
    image, labels = scan
    net, nothing = LikeIntensity(), Structure(name="nothing", values=(200,))
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [nothing, SPLEEN], SMALL)
    assert prompt.structures == (SPLEEN,)
    assert prompt.missing == (nothing,)
    assert ((predict_labels(net, image, prompt, SMALL) == 1) == (labels > 3)).all()
    with pytest.raises(DataError, match="empty"):
        encode_references(net, [Reference(image=image, labels=labels)], [nothing], SMALL)


def test_a_large_reference_is_shown_around_its_structures_and_never_whole():
    labels = np.zeros((90, 80, 100), np.uint8)
    labels[40:50, 60:70, 80:95] = 3
    labels[40:45, 60:70, 70:75] = 7
    net = LikeIntensity()
    config = replace(SMALL, reference_voxels=(32, 16, 32))
    image = np.where(labels == 3, 1.0, 0.0).astype(np.float32)
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [LIVER, SPLEEN], config)
    assert net.encoded == [(1, 1, 32, 16, 32)]  # both fit one window
    assert prompt.priors[0][0][0] == pytest.approx(1.0)
    net.encoded.clear()
    labels[0:5, 0:5, 0:5] = 9
    encode_references(net, [Reference(image=image, labels=labels)], [LIVER, SPLEEN], config)
    # The spleen spans the scan now: one window for the liver, two for the spleen's ends, none for the void.
    assert net.encoded == [(1, 1, 32, 16, 32)] * 3


def test_a_structure_larger_than_a_window_is_averaged_over_its_windows_by_their_voxels():
    labels = np.zeros((16, 16, 48), np.uint8)
    labels[:, :, :40] = 3
    image = np.zeros(labels.shape, np.float32)
    image[:, :, 16:] = 1.0
    net = LikeIntensity()
    config = replace(SMALL, reference_voxels=(16, 16, 16), whole_mask=False)
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [LIVER], config)
    assert len(net.encoded) == 3
    windows = [(0, 16, 0.0), (12, 28, 12 / 16), (24, 40, 1.0)]  # the mean intensity of each
    assert prompt.priors[0][0][0].mean() == pytest.approx(np.mean([mean for *_, mean in windows]))


def test_one_pass_encodes_a_window_once_for_all_prompts(scan):
    image, labels = scan
    net, reference = LikeIntensity(), Reference(image=image, labels=labels)
    prompts = [encode_references(net, [reference], some, SMALL) for some in ([LIVER], [SPLEEN, LIVER])]
    net.encoded.clear()
    seen = {(number, part.start): masks for number, part, masks in predict(net, image, prompts, SMALL)}
    assert len(net.encoded) == len(set(net.encoded)) * 2 * 2 * 6
    assert ((seen[0, 0][0] > 0.5) == (labels == 3)).all()
    assert ((seen[1, 0][0] > 0.5) == (labels > 3)).all()
    assert ((seen[1, 0][1] > 0.5) == (labels == 3)).all()


def test_no_more_masks_are_decoded_together_than_allowed_and_the_whole_mask_is_one_more(scan):
    image, labels = scan
    structures = [Structure(name=str(k), values=(3,)) for k in range(5)]
    net, config = LikeIntensity(), replace(SMALL, masks_at_once=2)
    prompt = encode_references(net, [Reference(image=image, labels=labels)], structures, config)
    list(predict(net, image, [prompt], config))
    assert set(net.asked) == {3, 2}  # 2 + 2 + 1 structures, each with the all-ones mask


def test_accumulators_stay_within_their_memory(scan):
    image, labels = scan
    structures = [Structure(name=str(k), values=(3,)) for k in range(5)]
    config = replace(SMALL, max_accumulator_bytes=4 * 2 * image.size)
    net = LikeIntensity()
    prompt = encode_references(net, [Reference(image=image, labels=labels)], structures, config)
    parts = [(part, masks.nbytes) for _, part, masks in predict(net, image, [prompt], config)]
    assert [part.stop - part.start for part, _ in parts] == [2, 2, 1]
    assert all(size <= config.max_accumulator_bytes for _, size in parts)


def test_sums_of_windows_are_numpys_to_the_bit(scan):
    image, labels = scan
    net, config = LikeIntensity(), replace(SMALL, whole_mask=False)
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [LIVER, SPLEEN], config)
    image = np.random.default_rng(0).uniform(0, 2, image.shape).astype(np.float32)
    weights, total = window_weights((16, 32, 16)), np.zeros((2, *image.shape), np.float32)
    norm = np.zeros(image.shape, np.float32)
    with torch.inference_mode():
        for box in window_boxes(image.shape, (16, 32, 16), 0.5):
            shown = torch.from_numpy(np.ascontiguousarray(image[box]))[None, None]
            drawn = torch.sigmoid(net.decode(shown, tuple(stage[None] for stage in prompt.priors[0])))[0]
            total[:, *box] += drawn.numpy() * weights
            norm[box] += weights
    found = predict_probabilities(net, image, prompt, config)
    assert found.tobytes() == (total / norm).tobytes()


class ShortOfMemory(LikeIntensity):
    """A network that decodes no more than some windows at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def decode(self, features, priors):
        if len(features) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decode(features, priors)


def test_a_batch_that_memory_does_not_hold_is_halved_and_nothing_is_counted_twice(scan):
    image, labels = scan
    prompt = encode_references(LikeIntensity(), [Reference(image=image, labels=labels)], [LIVER], SMALL)
    expected = predict_probabilities(LikeIntensity(), image, prompt, SMALL)
    net, steps = ShortOfMemory(2), []
    found = predict_probabilities(
        net, image, prompt, replace(SMALL, windows_at_once=8), progress=lambda *counts: steps.append(counts)
    )
    np.testing.assert_array_equal(found, expected)
    assert [shape[0] for shape in net.encoded[:4]] == [8, 4, 2, 2]  # and no larger one is tried again
    assert steps[-1] == (24, 24)
    with pytest.raises(torch.OutOfMemoryError):
        predict_probabilities(ShortOfMemory(0), image, prompt, SMALL)


def test_a_card_takes_more_windows_and_sums_at_once_and_a_cpu_as_many_as_it_is_told(monkeypatch):
    cpu, card = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 << 30))
    assert [windows_at_once(1, (side,) * 3, on_card=False) for side in (32, 128)] == [1, 1]
    assert [windows_at_once(1, (side,) * 3, on_card=True) for side in (32, 64, 128, 160)] == [64, 32, 4, 2]
    assert windows_at_once(5, (128,) * 3, on_card=True) == 5
    assert windows_at_once(1, (320,) * 3, on_card=True) == 1
    assert [accumulator_bytes(1 << 30, device) for device in (cpu, card)] == [1 << 30, 3 << 30]
    assert accumulator_bytes(4 << 30, card) == 4 << 30


def test_mirrored_copies_show_mirrored_references_too(scan):
    image, labels = scan
    net, config = LikeIntensity(), replace(SMALL, mirror=True)
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [LIVER], config)
    assert len(prompt.priors) == 8
    assert len(net.encoded) == 8


def test_progress_ends_at_the_number_of_windows(scan):
    image, labels = scan
    net, steps = LikeIntensity(), []
    prompt = encode_references(net, [Reference(image=image, labels=labels)], [LIVER], SMALL)
    predict_probabilities(net, image, prompt, SMALL, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(k, len(steps)) for k in range(1, len(steps) + 1)]


def test_settings_that_cannot_be_are_refused():
    for changes in (
        {"window_voxels": (16, 16, 20)},
        {"reference_voxels": (144, 16, 16)},
        {"overlap_fraction": 1.0},
        {"masks_at_once": 0},
    ):
        with pytest.raises(ConfigError):
            replace(SMALL, **changes)
    with pytest.raises(DataError, match="one grid"):
        Reference(image=np.zeros((2, 3, 4), np.float32), labels=np.zeros((2, 3, 5), np.uint8))


def test_a_scan_smaller_than_a_window_is_padded_as_in_training(tmp_path):
    """References and targets too: the network norms a window, and mirrored anatomy around it blinds it."""
    store = make_phantom_store(tmp_path / "store", num_scans=1, shape=(36, 40, 38))
    scan = store.scan("phantom-0")
    data = LabelledDataConfig(crop_voxels=48, cut_voxels=48)
    organ = Structure(name="organ", values=(1,))
    reader = LabelReader(store.path, ["phantom-0"], "structures", [organ], data, seed=0)
    batch = collate_labelled([reader.read(0)], config=data, seed=0)
    still = ViewAugmentation(affine_probability=0.0, intensity_probability=0.0)
    trained_on = augment_labelled(batch, still).image[0, 0].numpy()

    shown: list[np.ndarray] = []

    class Recording(LikeIntensity):
        def encode(self, image):
            shown.append(image[0, 0].numpy().copy())
            return super().encode(image)

    image = scan.image(normalize=True)
    config = InferenceConfig(window_voxels=(48, 48, 48), reference_voxels=(48, 48, 48))
    reference = Reference(image=image, labels=scan.labels("structures"))
    predict_labels(Recording(), image, encode_references(Recording(), [reference], [organ], config), config)
    assert len(shown) == 2
    for window in shown:
        assert window.shape == trained_on.shape
        assert window[0, 0, 0] == pytest.approx(trained_on[0, 0, 0], abs=1e-3)
        np.testing.assert_allclose(np.sort(window.ravel()), np.sort(trained_on.ravel()), atol=2e-3)


# ------------------------------------------------------------ whole scans, then fine windows


def bright_ball(shape: tuple[int, int, int], middle: tuple[int, int, int], radius: float) -> np.ndarray:
    """Return where a ball lies, bool."""
    apart = sum((axis - at) ** 2 for axis, at in zip(np.indices(shape), middle, strict=True))
    return np.asarray(apart <= radius**2)


WHOLE_SCANS = InferenceConfig(
    window_voxels=(16, 16, 16), reference_voxels=(16, 16, 16), whole_scans=True, whole_mask=False
)


def prompt_for(structures: list[Structure], intensities: list[float]) -> Prompt:
    """Return a prompt of LikeIntensity for structures of some intensities, as tokens that were trained."""
    means = torch.tensor(intensities)[:, None, None]
    return Prompt(
        structures=tuple(structures),
        missing=(),
        priors=(tuple(means.expand(-1, 11, width) for width in (4, 2, 1)),),
    )


def test_fine_windows_draw_what_one_window_of_the_whole_scan_draws_roughly():
    labels = bright_ball((48, 80, 64), (20, 60, 12), 9).astype(np.uint8)
    image, structure = labels.astype(np.float32), Structure(name="ball", values=(1,))
    net = LikeIntensity()
    prompt = prompt_for([structure], [1.0])
    dice, windows = [], []
    for most in (0, 1, 8):
        net.encoded.clear()
        config = replace(WHOLE_SCANS, fine_windows=most)
        told: list[tuple[int, int]] = []
        found = (
            predict_labels(
                net, image, prompt, config, progress=lambda *counts, told=told: told.append(counts)
            )
            == 1
        )
        assert told == [(1, 1), (2, 2)][: 1 + bool(most)]
        dice.append(2 * (found & (labels == 1)).sum() / (found.sum() + labels.sum()))
        windows.append(sum(shape[0] for shape in net.encoded))
    assert 1 - dice[1] < (1 - dice[0]) / 2
    assert dice[1] == dice[2]
    assert windows == [1, 2, 2]


def test_structures_far_apart_have_fine_windows_of_their_own_whatever_is_computed_at_once():
    labels = np.zeros((48, 80, 64), np.uint8)
    labels[bright_ball(labels.shape, (10, 12, 12), 6)] = 1
    labels[bright_ball(labels.shape, (36, 64, 50), 6)] = 2
    image = np.array([0, 1, -1], np.float32)[labels]
    structures = [Structure(name=str(value), values=(value,)) for value in (1, 2)]
    net, config = LikeIntensity(), replace(WHOLE_SCANS, fine_windows=8)
    prompt = prompt_for(structures, [1.0, -1.0])
    coarse = predict_labels(net, image, prompt, WHOLE_SCANS)
    found = predict_labels(net, image, prompt, config)
    for value in (1, 2):
        errors = [int(((drawn == value) != (labels == value)).sum()) for drawn in (coarse, found)]
        assert errors[1] < errors[0] / 2
    for change in ({"windows_at_once": 2}, {"masks_at_once": 1}, {"max_accumulator_bytes": 1}):
        again = predict_labels(net, image, prompt, replace(config, **change))
        np.testing.assert_array_equal(again, found)


def test_what_the_whole_scan_does_not_show_gets_no_fine_window():
    net, config = LikeIntensity(), replace(WHOLE_SCANS, fine_windows=8)
    prompt = prompt_for([Structure(name="ball", values=(1,))], [1.0])
    assert not predict_labels(net, np.zeros((48, 80, 64), np.float32), prompt, config).any()
    assert len(net.encoded) == 1
