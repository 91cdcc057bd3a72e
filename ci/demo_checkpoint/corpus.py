"""Free text that every build environment has.

It is Python's documentation topics and docstrings (PSF), and docstrings of BSD packages that PyTorch brings.

    python ci/demo_checkpoint/corpus.py OUTPUT_DIR

writes train.txt and heldout.txt (documents separated by a form feed), and prints what they hold.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import typer
from cleaning import clean

# under BSD-3-Clause; the package's own folder is read, its tests are not
PACKAGES = ("numpy", "torch", "networkx", "sympy", "mpmath")
SKIPPED = frozenset("test tests testing idlelib lib2to3 site-packages __pycache__ _inductor _vendor benchmarks".split())
SEPARATOR = "\f"


def topics() -> Iterator[str]:
    """Python's documentation topics (PSF licence)."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield texts[name]


def docstrings(root: Path) -> Iterator[str]:
    """The docstrings of a tree, read from source without importing it."""
    for path in sorted(root.rglob("*.py")):
        if SKIPPED & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def documents() -> Iterator[str]:
    """All cleaned documents; a paragraph that was met before is left out."""
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        roots.append(Path(spec.origin).parent)
    seen: set[str] = set()
    for source in (topics(), *(docstrings(root) for root in roots)):
        for text in source:
            fresh = []
            for paragraph in clean(text):
                key = re.sub(r"\W+", "", paragraph.lower())[:160]
                if key not in seen:
                    seen.add(key)
                    fresh.append(paragraph)
            if fresh:
                yield "\n".join(fresh)


def main(output: Path) -> None:
    """Writes both files."""
    output.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"train": [], "heldout": []}
    for document in documents():
        # a hash decides, so the split does not move when documents come or go
        bucket = int.from_bytes(hashlib.sha256(document.encode()).digest()[:2], "big") % 50
        parts["heldout" if bucket == 0 else "train"].append(document)
    for name, texts in parts.items():
        data = SEPARATOR.join(texts).encode()
        (output / f"{name}.txt").write_bytes(data)
        print(f"{name}: {len(texts)} documents, {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}")


if __name__ == "__main__":
    typer.run(main)
