"""In-context evaluation: who is shown to whom, what counts, and that nothing is disturbed."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage import CorruptStore, LabelVolume, Store, commit_scan, create_store, open_store
from tests.storage.drawn_record import draw_record
from tests.training.like_intensity import LikeIntensity
from training.errors import ConfigError, DataError
from training.evaluation.in_context import EvaluationConfig, Listener, evaluate_in_context
from training.inference.prompts import InferenceConfig

SHAPE = (20, 25, 41)
CONFIG = EvaluationConfig(
    num_targets=2,
    num_prompts=3,
    inference=InferenceConfig(window_voxels=(32, 32, 48), reference_voxels=(32, 32, 48)),
)


def draw_scan(scan_id: str, values: tuple[int, ...], *, dataset: str = "drawn", label: str = "organs"):
    """A scan whose structures are blocks of intensity 100 * value, each at a place of its own."""
    rng = np.random.default_rng(len(scan_id) + sum(map(ord, scan_id)))
    image, labels = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    for value in values:
        z, y = rng.integers(0, 12, 2)
        box = (slice(z, z + 6), slice(y, y + 6), slice(9 * value, 9 * value + 6))
        image[box], labels[box] = 100 * value, value
    drawn = draw_record(scan_id, shape=SHAPE)
    volume = LabelVolume(name=label, array=labels, value_names={1: "liver"})
    return replace(
        drawn,
        dataset=dataset,
        image=image,
        scale=1.0,
        offset=0.0,
        labels=(volume,),
        attributes={"intensity": {"low": 0.0, "high": 400.0, "mean": 0.0, "std": 100.0, "unit": ""}},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path: Path = tmp_path_factory.mktemp("evaluation") / "store"
    create_store(path, spacing_mm=1.5, config={})
    for scan_id in ("a", "b", "c", "d", "e"):
        commit_scan(path, draw_scan(scan_id, (1, 2)))
    commit_scan(path, draw_scan("lacking", (1,)))
    commit_scan(path, draw_scan("alone", (1, 2), dataset="other"))
    commit_scan(path, replace(draw_scan("bare", (1,)), labels=()))
    return open_store(path)


def test_a_network_that_is_right_has_dice_1_for_every_structure(store):
    config = replace(CONFIG, targets=("a", "b"), references=("c", "d", "e"), whole=False)
    evaluation = evaluate_in_context(LikeIntensity(), store, config)
    assert [(s.structure, s.dice, s.num_cases) for s in evaluation.structures] == [
        ("liver", 1.0, 6),
        ("2", 1.0, 6),
    ]
    assert evaluation.mean_dice == 1.0
    assert {score.references for score in evaluation.scores} == {("c",), ("d",), ("e",)}


def test_dice_counts_the_voxels_of_prediction_and_label(store):
    # Shown both structures as one, the network looks for their mean intensity, 1.5 standard deviations, and
    # finds neither; shown with a lower threshold it finds both.
    config = replace(CONFIG, targets=("a",), references=("c",), parts=False)
    (score,) = evaluate_in_context(LikeIntensity(), store, config).scores
    assert (score.structure, score.expected_voxels, score.predicted_voxels, score.dice) == (
        "whole",
        432,
        0,
        0.0,
    )
    loose = replace(config, inference=replace(CONFIG.inference, threshold=0.01))
    (score,) = evaluate_in_context(LikeIntensity(), store, loose).scores
    assert (score.predicted_voxels, score.common_voxels, score.dice) == (432, 432, 1.0)


def test_a_structure_that_the_target_lacks_is_stated_and_not_averaged(store):
    config = replace(CONFIG, targets=("lacking", "a"), references=("c",), whole=False)
    evaluation = evaluate_in_context(LikeIntensity(), store, config)
    liver, other = evaluation.structures
    assert (liver.num_cases, liver.num_absent) == (2, 0)
    assert (other.dice, other.num_cases, other.num_absent, other.num_drawn_though_absent) == (1.0, 1, 1, 0)
    absent = [score for score in evaluation.scores if score.target == "lacking" and score.structure == "2"]
    assert math.isnan(absent[0].dice)


def test_a_structure_that_the_references_lack_is_counted_as_not_prompted(store):
    config = replace(CONFIG, targets=("a",), references=("lacking", "c"), whole=False)
    evaluation = evaluate_in_context(LikeIntensity(), store, config)
    assert evaluation.num_unprompted == 1
    assert len(evaluation.scores) == 3


def test_a_scan_is_never_shown_to_itself(store):
    config = replace(CONFIG, targets=("a", "b"), references=("a", "b"), whole=False)
    pairs = {
        (score.target, *score.references)
        for score in evaluate_in_context(LikeIntensity(), store, config).scores
    }
    assert pairs == {("a", "b"), ("b", "a")}


def test_a_target_is_never_shown_a_scan_of_its_own_case(tmp_path):
    create_store(tmp_path / "store", spacing_mm=1.5, config={})
    for patient in "pqr":
        for channel in ("t1", "t2"):
            drawn = draw_scan(f"{patient}_{channel}", (1, 2))
            commit_scan(tmp_path / "store", replace(drawn, case=patient))
    store = open_store(tmp_path / "store")
    assert {entry.case for entry in store.entries.values()} == {"p", "q", "r"}
    named = replace(CONFIG, targets=("p_t1", "p_t2", "q_t1"), references=("p_t2", "q_t2"))
    for config in (named, replace(CONFIG, num_targets=6), replace(CONFIG, num_targets=2)):
        scores = evaluate_in_context(LikeIntensity(), store, config).scores
        assert scores
        assert all(score.target[0] not in {name[0] for name in score.references} for score in scores)
    drawn = evaluate_in_context(LikeIntensity(), store, replace(CONFIG, num_targets=2)).scores
    assert len({score.target[0] for score in drawn}) == 2  # of as many cases as can be
    one_case = replace(CONFIG, targets=("p_t1",), references=("p_t2",))
    with pytest.raises(DataError, match="of different cases"):
        evaluate_in_context(LikeIntensity(), store, one_case)


def test_shots_are_averaged_in_disjoint_prompts(store):
    config = replace(CONFIG, targets=("a",), references=("b", "c", "d", "e", "lacking"), shots=2)
    found = evaluate_in_context(LikeIntensity(), store, config)
    assert {score.references for score in found.scores} == {("b", "c"), ("d", "e")}


def test_draws_depend_on_the_seed_alone_and_disturb_nothing(store):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the state that must not change
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    net = LikeIntensity().train()
    first = evaluate_in_context(net, store, replace(CONFIG, seed=3))
    assert net.training
    assert not any(net.modes)
    second = evaluate_in_context(net.eval(), store, replace(CONFIG, seed=3))
    assert not net.training
    assert first == second
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    targets = {
        tuple(
            sorted(
                {score.target for score in evaluate_in_context(net, store, replace(CONFIG, seed=s)).scores}
            )
        )
        for s in range(6)
    }
    assert len(targets) > 1
    assert all(len(ids) == CONFIG.num_targets for ids in targets)


class Failing(Listener):
    def begins(self, done, total, scan_id):
        raise ZeroDivisionError


def test_a_network_in_training_mode_is_put_back_even_after_an_error(store):
    net = LikeIntensity().train()
    with pytest.raises(DataError, match="no two scans"):
        evaluate_in_context(net, store, replace(CONFIG, label="nerves"))
    with pytest.raises(DataError, match="'zz'"):
        evaluate_in_context(net, store, replace(CONFIG, targets=("zz",)))
    with pytest.raises(ZeroDivisionError):
        evaluate_in_context(net, store, CONFIG, listener=Failing())
    assert net.training


def test_scans_of_other_collections_are_not_compared(store):
    evaluation = evaluate_in_context(LikeIntensity(), store, replace(CONFIG, num_targets=50))
    assert {score.dataset for score in evaluation.scores} == {"drawn"}
    assert "bare" not in {score.target for score in evaluation.scores}


def test_the_summary_is_json_without_nan(store):
    config = replace(CONFIG, targets=("lacking",), references=("c",), whole=False)
    document = evaluate_in_context(LikeIntensity(), store, config).to_json()
    assert document["mean_dice"] == 1.0
    assert document["structures"][1]["dice"] is None
    assert document["structures"][1]["num_absent"] == 1


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="shots"):
        EvaluationConfig(shots=0)
    with pytest.raises(ConfigError, match="whole or parts"):
        EvaluationConfig(whole=False, parts=False)


def test_distances_are_measured_in_mm_where_they_are_asked_for(store):
    config = replace(CONFIG, targets=("a", "lacking"), references=("c",), whole=False)
    assert all(math.isnan(s.hd95_mm) for s in evaluate_in_context(LikeIntensity(), store, config).scores)
    measured = evaluate_in_context(LikeIntensity(), store, config, distances=True)
    assert [(s.structure, s.hd95_mm, s.asd_mm) for s in measured.scores if s.target == "a"] == [
        ("liver", 0.0, 0.0),
        ("2", 0.0, 0.0),
    ]
    absent = next(s for s in measured.scores if s.target == "lacking" and s.structure == "2")
    assert math.isnan(absent.hd95_mm)


@pytest.mark.parametrize("room", [1 << 30, 1])
def test_an_ensemble_scores_the_mean_probability_of_its_prompts(store, room):
    class Graded(LikeIntensity):
        """Each prompt in turn says 0.9, 0.4, 0.4 inside, so that two of three say no and the mean is yes."""

        def encode_tasks(self, features, masks):
            priors = super().encode_tasks(features, masks)
            self.number = getattr(self, "number", -1) + 1
            return tuple(torch.cat([p, torch.full_like(p, float(self.number))], dim=-1) for p in priors)

        def decode(self, features, priors):
            near = super().decode(features, priors) > 0
            said = torch.tensor([0.9, 0.4, 0.4])[priors[0][:, :, 0, -1].long() % 3][..., None, None, None]
            return torch.where(near, torch.logit(said), torch.tensor(-20.0))

    inference = replace(CONFIG.inference, max_accumulator_bytes=room)
    config = replace(CONFIG, targets=("a",), references=("b", "c", "d"), whole=False, inference=inference)
    single = evaluate_in_context(Graded(), store, config)
    assert sorted(score.dice for score in single.scores) == [0, 0, 0, 0, 1, 1]
    together = evaluate_in_context(Graded(), store, config, ensemble=True)
    assert [(s.structure, s.dice, s.references) for s in together.scores] == [
        ("liver", 1.0, ("b", "c", "d")),
        ("2", 1.0, ("b", "c", "d")),
    ]


def test_what_an_ensembles_prompt_lacks_the_others_answer(store):
    config = replace(CONFIG, targets=("a",), references=("lacking", "c"), whole=False)
    found = evaluate_in_context(LikeIntensity(), store, config, ensemble=True)
    assert [(s.structure, s.dice, s.references) for s in found.scores] == [
        ("liver", 1.0, ("lacking", "c")),
        ("2", 1.0, ("c",)),
    ]
    assert [(one.structure, one.references) for one in found.unprompted] == [("2", ("lacking",))]


def test_a_named_reference_is_not_drawn_as_a_target(store):
    config = replace(CONFIG, references=("c",), num_targets=50, whole=False)
    targets = {score.target for score in evaluate_in_context(LikeIntensity(), store, config).scores}
    assert targets == {"a", "b", "d", "e", "lacking"}


def test_a_damaged_target_ends_it_or_is_told_of(store, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store.path, copy)
    damaged = open_store(copy)
    shards = damaged.scan("a").path / "0"
    for path in (path for path in shards.rglob("*") if path.is_file() and path.name != "zarr.json"):
        path.write_bytes(path.read_bytes()[:-40])
    config = replace(CONFIG, targets=("a", "b"), references=("c",), whole=False)
    with pytest.raises(CorruptStore):
        evaluate_in_context(LikeIntensity(), damaged, config)
    found = evaluate_in_context(LikeIntensity(), damaged, config, keep_going=True)
    assert {score.target for score in found.scores} == {"b"}
    assert [(one.target, one.label) for one in found.failed] == [("a", "organs")]
