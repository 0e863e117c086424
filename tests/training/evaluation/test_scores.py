"""Means, counts and intervals of scores, and the tables made of them."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from training.evaluation.score_tables import Table
from training.evaluation.scores import Evaluation, Failed, Score, Unprompted, bootstrap


def score(target: str, dice: float | None, *, structure: str = "liver", drawn: int = 100, **more) -> Score:
    """A score with this Dice; None where the target lacks the structure."""
    common = 0 if dice is None else round(dice * (100 + drawn) / 2)
    return Score(
        dataset="d",
        label="organs",
        structure=structure,
        target=target,
        references=("r",),
        expected_voxels=0 if dice is None else 100,
        predicted_voxels=drawn,
        common_voxels=common,
        **more,
    )


SCORES = (
    score("a", 0.8, hd95_mm=4.0, asd_mm=1.0),
    score("b", 0.4, hd95_mm=8.0, asd_mm=3.0),
    score("c", 0.0, drawn=0),
    score("d", None, drawn=0),
    score("e", None, drawn=7),
    score("a", 0.5, structure="spleen", hd95_mm=2.0, asd_mm=0.5),
)


def test_missed_absent_and_wrongly_drawn_structures_are_told_apart() -> None:
    liver, spleen = Evaluation(scores=SCORES).structures
    assert liver.dice == pytest.approx(0.4)
    assert (liver.num_cases, liver.num_missed, liver.num_absent, liver.num_drawn_though_absent) == (
        3,
        1,
        2,
        1,
    )
    assert (liver.hd95_mm, liver.asd_mm) == (6.0, 2.0)
    assert (spleen.dice, spleen.num_cases) == (0.5, 1)
    assert Evaluation(scores=SCORES).mean("dice") == pytest.approx(0.45)
    states = [one.state for one in SCORES]
    assert states == ["found", "found", "missed", "absent", "drawn though absent", "found"]


def test_intervals_are_those_of_resampled_targets() -> None:
    generator = np.random.default_rng(4)
    dices = generator.uniform(0.2, 0.9, 12).round(2)
    evaluation = Evaluation(scores=tuple(score(f"t{k}", d) for k, d in enumerate(dices)))
    values = np.array([one.dice for one in evaluation.scores])
    overall, (each,) = bootstrap(evaluation, "dice", num_resamples=20_000)
    drawn = values[generator.integers(0, 12, (20_000, 12))].mean(axis=1)
    assert (each.low, each.high) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))), abs=0.01)
    assert overall == each
    assert bootstrap(evaluation, "dice") == bootstrap(evaluation, "dice")
    assert bootstrap(evaluation, "dice") != bootstrap(evaluation, "dice", seed=1)


def test_prompts_put_to_one_target_make_the_interval_no_narrower() -> None:
    once = [score(f"t{k}", d) for k, d in enumerate((0.1, 0.5, 0.9, 0.3))]
    one, _ = bootstrap(Evaluation(scores=tuple(once)), "dice")
    ten, _ = bootstrap(Evaluation(scores=tuple(once * 10)), "dice")
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))


def test_one_target_and_undefined_numbers_have_no_interval() -> None:
    overall, (liver, spleen) = bootstrap(Evaluation(scores=SCORES), "hd95_mm")
    assert math.isnan(spleen.low)
    assert 4.0 <= liver.low <= liver.high <= 8.0
    assert overall.low <= 4.0
    nothing, each = bootstrap(Evaluation(scores=()), "dice")
    assert math.isnan(nothing.low)
    assert each == []


def test_tables_tell_everything_and_json_has_no_nan() -> None:
    evaluation = Evaluation(
        scores=SCORES,
        unprompted=(Unprompted(dataset="d", label="organs", structure="gall|bladder", references=("r",)),),
        failed=(Failed(target="z", label="organs", reason="damaged"),),
    )
    table = Table.of(evaluation, num_resamples=200)
    text = table.to_markdown("Title", ["seed 0"])
    liver = next(line for line in text.splitlines() if line.startswith("| d / organs / liver |"))
    assert "0.400 [" in liver
    assert liver.endswith("| 3 | 1 | 2 | 1 |")
    spleen = next(line for line in text.splitlines() if line.startswith("| d / organs / spleen |"))
    assert "0.500 [-]" in spleen
    assert "| d / organs / gall/bladder | r |" in text
    assert "| z | organs | damaged |" in text
    assert "| c | organs / liver | r | 0.000 | - | - | missed |" in text
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["state"] for row in rows] == [one.state for one in SCORES]
    assert (rows[2]["dice"], rows[2]["hd95_mm"], rows[3]["dice"]) == ("0.0", "", "")
    document = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert document["cases"][3]["dice"] is None
    assert document["structures"][1]["dice"] == {"mean": 0.5, "low": None, "high": None}
    assert document["mean"]["dice"]["mean"] == pytest.approx(0.45)
    assert document["failed"][0]["target"] == "z"
