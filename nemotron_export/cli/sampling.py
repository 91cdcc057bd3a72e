"""The options that say how tokens are chosen, of every command that generates text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

__all__ = ["MinP", "RepetitionPenalty", "Seed", "Stop", "Temperature", "TopK", "TopP", "given_params"]

Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the k most likely tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this total.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 makes repeats less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text on every target.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]


def given_params(*, stop: Sequence[str] | None, **params: Any) -> dict[str, Any]:
    """The parameters that were given; what was not keeps the runtime's own default."""
    return {name: value for name, value in {**params, "stop": tuple(stop or ()) or None}.items() if value is not None}
