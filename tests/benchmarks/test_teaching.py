"""Masks compared by what they teach: nothing asked about is trained on, and it goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
from PIL import Image

import benchmarks.teaching as script
from benchmarks.curves import draw_curves, mean_curve
from training.engine.monitoring import METRICS
from training.evaluation.in_context import Evaluation, Score
from training.pretraining.config import small

IDS = tuple(f"scan-{k:03d}" for k in range(200))


def evaluation(offset: float = 0.0) -> Evaluation:
    """Two targets, two references, each structure with a Dice of its own."""
    scores = tuple(
        Score(
            dataset="hippocampus",
            label="label",
            structure=structure,
            target=target,
            references=(reference,),
            expected_voxels=100,
            predicted_voxels=100,
            common_voxels=int(100 * (dice + offset)),
        )
        for target in ("a", "b")
        for reference in ("c", "d")
        for structure, dice in (("whole", 0.5), ("1", 0.4), ("2", 0.25))
    )
    return Evaluation(scores=scores)


def test_the_split_is_the_same_every_time_and_its_parts_share_no_scan():
    split = script.Split.of(IDS)
    assert split == script.Split.of(IDS)
    assert (len(split.targets), len(split.references), len(split.validation)) == (40, 5, 10)
    assert len(set(split.held_out)) == 55
    few = script.Split.of(IDS[:12])
    assert (len(few.targets), len(few.references), len(few.validation)) == (4, 2, 0)


def test_no_scan_that_is_asked_about_is_trained_on():
    split = script.Split.of(IDS)
    for search, asked in ((False, split.targets), (True, split.validation)):
        config = script.cell_config(small(), split, num_steps=600, seed=3, search=search)
        assert set(config.data.exclude) >= {*asked, *split.references}
        assert config.evaluation.targets == asked
        assert config.evaluation.references == split.references
        assert (config.optimisation.num_steps, config.optimisation.seed) == (600, 3)
        assert config.run.evaluate_every == 50


def test_the_search_changes_the_setting_that_is_named():
    config = script.with_settings(
        small(),
        {
            "optimisation.peak_rate": 0.5,
            "model.channels": [4, 8, 16, 32, 32],
            "augmentation.target.max_shear": 0.3,
        },
    )
    assert config.optimisation.peak_rate == 0.5
    assert config.model.channels == (4, 8, 16, 32, 32)
    assert config.augmentation.target.max_shear == 0.3
    assert config.augmentation.reference == small().augmentation.reference
    with pytest.raises(SystemExit, match="peek_rate"):
        script.with_settings(small(), {"optimisation.peek_rate": 0.5})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`mass pretrain` replaced by a file of metrics; the cells that were trained."""
    done: list[str] = []

    def train(store: Path, folder: Path, config: object) -> float:
        done.append(folder.name)
        if len(done) == 2:
            raise KeyboardInterrupt
        (folder / "run").mkdir(parents=True)
        lines = [
            {"kind": "train", "step": 10, "loss": 1.0},
            {"kind": "evaluation", "step": 10, "dice": 0.3, "dice/hippocampus/label/whole": 0.4},
        ]
        (folder / "run" / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 1.5

    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(
        script, "final_scores", lambda store, *_: evaluation(0.1 if store.name == "ours" else 0.0)
    )
    return done


def test_finished_cells_are_kept_and_the_others_done(trained, tmp_path):
    arguments = argparse.Namespace(out=tmp_path, steps=600, minutes=1.0, seeds=[0, 1], arms=["ours", "slic"])
    split = script.Split.of(IDS)
    with pytest.raises(KeyboardInterrupt):
        script.run_cells(arguments, small(), split)
    assert trained == ["ours-seed0", "slic-seed0"]
    results = script.run_cells(arguments, small(), split)
    assert trained[2:] == ["slic-seed0", "ours-seed1", "slic-seed1"]
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["cells"]["ours-seed0"]["curve"] == [{"step": 10, "whole": 0.4}]
    text = script.report(results, tmp_path)
    assert "| our masks | 0 | 1.5 | 0.600 | 0.500 | 0.350 |" in text
    assert "whole +0.100 (+0.100 to +0.100)" in text
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height


def test_a_manifest_is_cut_to_the_hippocampus_with_paths_that_work_elsewhere(tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("id,image,label,dataset\na,x/a.nii,x/l.nii,hippocampus\nb,x/b.nii,,other\n")
    copy = script.manifest_of("hippocampus", manifest, tmp_path / "copy.csv").read_text().splitlines()
    assert copy == ["id,image,label,dataset", f"a,{tmp_path}/x/a.nii,{tmp_path}/x/l.nii,hippocampus"]
    manifest.write_text("id,image,label,dataset\nb,x/b.nii,,other\n")
    with pytest.raises(SystemExit, match="hippocampus"):
        script.manifest_of("hippocampus", manifest, tmp_path / "copy.csv")


def test_the_mean_curve_has_the_points_that_all_seeds_have():
    assert mean_curve([[(1, 0.0), (2, 0.4), (3, 1.0)], [(1, 0.2), (2, 0.6)]]) == [(1, 0.1), (2, 0.5)]
    assert mean_curve([]) == []


def test_curves_are_drawn_in_the_colours_of_their_arms(tmp_path):
    arms = {"first": [[(0, 0.0), (10, 0.5)]], "second": [[(0, 0.0), (10, 0.25)]]}
    draw_curves(tmp_path / "curves.png", {"panel": arms}, x_label="steps")
    with Image.open(tmp_path / "curves.png") as picture:
        colours = {colour: count for count, colour in picture.getcolors(1 << 24)}
    assert colours[(31, 98, 201)] > 100
    assert colours[(214, 80, 32)] > 100
    assert math.isclose(picture.width / picture.height, 470 / 360, rel_tol=0.01)
