"""The options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowUnverified",
    "BundleArgument",
    "JsonOutput",
    "Reference",
    "ReferenceSteps",
    "Threads",
    "WeightsDir",
]

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `build` made.")]
WeightsDir = Annotated[
    Path | None, typer.Option("--weights-dir", help="Where the weight files are now, if they were moved.")
]
AllowUnverified = Annotated[
    bool, typer.Option("--allow-unverified", help="Load a bundle whose numbers are not proved.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; the runtime's choice by default.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Reference = Annotated[
    str,
    typer.Option(
        help="How PyTorch computes the reference: whole, layerwise (one layer in memory at a time), or auto: "
        "layerwise where the memory available does not hold the fp32 model."
    ),
]
ReferenceSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Greedy tokens behind each prompt of a new reference; 64, or 8 where it is layerwise."),
]
