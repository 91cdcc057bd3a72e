"""Verifies a bundle without torch, and records judgements together with the machine that made them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError
from nemotron_runtime.bundle import write_atomically
from nemotron_runtime.report import ParityReport
from nemotron_runtime.verification import PARITY_FILE, read_report, record_report, verify

from nemotron_export.environment import environment
from nemotron_export.progress import Progress, silent

__all__ = ["amend", "quiet_about_parity", "read_report", "record", "report_document", "verify_bundle"]

_log = logging.getLogger(__name__)


def verify_bundle(
    bundle: str | Path,
    *,
    weights_dir: str | Path | None = None,
    threads: int | None = None,
    judged_by: str = "verify",
    progress: Progress = silent,
) -> ParityReport:
    """Replays the bundle's reference on this machine and records the outcome.

    Args:
        bundle: the bundle's folder, whatever its parity state.
        weights_dir: where the weights are, if they were moved.
        threads: CPU threads of the session.
        judged_by: the command, for parity.json.
        progress: told (stage, done, total).

    Raises:
        BundleError: a broken bundle, or one without a reference.
        MissingDependencyError: what its session needs is not installed.
    """
    with quiet_about_parity():
        report = verify(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    record(Path(bundle), report, threads=threads, judged_by=judged_by)
    return report


@contextmanager
def quiet_about_parity() -> Iterator[None]:
    """Keeps the runtime from warning that a bundle is not proved while it is being proved."""
    logger = logging.getLogger("nemotron_runtime.bundle")
    logger.addFilter(_drop)
    try:
        yield
    finally:
        logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


def report_document(report: ParityReport, *, threads: int | None, judged_by: str) -> dict[str, Any]:
    """The report, who made it and on what machine: what parity.json holds."""
    return {**report.to_dict(), "judged_by": judged_by, "environment": environment(threads)}


def amend(bundle: Path, added: dict[str, Any]) -> dict[str, Any]:
    """Adds keys to parity.json and returns the whole document.

    Raises:
        BundleError: a broken or unwritable file.
    """
    path = bundle / PARITY_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "run `nemotron-export parity` again"
        raise BundleError(f"no readable file ({error})", "the judgement", remedy, where=str(path)) from error
    document |= added
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return dict(document)


def record(bundle: Path, report: ParityReport, *, threads: int | None, judged_by: str) -> None:
    """Writes parity.json, and the manifest's parity state where it changes.

    A bundle on a read-only disk that passes again is left as it is, with a warning.

    Raises:
        BundleError: a state that changes and cannot be written.
    """
    record_report(bundle, report)
    document = report_document(report, threads=threads, judged_by=judged_by)
    try:
        write_atomically(bundle / PARITY_FILE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except BundleError as error:
        _log.warning("the judgement was not recorded: %s", error)
