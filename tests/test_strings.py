"""No string stands alone as a statement but as a docstring: half a message would be lost without an error."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("commands", "pipeline", "storage", "training", "benchmarks")
FILES = [ROOT / "flows.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).glob("**/*.py")))]


def lost_strings(source: str) -> list[int]:
    """Lines of strings that stand alone and document nothing: f-strings, and those after no definition."""
    lines = []
    for parent in ast.walk(ast.parse(source)):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if not isinstance(block, list):
                continue
            for place, node in enumerate(block):
                if not isinstance(node, ast.Expr):
                    continue
                if isinstance(node.value, ast.JoinedStr):
                    lines.append(node.lineno)
                elif isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                    documented = isinstance(parent, ast.Module | ast.ClassDef) or (
                        isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) and place == 0
                    )
                    # Inside a function an attribute may be documented: `self.x = ...` and its text.
                    before = block[place - 1] if place else None
                    assigned = isinstance(before, ast.Assign | ast.AnnAssign)
                    attribute = assigned and "self." in ast.unparse(before)  # type: ignore[arg-type]
                    if not documented and not attribute:
                        lines.append(node.lineno)
    return lines


def test_no_string_stands_alone() -> None:
    assert len(FILES) > 100
    lost = {path.relative_to(ROOT): lost_strings(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: lines for path, lines in lost.items() if lines} == {}


def test_a_string_that_stands_alone_is_found() -> None:
    body = '"""Doc."""\n    reason = f"one {x} "\n    f"two {x}"\n    "three"\n    return reason\n'
    lost = f"def f(x):\n    {body}"
    assert lost_strings(lost) == [4, 5]
    assert lost_strings('"""Doc."""\nX = 1\n"""Of X."""\n') == []
