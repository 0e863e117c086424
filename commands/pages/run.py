"""The page of a run: its metrics so far, its pictures, its settings.

Reads:  a folder of `mass pretrain`, `finetune` or `classify` (`training.engine.run_folder`), at any time of
        its life.
Writes: HTML text, one self-contained page.
Bounds: a curve has at most 400 points, each the mean of some lines of metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from commands.pages.watch import watched
from commands.terminal import CommandError, State
from pipeline.report import Picture, fact_list, figure, html_page, line_chart, number_list, table
from storage import StoreUrl

RUN_PAGE = "run.html"
"""Name of the page in the run's folder, unless another is given."""

RECORD = "run.json"
"""File that every run's folder has: `training.engine.RECORD`, repeated here to avoid loading PyTorch."""

_MOST_POINTS = 400
_MOST_PICTURES = 6
"""Most pictures besides the newest, evenly over the run."""
_MOST_CURVES = 3
"""Structures with a curve of their own: those whose Dice is lowest at the end."""
_COLOURS = (
    "One row for each mask, in three planes. In each pair of pictures the left one is the reference with its "
    "mask (orange), the right one the target: <b>blue</b> is the mask that was expected, <b>orange</b> what "
    "the network drew."
)


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """The contents of a run's folder."""

    name: str
    settings: Mapping[str, Mapping[str, Any]]
    """Settings by table."""
    record: Mapping[str, Any]
    """Contents of run.json."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of metrics.jsonl."""
    pictures: Sequence[tuple[int, bytes]] = ()
    """Step and PNG, in order; the newest and a few earlier ones."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """report.json of a fine-tuning."""
    failures: Sequence[str] = ()
    """Steps whose loss was not finite."""
    has_weights: bool = False

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the lines of a kind, "train" or "evaluation"."""
        return [line for line in self.metrics if line["kind"] == kind]

    @property
    def num_steps(self) -> int:
        """Steps of the whole run; 0 where the settings do not say."""
        return int(self.settings.get("optimisation", {}).get("num_steps", 0))

    @property
    def step(self) -> int:
        """The last recorded step."""
        return max((int(line["step"]) for line in self.metrics), default=0)


def is_run(path: Path | StoreUrl) -> bool:
    """Whether a path is the folder of a run."""
    return isinstance(path, Path) and (path / RECORD).is_file()


def read_run(folder: Path) -> RunContents:
    """Return the contents of a run's folder.

    Raises:
        CommandError: A file of it is damaged.
    """
    from training.engine import METRICS, PICTURES, read_metrics
    from training.files import read_record, read_settings

    try:
        record, settings = read_record(folder), read_settings(folder)
        metrics = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
        report_file = folder / "report.json"
        report = json.loads(report_file.read_text(encoding="utf-8")) if report_file.exists() else {}
    except (OSError, ValueError) as error:
        raise CommandError(f"{folder}: the run cannot be read ({error})") from error
    drawn = sorted((folder / PICTURES).glob("step-*.png"))
    return RunContents(
        name=folder.resolve().name,
        settings={name: values for name, values in settings.items() if isinstance(values, dict)},
        record=record,
        metrics=metrics,
        pictures=[(int(path.stem.removeprefix("step-")), path.read_bytes()) for path in _spread(drawn)],
        report=report,
        failures=sorted(path.name for path in (folder / "failures").glob("step-*")),
        has_weights=(folder / "weights.safetensors").exists(),
    )


def run_page(run: RunContents, *, now: str = "", refresh_seconds: int = 0) -> str:
    """Return the page of a run.

    Args:
        run: The run.
        now: Progress in one line, if the run goes on.
        refresh_seconds: How often a browser reads the page again; 0 for never.
    """
    sections = [
        ("curves", "Curves", _curves(run)),
        ("structures", "Dice of structures", _structures(run)),
        ("held-out", "On scans not trained on", _report(run)),
        ("pictures", "Samples", _pictures(run)),
        ("settings", "Settings and seeds", _settings(run)),
        ("scans", "Scans", _scans(run)),
    ]
    there = [(anchor, title, body) for anchor, title, body in sections if body]
    body = "".join(f'<h2 id="{anchor}">{escape(title)}</h2>{text}' for anchor, title, text in there)
    state = f'<p class="state" role="status">{escape(now or _state(run))}</p>'
    header = f"<h1>{escape(run.name)}</h1>{state}{number_list(_numbers(run))}"
    return html_page(
        f"{run.name} · run",
        header,
        [(f"#{anchor}", title) for anchor, title, _ in there],
        body,
        refresh_seconds=refresh_seconds,
    )


def _state(run: RunContents) -> str:
    if run.failures:
        where = ", ".join(run.failures)
        return f"Ended by a loss that was not finite: failures/{where} has state and batch."
    if run.has_weights:
        return "Complete."
    if not run.metrics:
        return "Begun; no step is recorded yet."
    return f"Not complete: step {run.step:,} of {run.num_steps:,} was the last to be recorded."


def _numbers(run: RunContents) -> list[tuple[str, str]]:
    train, evaluations = run.of("train"), run.of("evaluation")
    steps = f"{run.step:,} of {run.num_steps:,}" if run.num_steps else f"{run.step:,}"
    numbers = [(steps, "steps"), (f"{len(run.record.get('scans', {})):,}", "scans")]
    if train:
        first, last = (_mean(train[part]) for part in (slice(0, _tenth(train)), slice(-_tenth(train), None)))
        numbers.append((f"{first:.3f} → {last:.3f}", "loss, first and last tenth"))
        numbers.append((f"{train[-1].get('samples_per_second', 0):.1f}", "samples a second"))
        numbers.append((f"{train[-1].get('data_wait_fraction', 0):.0%}", "of the time waiting for data"))
    scores = [line["dice"] for line in evaluations if "dice" in line]
    if scores:
        numbers.append((f"{scores[-1]:.3f}", f"mean Dice now; best {max(scores):.3f}"))
    return numbers


def _tenth(lines: Sequence[object]) -> int:
    return max(1, len(lines) // 10)


def _mean(lines: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([line["loss"] for line in lines]))


def _curves(run: RunContents) -> str:
    """Return charts of the recorded metrics over the steps."""
    train, evaluations = run.of("train"), run.of("evaluation")
    losses = [name for name in ("loss", "dice_loss", "cross_entropy") if any(name in line for line in train)]
    charts = [
        _chart("Loss", train, losses, "mean of the samples since the line before"),
        _chart("Dice on labelled scans", evaluations, ["dice"], "no label is trained on in a pretraining"),
        _chart("Learning rate", train, ["rate"], ""),
        _chart("Samples a second", train, ["samples_per_second"], ""),
        _chart(
            "Waiting for data",
            train,
            ["data_wait_fraction"],
            "fraction of the time; helps: more --workers",
        ),
        _chart("Norm of the gradient", train, ["gradient_norm"], "before it is clipped"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _chart(title: str, lines: Sequence[Mapping[str, Any]], names: Sequence[str], note: str) -> str:
    series = {}
    for name in names:
        there = [line for line in lines if name in line]
        if len(there) > 1:
            steps, values = _thinned(
                np.array([line["step"] for line in there], dtype=float),
                np.array([line[name] for line in there], dtype=float),
            )
            shown = name.removeprefix("dice/").replace("_", " ")
            series[shown] = (steps.tolist(), values.tolist())
    if not series:
        return ""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<div><h4>{escape(title)}</h4>{line_chart(series, label=title, unit='step')}{explained}</div>"


def _thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means of neighbouring points, so that a curve has at most `_MOST_POINTS`."""
    number = -(-len(values) // _MOST_POINTS)
    starts = np.arange(0, len(values), number)
    counts = np.diff([*starts, len(values)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _structures(run: RunContents) -> str:
    """Return charts of the Dice of structures over the evaluations, the lowest first."""
    evaluations = run.of("evaluation")
    if not evaluations:
        return ""
    names = sorted({name for line in evaluations for name in line if name.startswith("dice/")})
    rows, last = [], {}
    for name in names:
        values = [line[name] for line in evaluations if name in line]
        last[name] = values[-1]
        shown = escape(name.removeprefix("dice/").replace("/", " / "))
        rows.append((shown, f"{values[0]:.3f}", f"{max(values):.3f}", f"{values[-1]:.3f}"))
    if not rows:
        return ""
    rows.sort(key=lambda row: float(row[-1]))
    lowest = sorted(last, key=lambda name: last[name])[:_MOST_CURVES]
    chart = _chart("The lowest", evaluations, lowest, "")
    drawn = f'<div class="charts">{chart}</div>' if chart else ""
    return table(("structure", "first", "best", "last"), rows) + drawn


def _report(run: RunContents) -> str:
    """Return the table of a fine-tuning's report."""
    structures = run.report.get("structures", [])
    if not structures:
        return ""
    rows = [
        (
            escape(f"{one['dataset']} / {one['label']} / {one['structure']}"),
            *(_measured(one.get(measure)) for measure in ("dice", "hd95_mm", "asd_mm")),
            str(one["num_cases"]),
            str(one["num_missed"]),
        )
        for one in structures
    ]
    return table(("structure", "Dice", "HD95, mm", "ASD, mm", "cases", "missed"), rows)


def _measured(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.3f}"


def _pictures(run: RunContents) -> str:
    if not run.pictures:
        return ""
    *before, (step, newest) = run.pictures
    older = "".join(
        f"<details><summary>step {number:,}</summary>{figure(_picture(number, png))}</details>"
        for number, png in reversed(before)
    )
    text = f'<p class="wide">{_COLOURS} Drawn after step {step:,}.</p>'
    return f'{text}<div class="card">{figure(_picture(step, newest))}{older}</div>'


def _picture(step: int, png: bytes) -> Picture:
    with Image.open(BytesIO(png)) as opened:
        width, height = opened.size
    alt = f"reference with mask, target with expected mask and prediction, after step {step}"
    return Picture(png=png, width=width, height=height, alt=alt, caption="")


def _settings(run: RunContents) -> str:
    precision = run.record.get("precision", {})
    seeds = [
        (f"{name}.seed", str(values["seed"])) for name, values in run.settings.items() if "seed" in values
    ]
    facts = [
        ("store", f"{run.record.get('store', '')} (digest {str(run.record.get('store_digest', ''))[:12]})"),
        *seeds,
        ("precision", f"{precision.get('name', 'not recorded')}: {precision.get('why', '')}".rstrip(": ")),
        ("versions", ", ".join(f"{name} {value}" for name, value in run.record.get("versions", {}).items())),
    ]
    tables = "".join(
        f"<details><summary>[{escape(name)}]</summary>"
        f"{fact_list([(key, json.dumps(value)) for key, value in values.items()])}</details>"
        for name, values in run.settings.items()
    )
    return fact_list(facts) + tables


def _scans(run: RunContents) -> str:
    names = sorted(run.record.get("scans", {}))
    listed = ", ".join(map(escape, names))
    return f"<details><summary>{len(names):,} scans were trained on</summary><p>{listed}</p></details>"


def _spread(paths: Sequence[Path]) -> list[Path]:
    """Return the newest picture, and a few earlier ones, evenly spread."""
    if not paths:
        return []
    *before, newest = paths
    number = min(_MOST_PICTURES, len(before))
    return [*(before[k * len(before) // number] for k in range(number)), newest]


@contextmanager
def watched_run(folder: Path, wanted: bool) -> Iterator[Callable[[State], None] | None]:
    """Keep the page of a run in its folder up to date, if `wanted`; see `watched`."""

    def make(now: str, refresh_seconds: int) -> str:
        if not is_run(folder):
            return ""
        return run_page(read_run(folder), now=now, refresh_seconds=refresh_seconds)

    with watched(folder / RUN_PAGE if wanted else None, make) as take:
        yield take
