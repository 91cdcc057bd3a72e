"""The option --json of the scripts here, and the file that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Option

__all__ = ["JsonFile", "write_json"]

JsonFile = Annotated[Path | None, Option("--json", help="the file of the measurements")]


def write_json(path: Path | None, document: Any) -> None:
    """Writes a file where one was asked for."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
