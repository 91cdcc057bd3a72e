"""The options that every command which loads a bundle takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AllowUnverified", "BundleArgument", "JsonOutput", "Threads", "WeightsDir"]

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `build` made.")]
WeightsDir = Annotated[
    Path | None, typer.Option("--weights-dir", help="Where the weight files are now, if they were moved.")
]
AllowUnverified = Annotated[
    bool, typer.Option("--allow-unverified", help="Load a bundle whose numbers are not proved.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; the runtime's choice by default.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
