"""CONTRIBUTING's recipes, followed to the letter over a copy of the packages.

A recipe is a section of the page. Each block of code in it whose first line is a comment with a path makes that file;
each `diff` block, whose first line is a path, adds its `+` lines beside the lines of context.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["PACKAGES", "Recipe"]

ROOT = Path(__file__).parents[2]
# the folders that hold packages, as they stand on the path
PACKAGES = {".": "nemotron_export", "formats": None, "graphs": None, "plugins": None, "runtime": None}


class Recipe:
    """One recipe, applied to a copy.

    Args:
        section: the heading of the section in CONTRIBUTING.md.
        folder: an empty folder for the copy.

    Attributes:
        touched: files that the recipe makes or changes.
    """

    def __init__(self, section: str, folder: Path) -> None:
        self.folder = folder
        self.touched: list[str] = []
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        for parent, package in PACKAGES.items():
            source = ROOT / (package or parent)
            shutil.copytree(source, folder / (package or parent), ignore=shutil.ignore_patterns("__pycache__"))
        for language, code in re.findall(r"```(\w+)\n(.*?)```", body, re.DOTALL):
            if language == "diff":
                self._change(code)
            elif language == "python" and code.startswith("# "):
                first, _, rest = code.partition("\n")
                self._make(first.removeprefix("# "), rest.lstrip("\n"))

    def run(self, code: str, *arguments: str) -> str:
        """What a program prints that runs over the copy."""
        paths = [str(self.folder / parent) for parent in PACKAGES]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _make(self, name: str, code: str) -> None:
        path = self.folder / name
        assert not path.exists(), f"{name} is there already"
        path.write_text(code, encoding="utf-8")
        self.touched.append(name)

    def _change(self, block: str) -> None:
        name, *lines = block.splitlines()
        path = self.folder / name
        found = path.read_text(encoding="utf-8").splitlines()
        at: int | None = None
        early: list[str] = []
        for line in lines:
            sign, content = line[:1], line[1:]
            if sign == "+":
                if at is None:
                    # before the first line of context
                    early.append(content)
                    continue
                found.insert(at, content)
                at += 1
                continue
            assert found.count(content) == 1, f"{name} has {found.count(content)} lines {content!r}"
            at = found.index(content)
            found[at:at] = early
            at, early = at + len(early), []
            if sign == "-":
                del found[at]
            else:
                at += 1
        path.write_text("\n".join(found) + "\n", encoding="utf-8")
        self.touched.append(name)
