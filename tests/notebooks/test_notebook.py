"""The notebook runs top to bottom on the bundled scans, and is committed without outputs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.pipeline.drawn_scan import drawn_scan
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "inspect_proposals.ipynb"
SCANS = ("example_mr_sm", "hippocampus_001", "sarcoma_pet")
"""Of the bundled ones: with many structures, with two, without labels."""


@pytest.fixture(scope="module")
def prepared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three bundled scans, with the default settings."""
    folder = tmp_path_factory.mktemp("bundled")
    with (ROOT / "examples" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in SCANS]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            paths = {name: str(ROOT / "examples" / row[name]) for name in ("image", "label") if row[name]}
            writer.writerow(row | paths)
    command = [
        sys.executable,
        "-m",
        "commands",
        "prepare",
        str(folder / "manifest.csv"),
        str(folder / "store"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "store"


@pytest.fixture(scope="module")
def executed(prepared_store: Path) -> Iterator[Any]:
    """The notebook after a run on them."""
    before = os.environ.get("MASS_STORE")
    os.environ["MASS_STORE"] = str(prepared_store)
    try:
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=int(PATIENT_SECONDS),
            kernel_name="python3",
            resources={"metadata": {"path": NOTEBOOK.parent}},
        )
        client.execute()
        yield notebook
    finally:
        os.environ.pop("MASS_STORE") if before is None else os.environ.update(MASS_STORE=before)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_runs_top_to_bottom(executed: Any) -> None:
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert not [output for output in outputs(executed) if output.output_type in ("error", "stream")]


def test_every_panel_also_shows_without_widgets(executed: Any) -> None:
    data = [output.data for output in outputs(executed) if "data" in output]
    panels = [bundle for bundle in data if "application/vnd.jupyter.widget-view+json" in bundle]
    assert len(panels) == 3
    assert all("image/png" in bundle for bundle in panels)
    stills = [bundle for bundle in data if "still picture" in bundle.get("text/html", "")]
    assert len(stills) == 3
    assert any("Oracle score" in bundle.get("text/markdown", "") for bundle in data)


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert "widgets" not in notebook.metadata


def test_a_click_moves_the_cross_to_the_voxel_under_it() -> None:
    from notebooks.viewer import PlaneViewer

    scan = drawn_scan()
    moved = []
    viewer = PlaneViewer(scan, (9, 20, 24), label=scan.labels[0].array, moved=lambda: moved.append(1))
    before = viewer.pictures[1].png
    viewer.pictures[0].click = [0.0, 0.999]  # axial: upper right corner = front, left of the patient
    assert viewer.point == (9, 39, 0)
    assert [slider.value for slider in viewer.sliders] == [9, 39, 0]
    assert viewer.pictures[1].png != before
    viewer.sliders[0].value = 3
    assert viewer.point == (3, 39, 0)
    assert len(moved) == 2


def test_walking_and_filtering_follow_the_cross_and_the_bounds() -> None:
    from notebooks.viewer import filtered, walk

    scan = drawn_scan()
    assert isinstance(walk(scan, (9, 20, 30))._still(), np.ndarray)
    panel = filtered(scan, (9, 20, 30))
    size, score, _ = panel.children[0].children
    count = panel.children[1]
    before = count.value
    size.value = (size.min, size.max)
    assert count.value != before
    score.value = score.max
    assert count.value.startswith("1 of")
