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


def too_large(file: Path) -> list[str]:
    """What of a file is larger than it may be."""
    found = ["the file"] * (len(file.read_text(encoding="utf-8").splitlines()) > MOST_FILE_LINES)
    for function in functions(file):
        if (function.end_lineno or 0) - function.lineno >= MOST_FUNCTION_LINES:
            found.append(f"{function.name}: lines")
        if num_parameters(function) > MOST_PARAMETERS and not is_gpu_kernel(function):
            found.append(f"{function.name}: parameters")
    return found


def test_files_and_functions_are_short() -> None:
    assert len(FILES) > 100
    found = {file.relative_to(ROOT): too_large(file) for file in FILES}
    assert {file: parts for file, parts in found.items() if parts} == {}


def test_what_is_too_large_is_found(tmp_path: Path) -> None:
    lines = "".join(f"    x = {n}\n" for n in range(MOST_FUNCTION_LINES))
    (tmp_path / "x.py").write_text(f"def long():\n{lines}\n\ndef wide(a, b, c, d, e, f, g, h, i): ...\n")
    assert too_large(tmp_path / "x.py") == ["long: lines", "wide: parameters"]
    (tmp_path / "x.py").write_text("x = 0\n" * (MOST_FILE_LINES + 1))
    assert too_large(tmp_path / "x.py") == ["the file"]
