"""Sizes that keep the code readable: entries of a folder, lines of a file and a function, parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("commands", "pipeline", "storage", "training")
MOST_ENTRIES = {"pipeline": 12, "storage": 8, "training": 10}
MOST_MODULES, MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 14, 450, 60, 8
FILES = [ROOT / "flows.py", *(file for name in FOLDERS for file in sorted((ROOT / name).rglob("*.py")))]
ROOMS = [door.parent for name in MOST_ENTRIES for door in sorted((ROOT / name).glob("*/__init__.py"))]


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_gpu_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Triton kernels take each array and each size by itself: there are no objects on a GPU."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


@pytest.mark.parametrize("package", MOST_ENTRIES)
def test_the_top_of_a_package_can_be_taken_in_at_a_glance(package: str) -> None:
    entries = {
        path.name
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    } - {"__init__.py"}
    assert len(entries) <= MOST_ENTRIES[package]


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: f"{path.parent.name}.{path.name}")
def test_a_room_has_few_modules(room: Path) -> None:
    assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES


def test_the_flows_read_as_a_table_of_contents() -> None:
    assert len((ROOT / "flows.py").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_FILE_LINES
    for function in functions(file):
        assert (function.end_lineno or 0) - function.lineno < MOST_FUNCTION_LINES, function.name
        if not is_gpu_kernel(function):
            assert num_parameters(function) <= MOST_PARAMETERS, function.name
