"""What the page says in words and tables: verdict, tiles, checks, flips, definitions."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nemotron_runtime.checks.rules import FLIP_MARGIN, RMSE_RATIO

from nemotron_export.parity.report.numbers import eager_rmse, factor, logit_tolerance, number, share

__all__ = ["Tile", "definitions", "facts", "headline", "tiles"]


class Tile(NamedTuple):
    """One of the figures at the top; ``good`` is None where it is neither good nor bad."""

    label: str
    value: str
    detail: str
    good: bool | None = None


def headline(document: dict[str, Any]) -> str:
    """The verdict in a sentence."""
    rows = document["rows"]
    if not rows:
        return "Nothing was compared yet: no check says whether this bundle computes what PyTorch computes."
    failed = sum(not row["passed"] for row in rows)
    if not failed:
        return f"All {len(rows)} checks hold: the bundle computes what eager PyTorch computes, within the tolerances."
    return f"{failed} of {len(rows)} checks fail: the bundle does not compute what eager PyTorch computes."


def tiles(document: dict[str, Any]) -> list[Tile]:
    """The worst check, the tokens, the flips and where the bundle leaves PyTorch."""
    made = []
    if document["rows"]:
        # a failed check is worse than any that holds; among equals, counts of tokens say less than a distance does
        worst = max(document["rows"], key=lambda row: (not row["passed"], row["tolerance"] > 0, _share(row)))
        counted = worst["tolerance"] == 0
        made.append(Tile(
            "worst check" if counted else "worst check, share of its tolerance",
            number(worst["measured"]) if counted else factor(_share(worst)),
            f"{number(worst['measured'])}, tolerance {number(worst['tolerance'])}: {worst['check']}, {worst['prompt']}",
            worst["passed"],
        ))  # fmt: skip
    drift = document.get("drift")
    tokens = _prompt_tokens(document)
    if tokens:
        plotted = "" if drift is None else f"; {drift['positions_compared']:,} positions in the plots"
        made.append(Tile("prompt tokens", f"{sum(tokens):,}", f"prompts of {', '.join(map(str, tokens))}{plotted}"))
    if drift is not None and drift["margins"]["compared"]:
        refused = sum(not flip["allowed"] for flip in drift["flips"])
        detail = f"at {drift['positions_compared']:,} compared positions; {refused:,} past the margin"
        made.append(Tile("token flips", f"{len(drift['flips']):,}", detail, not refused))
    if "bisection" in document:
        made.append(_first_tile(document["bisection"]))
    return made


def facts(document: dict[str, Any]) -> list[str]:
    """Target, dtype, task and size, as far as the document knows them."""
    bundle = document.get("bundle", {})
    model, limits = bundle.get("model", {}), bundle.get("limits", {})
    found = [bundle.get("target"), document["dtype"], bundle.get("task")]
    if "parameters" in model:
        found.append(f"{_short(model['parameters'])} parameters")
    if "layers" in model and "hidden_size" in model:
        found.append(f"{model['layers']} layers of {model['hidden_size']}")
    if "max_seq_len" in limits:
        found.append(f"up to {limits['max_seq_len']:,} tokens")
    return [str(fact) for fact in found if fact]


def definitions(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The numbers that decide the checks: term, value and meaning of each."""
    made = [(
        "Logit range", number(document["logit_range"]),
        "the largest minus the smallest output of eager PyTorch fp32, over all prompts and steps",
    )]  # fmt: skip
    tolerance, own = logit_tolerance(document), eager_rmse(document)
    if tolerance is not None:
        made += [
            (
                "Tolerance of outputs", number(tolerance),
                "max |Δ| over all outputs of a check, divided by the logit range, is at most this: here "
                f"{number(tolerance * document['logit_range'])} in the outputs' own unit",
            ),
            ("Tokens differing", "0", "every greedy token is PyTorch's own"),
        ]  # fmt: skip
    elif document["dtype"] != "float32":
        made += [
            (
                "RMSE ratio", f"{RMSE_RATIO:g}",
                "RMSE of the bundle's outputs against PyTorch fp32, divided by that of eager PyTorch in "
                f"{document['dtype']}, is at most this",
            ),
            (
                "Margin of flips", f"{FLIP_MARGIN:g} × RMSE",
                "a token may differ where fp32's own margin is at most so many times eager PyTorch's RMSE; one of 64 "
                "tokens may pass it, none twice as much",
            ),
        ]  # fmt: skip
    if own is not None:
        meaning = f"of eager PyTorch in {document['dtype']} against fp32, over the positions in the plots"
        made.append(("Eager RMSE", number(own), meaning))
    bounds = [point["tolerance"] for point in document.get("bisection", {}).get("layers", [])]
    if bounds:
        ends = sorted({number(min(bounds)), number(max(bounds))}, key=float)
        made.append((
            "Tolerance of inner values", " to ".join(ends),
            "max |Δ| over a value at the chosen positions, divided by the value's range; in a lower precision it "
            "grows with PyTorch's own error in that value",
        ))  # fmt: skip
    return made


def _short(size: int) -> str:
    return f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M"


def _share(row: dict[str, Any]) -> float:
    return share(row["measured"], row["tolerance"])


def _prompt_tokens(document: dict[str, Any]) -> list[int]:
    named = [re.fullmatch(r"(\d{1,9}) tokens", row["prompt"], re.ASCII) for row in document["rows"]]
    found = list(dict.fromkeys(int(match[1]) for match in named if match))
    return found or [prompt["tokens"] for prompt in document.get("drift", {}).get("prompts", [])]


def _first_tile(bisection: dict[str, Any]) -> Tile:
    first = bisection["first"]
    if first is None:
        largest = f"{len(bisection['layers'])} values walked, the largest error {number(bisection['before'])}"
        return Tile("first to leave PyTorch", "none", largest, True)
    module = first["point"].partition(": ")[0]
    detail = f"{module}, {first['stage']}; error {number(bisection['before'])} before, {number(first['error'])} after"
    return Tile("first to leave PyTorch", " / ".join(bisection["ops"]), detail, first["passed"])
