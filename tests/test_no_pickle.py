"""Nothing that comes from a file can run code: no pickle, no YAML objects, no weights with code in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = ("commands", "pipeline", "storage", "training", "benchmarks", "notebooks", "docs")
FILES = sorted([ROOT / "flows.py", *(path for folder in OWN for path in (ROOT / folder).rglob("*.py"))])

FORBIDDEN_MODULES = {"joblib", "dill", "cloudpickle", "shelve", "marshal", "yaml", "ruamel"}

PICKLED_ON_THE_WAY = {"commands/prepare/payload.py": {"dumps", "loads"}}
"""What a task is given, from the process of the flow to its own workers; it is never in a file."""

MAY_NAME_ERRORS = {"UnpicklingError"}
"""What `torch.load` raises where it refuses a file."""


def attributes_of(tree: ast.AST, module: str) -> Iterator[str]:
    """What is used of a module that is imported by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr
        if isinstance(node, ast.ImportFrom) and node.module == module:
            yield from (alias.name for alias in node.names)


def imported(tree: ast.AST) -> set[str]:
    """The first parts of the names of all imported modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def faults_of(code: str, name: str) -> list[str]:
    """What a file does that could run code from a file that somebody sent."""
    tree = ast.parse(code)
    found = [f"imports {module}" for module in sorted(imported(tree) & FORBIDDEN_MODULES)]
    allowed = PICKLED_ON_THE_WAY.get(name, set()) | MAY_NAME_ERRORS
    found += [f"pickle.{used}" for used in attributes_of(tree, "pickle") if used not in allowed]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        package, _, function = called.partition(".")
        reads = package in ("np", "numpy", "npy") and function in ("load", "read_array")
        if reads and given.get("allow_pickle") != "False":
            found.append(f"{called} without allow_pickle=False")
        if given.get("allow_pickle") == "True":
            found.append(f"{called} with allow_pickle")
        if called in ("eval", "exec", "os.system") or given.get("shell") == "True":
            found.append(f"{called} runs what it is given")
    return found


def test_no_file_of_ours_runs_code_from_another_file() -> None:
    assert len(FILES) > 100
    names = {path: path.relative_to(ROOT).as_posix() for path in FILES}
    faults = {name: faults_of(path.read_text(encoding="utf-8"), name) for path, name in names.items()}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import joblib",
        "from yaml import load",
        "import pickle\npickle.load(file)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "npy.read_array(file)",
        "np.savez(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_check_sees_each_of_these(code: str) -> None:
    assert faults_of(code, "x.py")


def test_what_goes_to_a_worker_is_no_fault() -> None:
    assert faults_of("import pickle\npickle.loads(x)", "commands/prepare/payload.py") == []
    assert faults_of("import pickle\npickle.loads(x)", "commands/prepare/work.py") == ["pickle.loads"]
