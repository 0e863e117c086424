"""The notebooks run top to bottom on bundled scans, and are committed without outputs."""

from __future__ import annotations

import ast
import base64
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from commands.arguments import parser
from tests.running_prefect import running_prefect
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCANS = ("example_mr_sm", "sarcoma_pet", *(f"hippocampus_{n:03}" for n in (1, 3, 4, 7)))
"""Of the bundled ones: with many structures, without labels, with two structures."""

QUICK = {
    "pretrain_and_use": [
        ("STEPS = 60", "STEPS = 2"),
        ("number=60", "number=20"),
        ("TSNE(", "TSNE(max_iter=250, "),
    ]
}
"""What is shortened, by notebook: a training, and a map, is as right after few steps and of fewer points."""


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all that the notebooks prepare."""
    with running_prefect(tmp_path_factory.mktemp("cache")) as url:
        yield url


@pytest.fixture(scope="module")
def prepared_store(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some bundled scans, of the larger two a part, with the default settings."""
    folder = tmp_path_factory.mktemp("bundled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "notebooks"), *sys.path])
        from notebooks import bundled

        patch.setattr(bundled, "EXAMPLES", smaller_examples(folder / "examples"))
        return bundled.prepare_examples(folder, SCANS)


def smaller_examples(folder: Path) -> Path:
    """The bundled scans, of the larger two a sixth and a third of the voxels."""
    whole = ROOT / "examples"
    (folder / "totalseg").mkdir(parents=True)
    (folder / "dicom" / "sarcoma_pet").mkdir(parents=True)
    for name in ("manifest.csv", "hippocampus"):
        (folder / name).symlink_to(whole / name)
    for path in whole.glob("totalseg/example_mr_sm*"):
        if path.name.endswith(".nii.gz"):
            part = sitk.ReadImage(str(path))[30:90, 25:65, 3:17]
            sitk.WriteImage(part, str(folder / "totalseg" / path.name))
        else:
            (folder / "totalseg" / path.name).symlink_to(path)
    for path in sorted(whole.glob("dicom/sarcoma_pet/*"))[16:32]:
        (folder / "dicom" / "sarcoma_pet" / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module", params=[path.stem for path in NOTEBOOKS])
def executed(request: pytest.FixtureRequest, prepared_store: Path) -> tuple[str, Any]:
    """Name and contents of each notebook after a run on them."""
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)
    for long, short in QUICK.get(request.param, []):
        assert sum(cell.source.count(long) for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASS_STORE", str(prepared_store))
        NotebookClient(
            notebook,
            timeout=int(PATIENT_SECONDS),
            kernel_name="python3",
            resources={"metadata": {"path": ROOT / "notebooks"}},
        ).execute()
    return request.param, notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def markdown(notebook: Any) -> str:
    return "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs(notebook))


def printed(notebook: Any) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


@pytest.mark.long
def test_a_notebook_runs_top_to_bottom(executed: tuple[str, Any]) -> None:
    _, notebook = executed
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@pytest.mark.long
def test_its_pictures_show_without_widgets_and_are_not_empty(executed: tuple[str, Any]) -> None:
    name, notebook = executed
    data = [output.data for output in outputs(notebook) if "data" in output]
    pictures = [base64.b64decode(bundle["image/png"]) for bundle in data if "image/png" in bundle]
    least = {"inspect_proposals": 4, "masks_from_elsewhere": 1, "prepare_data": 4, "pretrain_and_use": 4}
    assert len(pictures) >= least[name]
    for png in pictures:
        assert np.asarray(Image.open(BytesIO(png)).convert("L")).std() > 10
    panels = [bundle for bundle in data if "application/vnd.jupyter.widget-view+json" in bundle]
    frames = [bundle for bundle in data if "<iframe" in bundle.get("text/html", "")]
    stills = [bundle for bundle in data if "still picture" in bundle.get("text/html", "")]
    assert (len(panels), len(frames)) == ((3, 1) if name == "inspect_proposals" else (0, 0))
    assert len(stills) == sum("image/png" in bundle for bundle in panels + frames) == len(panels + frames)


@pytest.mark.long
def test_what_it_says_is_so(executed: tuple[str, Any]) -> None:
    name, notebook = executed
    match name:
        case "inspect_proposals":
            assert "Oracle score" in markdown(notebook)
        case "prepare_data":
            assert "brains_hippocampus_001 | 1 | label" in markdown(notebook)
            assert "3 committed, 0 done before, 1 failed" in printed(notebook)
            assert "the file is empty" in printed(notebook)
        case "pretrain_and_use":
            rows = [line.split(" | ") for line in markdown(notebook).splitlines()]
            table = {(row[0].strip("| "), row[1]): row for row in rows if len(row) == 5}
            assert float(table["good", "anterior"][3]) > 0.7 > 0.5 > float(table["wrong mask", "anterior"][3])
            assert float(table["good", "anterior"][2]) > 0.5 > float(table["wrong place", "kidney_right"][2])
        case "masks_from_elsewhere":
            assert "every byte as before: True" in printed(notebook)
            own, bright, expert = next(
                line.split("|")[2:5]
                for line in markdown(notebook).splitlines()
                if line.startswith("| own = 1, bright = 0, expert = 2")
            )
            assert (bright.strip(), own.strip() > "50%", expert.strip() != "0%") == ("0%", True, True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_and_the_options_it_gives_are_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it runs from top to bottom is a test that takes minutes (marked `long`)."""
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.walk(ast.parse(source))]
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), {})
    (commands,) = (one.choices for one in parser()._actions if isinstance(one.choices, dict))
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "mass":
            name, *more = [one.value for one in node.args if isinstance(one, ast.Constant)]
            known = commands[name]._option_string_actions
            assert all(word in known for word in more if str(word).startswith("--"))


def test_curves_and_points_are_drawn_where_they_are() -> None:
    from notebooks.plots import curves, points

    drawn = curves({"a<b": ([1, 10, 100], [0.0, 1.0, 2.0])}, x="n", y="loss", logarithmic=True).data
    assert "a&lt;b" in drawn
    line = drawn.split('points="')[1].split('"')[0]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1)  # equal steps of a logarithm
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y2  # up is more
    marked = points(np.array([[0.0, 0.0], [1.0, 1.0]]), ["left", "right"]).data
    assert marked.count("<circle") == 2
