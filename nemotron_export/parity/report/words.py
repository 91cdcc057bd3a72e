"""What the page says in words and tables: verdict, tiles, checks, flips, definitions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from nemotron_runtime.checks.rules import FLIP_MARGIN, RMSE_RATIO

from nemotron_export.parity.report.drift_plots import eager_rmse, logit_tolerance
from nemotron_export.parity.report.numbers import count, factor, number, share, within

__all__ = [
    "Check",
    "Definition",
    "Tile",
    "checks",
    "definitions",
    "facts",
    "flips",
    "headline",
    "meter",
    "tiles",
    "verdict",
]

State = Literal["good", "bad", "plain"]
Verdict = Literal["passed", "failed", "pending"]


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top."""

    label: str
    value: str
    detail: str
    state: State = "plain"


@dataclass(frozen=True)
class Check:
    """One row of the table of checks; ``meter`` is the place on its scale, in %, or None."""

    check: str
    prompt: str
    measured: str
    tolerance: str
    meter: float | None
    passed: bool
    note: str


@dataclass(frozen=True)
class Definition:
    """A number that decides a check, and what it means."""

    term: str
    value: str
    meaning: str


def verdict(document: dict[str, Any]) -> Verdict:
    """The outcome of all checks, "pending" where there are none."""
    if not document["rows"]:
        return "pending"
    return "passed" if document["passed"] else "failed"


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
        worst = max(document["rows"], key=lambda row: (not row["passed"], row["tolerance"] > 0, share(row)))
        numbers = f"{number(worst['measured'])}, tolerance {number(worst['tolerance'])}"
        where = f"{numbers}: {worst['check']}, {worst['prompt']}"
        counted = worst["tolerance"] == 0
        label = "worst check" if counted else "worst check, share of its tolerance"
        value = number(worst["measured"]) if counted else factor(share(worst))
        made.append(Tile(label, value, where, _state(worst["passed"])))
    tokens = _prompt_tokens(document)
    if tokens:
        compared = document.get("drift", {}).get("positions_compared")
        detail = f"prompts of {', '.join(map(str, tokens))}"
        made.append(Tile(
            "prompt tokens", count(sum(tokens)),
            detail if compared is None else f"{detail}; {count(compared)} positions in the plots",
        ))  # fmt: skip
    drift = document.get("drift")
    if drift is not None and drift["margins"]["compared"]:
        refused = sum(not flip["allowed"] for flip in drift["flips"])
        detail = f"at {count(drift['positions_compared'])} compared positions; {count(refused)} past the margin"
        made.append(Tile("token flips", count(len(drift["flips"])), detail, _state(not refused)))
    bisection = document.get("bisection")
    if bisection is not None:
        made.append(_first_tile(bisection))
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
        found.append(f"up to {count(limits['max_seq_len'])} tokens")
    return [str(fact) for fact in found if fact]


def checks(document: dict[str, Any]) -> list[Check]:
    """The rows of the table."""
    return [
        Check(
            row["check"], row["prompt"], number(row["measured"]), number(row["tolerance"]),
            meter(share(row)) if row["tolerance"] else None, row["passed"], row.get("note", ""),
        )
        for row in document["rows"]
    ]  # fmt: skip


def flips(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The flipped tokens: those past the margin first, the largest margins first."""
    found = document.get("drift", {}).get("flips", [])
    return sorted(found, key=lambda flip: (flip["allowed"], -flip["margin"]))


def meter(part: float) -> float:
    """A share of a tolerance on a logarithmic scale from 1e-4 to 100, in %; the tolerance itself is at 66.7."""
    if part <= 0:
        return 0.0
    return round(100 * min(max((math.log10(part) + 4) / 6, 0.02), 1.0), 1) if math.isfinite(part) else 100.0


def definitions(document: dict[str, Any]) -> list[Definition]:
    """The numbers that decide the checks."""
    made = [Definition(
        "Logit range", number(document["logit_range"]),
        "the largest minus the smallest output of eager PyTorch fp32, over all prompts and steps",
    )]  # fmt: skip
    tolerance, own = logit_tolerance(document), eager_rmse(document)
    if tolerance is not None:
        made.append(Definition(
            "Tolerance of outputs", number(tolerance),
            "max |Δ| over all outputs of a check, divided by the logit range, is at most this: here "
            f"{number(tolerance * document['logit_range'])} in the outputs' own unit",
        ))  # fmt: skip
        made.append(Definition("Tokens differing", "0", "every greedy token is PyTorch's own"))
    elif document["dtype"] != "float32":
        made += [
            Definition(
                "RMSE ratio", f"{RMSE_RATIO:g}",
                "RMSE of the bundle's outputs against PyTorch fp32, divided by that of eager PyTorch in "
                f"{document['dtype']}, is at most this",
            ),
            Definition(
                "Margin of flips", f"{FLIP_MARGIN:g} × RMSE",
                "a token may differ where fp32's own margin is at most so many times eager PyTorch's RMSE; one of 64 "
                "tokens may pass it, none twice as much",
            ),
        ]  # fmt: skip
    if own is not None:
        meaning = f"of eager PyTorch in {document['dtype']} against fp32, over the positions in the plots"
        made.append(Definition("Eager RMSE", number(own), meaning))
    bounds = [point["tolerance"] for point in document.get("bisection", {}).get("layers", [])]
    if bounds:
        ends = sorted({number(min(bounds)), number(max(bounds))}, key=float)
        made.append(Definition(
            "Tolerance of inner values", " to ".join(ends),
            "max |Δ| over a value at the chosen positions, divided by the value's range; in a lower precision it "
            "grows with PyTorch's own error in that value",
        ))  # fmt: skip
    return made


def _short(size: int) -> str:
    return f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M"


def _state(good: bool) -> State:
    return "good" if good else "bad"


def _prompt_tokens(document: dict[str, Any]) -> list[int]:
    named = [re.fullmatch(r"(\d{1,9}) tokens", row["prompt"], re.ASCII) for row in document["rows"]]
    found = list(dict.fromkeys(int(match[1]) for match in named if match))
    return found or [prompt["tokens"] for prompt in document.get("drift", {}).get("prompts", [])]


def _first_tile(bisection: dict[str, Any]) -> Tile:
    first = bisection["first"]
    if first is None:
        largest = f"{len(bisection['layers'])} values walked, the largest error {number(bisection['before'])}"
        return Tile("first to leave PyTorch", "none", largest, "good")
    module = first["point"].partition(": ")[0]
    detail = f"{module}, {first['stage']}; error {number(bisection['before'])} before, {number(first['error'])} after"
    return Tile("first to leave PyTorch", " / ".join(bisection["ops"]), detail, _state(within(first)))
