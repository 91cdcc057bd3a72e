"""What a check found, as rows for a table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ParityReport", "ParityRow"]


@dataclass(frozen=True)
class ParityRow:
    """One check of one prompt.

    Attributes:
        check: what was compared.
        prompt: of which prompt.
        measured: the number; NaN where there was none.
        tolerance: its bound.
        passed: whether it holds.
        note: what else is to be said.
    """

    check: str
    prompt: str
    measured: float
    tolerance: float
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class ParityReport:
    """All checks.

    Attributes:
        rows: the checks.
        dtype: the dtype that the engine computed in.
        logit_range: max - min of the reference's logits; fp32 numbers are shares of it.
    """

    rows: tuple[ParityRow, ...]
    dtype: str
    logit_range: float

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them hold."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For parity.json; a number that is not finite becomes null."""
        rows = [{**asdict(row), "measured": row.measured if math.isfinite(row.measured) else None} for row in self.rows]
        return {"passed": self.passed, "dtype": self.dtype, "logit_range": self.logit_range, "rows": rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ParityReport:
        """Reads what :meth:`to_dict` gives."""
        rows = [{**row, "measured": math.nan if row["measured"] is None else row["measured"]} for row in data["rows"]]
        return cls(tuple(ParityRow(**row) for row in rows), data["dtype"], data["logit_range"])
