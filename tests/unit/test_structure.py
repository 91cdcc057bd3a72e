"""What CONTRIBUTING says of files: their size, their first line, their ``__all__``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 260
FILES = sorted(
    path
    for folder in ("nemotron_export", "formats", "graphs", "plugins", "runtime", "ci")
    for path in (ROOT / folder).rglob("*.py")
)


def test_the_files_are_found() -> None:
    assert len(FILES) > 300


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_to_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES, "split it by responsibility"
    tree = ast.parse(text)
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert first.endswith((".", ":")), "begin with a docstring of one line that says what the file is"
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    if defined and path.is_relative_to(ROOT / "ci") is False:
        named = any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__" for n in tree.body)
        assert named, "say in __all__ what others may use"
