"""The options of several commands: the bundle that they open, and how tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # numpy, which the command line starts without
    from nemotron_runtime import Model

__all__ = [
    "AllowUnverified",
    "BundleArgument",
    "JsonOutput",
    "MinP",
    "Reference",
    "ReferenceSteps",
    "RepetitionPenalty",
    "Seed",
    "Stop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "WeightsDir",
    "given_params",
    "open_model",
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
    typer.Option(min=1, help="Greedy tokens after each prompt of a new reference; 64, or 8 where it is layerwise."),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the k most likely tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this total.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 makes repeats less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text on every target.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]


def open_model(bundle: Path, weights_dir: Path | None, allow_unverified: bool, threads: int | None) -> Model:
    """The bundle on the runtime, by the options of the command."""
    import nemotron_runtime

    return nemotron_runtime.load(bundle, weights_dir=weights_dir, allow_unverified=allow_unverified, threads=threads)


def given_params(*, stop: Sequence[str] | None, **params: Any) -> dict[str, Any]:
    """The parameters that were given; what was not keeps the runtime's own default."""
    return {name: value for name, value in {**params, "stop": tuple(stop or ()) or None}.items() if value is not None}
