"""Compares a verdict with an older one of the same model, target and dtype: what got worse, though it may pass."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError, RequestError
from nemotron_runtime.checks.report import ParityReport, ParityRow

__all__ = ["GROWTH", "NOISE", "BaselineRow", "compare_with_baseline", "read_baseline"]

# An error may grow to so many times the old one,
GROWTH = 2.0
# and as it likes below this share of its tolerance: rounding differs between processors and library versions.
NOISE = 0.01

_NAMES = {
    "target": "target",
    "task": "task",
    "dtype": "dtype",
    "config": "model config",
    "weights": "set of weight files",
    "contents": "weights",
}


@dataclass(frozen=True)
class BaselineRow:
    """One check then and now; None where it was not made. `problem` says what got worse, and is empty otherwise."""

    check: str
    prompt: str
    old: float | None
    new: float | None
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing got worse."""
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a number that is not finite becomes null."""
        values = {"passed": self.passed, **asdict(self)}
        for name in ("old", "new"):
            if values[name] is not None and not math.isfinite(values[name]):
                values[name] = None
        return values


def read_baseline(path: str | Path, identity: Mapping[str, str | None]) -> ParityReport:
    """Reads an older parity.json.

    Args:
        identity: :func:`nemotron_export.parity.verdict.bundle_identity` of the bundle that is checked now.

    Raises:
        BundleError: no such file, not a verdict, or one of another model, target, task or dtype.
    """
    where = str(path)
    again = "keep the parity.json that `verify`, `parity` or `build` of this version wrote into the older bundle"
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        report = ParityReport.from_dict(document)
        old = document["bundle"]
        values = {name: old[name] for name in _NAMES}
    except OSError as error:
        raise BundleError(str(error.strerror or error), "an older parity.json", again, where=where) from error
    except KeyError as error:
        raise BundleError(f"no {error} in it", "a verdict that names its bundle", again, where=where) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"a broken file ({error})", "an older parity.json", again, where=where) from error
    for name, label in _NAMES.items():
        # weights that were not scanned, then or now, cannot tell
        if values[name] != identity[name] and not (name == "contents" and None in (values[name], identity[name])):
            readable = name in ("target", "task", "dtype")
            raise BundleError(
                f"{label} {values[name]}" if readable else f"another {label}",
                f"{label} {identity[name]}" if readable else "the bundle's own",
                "give the baseline of this bundle's model, target and dtype, or start a new one without --baseline",
                where=where,
            )
    return report


def compare_with_baseline(
    baseline: ParityReport, report: ParityReport, growth: float = GROWTH
) -> tuple[BaselineRow, ...]:
    """A row for each check of either report.

    A check got worse where it passed and fails, where it is no longer made, where its tolerance was raised, or where
    its measured error is more than `growth` times the old one and above 1 % of its tolerance.

    Raises:
        RequestError: a growth below 1.
    """
    if not (math.isfinite(growth) and growth >= 1):
        raise RequestError(str(growth), "a factor of 1 or more", "raise it", where="--baseline-factor")
    old, new = _by_name(baseline.rows), _by_name(report.rows)
    rows = [_compare(row, new.get(key), growth) for key, row in old.items()]
    rows += [
        BaselineRow(row.check, row.prompt, None, row.measured, row.tolerance)
        for key, row in new.items()
        if key not in old
    ]
    return tuple(rows)


def _by_name(rows: Sequence[ParityRow]) -> dict[tuple[str, str, int], ParityRow]:
    """Rows by check, prompt and, where these are repeated, their number."""
    seen: Counter[tuple[str, str]] = Counter()
    named = {}
    for row in rows:
        key = (row.check, row.prompt)
        named[(*key, seen[key])] = row
        seen[key] += 1
    return named


def _compare(old: ParityRow, new: ParityRow | None, growth: float) -> BaselineRow:
    if new is None:
        return BaselineRow(old.check, old.prompt, old.measured, None, old.tolerance, "no longer checked")
    problem = ""
    if old.passed and not new.passed:
        problem = "passed before, fails now"
    elif new.tolerance > old.tolerance:
        problem = f"the tolerance was {old.tolerance:.3g}"
    elif math.isfinite(old.measured) and not math.isfinite(new.measured):
        problem = "no number any more"
    elif new.measured > growth * old.measured and new.measured > NOISE * new.tolerance:
        times = f"{new.measured / old.measured:.3g} times" if old.measured else "more than"
        problem = f"{times} the old error"
    return BaselineRow(new.check, new.prompt, old.measured, new.measured, new.tolerance, problem)
