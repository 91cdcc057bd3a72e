"""One row of a table of bad inputs, and what its error must say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nemotron_errors import CheckpointError, NemotronError

from nemotron_export.checkpoint import Checkpoint
from support.raw_checkpoints import write_checkpoint

__all__ = ["Case", "check", "parametrize"]


@dataclass(frozen=True)
class Case:
    """What breaks a good checkpoint, and a part of each field of the error that opening it must raise."""

    name: str
    break_it: Callable[[Path], Any]
    where: str
    found: str
    expected: str
    remedy: str
    error: type[NemotronError] = CheckpointError
    task: str = "causal-lm"
    empty: bool = False
    """Start from an empty folder instead of a good checkpoint."""


def parametrize(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Runs a test once per case, under the case's name."""
    rows = [pytest.param(case, id=case.name) for case in cases]
    assert len({row.id for row in rows}) == len(rows)
    return pytest.mark.parametrize("case", rows)


def check(case: Case, folder: Path) -> None:
    """Breaks a checkpoint, opens it and compares the error's parts."""
    folder.mkdir()
    if not case.empty:
        write_checkpoint(folder)
    before_open = case.break_it(folder)
    path = before_open if isinstance(before_open, Path) else folder
    with pytest.raises(NemotronError) as caught:
        Checkpoint.open(path, task=case.task)
    error = caught.value
    assert type(error) is case.error, error
    assert error.where is not None
    told = {"where": error.where, "found": error.found, "expected": error.expected, "remedy": error.remedy}
    for part, text in told.items():
        assert getattr(case, part) in text, f"{part}: {error}"
    # One readable line, whatever the file held.
    assert "\n" not in str(error)
    assert len(str(error)) < 2000
