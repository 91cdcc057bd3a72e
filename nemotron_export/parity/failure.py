"""The error of a bundle whose numbers left the reference."""

from __future__ import annotations

import math

from nemotron_errors import ParityError
from nemotron_runtime.checks.report import ParityReport, ParityRow

__all__ = ["ParityFailedError"]


class ParityFailedError(ParityError):
    """Numbers past the tolerance; `report` holds every check."""

    def __init__(self, report: ParityReport, where: str) -> None:
        self.report = report
        failed = [row for row in report.rows if not row.passed]
        worst = max(failed, key=_badness)
        super().__init__(
            f"{len(failed)} of {len(report.rows)} checks failed, the worst '{worst.check}' with {worst.measured:.3g}",
            f"at most {worst.tolerance:.3g} there",
            "report this with the table; --keep-failed keeps the bundle for a closer look",
            where=where,
        )


def _badness(row: ParityRow) -> float:
    if math.isnan(row.measured):
        return math.inf
    return row.measured / row.tolerance if row.tolerance else row.measured
