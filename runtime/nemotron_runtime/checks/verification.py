"""Proves a bundle on this machine, without torch: replays its reference and records the outcome."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError
from nemotron_formats.weights import format_named

from nemotron_runtime.bundle.folder import Bundle, set_parity_state, write_atomically
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.checks import Progress, check
from nemotron_runtime.checks.reference import REFERENCE_FILE, missing_reference_remedy, read_reference
from nemotron_runtime.checks.report import ParityReport
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.open import open_executor

__all__ = ["PARITY_FILE", "check_bundle", "read_report", "record_report", "verify"]

_log = logging.getLogger(__name__)

PARITY_FILE = "parity.json"


def verify(
    bundle: str | Path,
    *,
    weights_dir: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Replays the bundle's reference, whatever its parity state, and records the outcome (:func:`record_report`).

    Returns:
        The report; ask it whether it passed.

    Raises:
        BundleError: a broken bundle, or one built without a reference.
        MissingDependencyError: what its executor needs is not installed.
    """
    report = check_bundle(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    record_report(bundle, report)
    return report


def check_bundle(
    bundle: str | Path,
    *,
    weights_dir: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """:func:`verify` that records nothing."""
    opened = Bundle.open(bundle, weights_dir=weights_dir, allow_unverified=True)
    if REFERENCE_FILE not in opened.manifest.files:
        found, remedy = f"no {REFERENCE_FILE} (built with --no-parity)", missing_reference_remedy(opened.directory)
        raise BundleError(found, "the reference to compare with", remedy, where=str(opened.directory))
    reference = read_reference(opened.file(REFERENCE_FILE))
    quantization = opened.manifest.quantization
    stored = None if quantization is None else format_named(quantization.format, "quantization")
    with Engine(open_executor(opened, threads)) as engine:
        return check(engine, reference, opened.manifest.dtype, weight_format=stored, progress=progress)


def record_report(directory: str | Path, report: ParityReport, document: Mapping[str, Any] | None = None) -> None:
    """Writes parity.json, and the manifest's parity state where the outcome changes it.

    A pass makes any bundle "passed". A failure makes a passed one "pending", so that it is refused from now on; one
    that the user waived stays waived. Where the state stays and no document is given, nothing is written, so the
    bundle may lie on a read-only disk; a document that cannot be written there is a warning.

    Each file is replaced at once, and the manifest says "passed" only while parity.json does: it is written last on a
    pass and first on a failure, so that whatever interrupts this leaves a bundle that is refused, or a verdict that
    stands. Processes that record at once wait for each other (not on Windows, which cannot lock a folder).

    Args:
        directory: the bundle's folder.
        report: the outcome.
        document: what parity.json is to hold; the report alone where None.

    Raises:
        BundleError: a state that changes and cannot be written.
    """
    folder = Path(directory)
    text = json.dumps(dict(document or report.to_dict()), indent=2, ensure_ascii=False) + "\n"
    with _alone(folder):
        state = Manifest.read(folder).parity.state
        if report.passed and state != "passed":
            write_atomically(folder / PARITY_FILE, text)
            set_parity_state(folder, "passed")
        elif not report.passed and state != "waived":
            failed = sum(not row.passed for row in report.rows)
            set_parity_state(folder, "pending", reason=f"{failed} of {len(report.rows)} parity checks failed")
            write_atomically(folder / PARITY_FILE, text)
        elif document is not None:
            try:
                write_atomically(folder / PARITY_FILE, text)
            except BundleError as error:
                _log.warning("the verdict was not recorded: %s", error)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's advisory lock, which leaves no file behind and ends with the process."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_report(directory: str | Path) -> ParityReport | None:
    """The report that parity.json holds; None where there is none.

    Raises:
        BundleError: a broken file.
    """
    path = Path(directory) / PARITY_FILE
    if not path.is_file():
        return None
    try:
        return ParityReport.from_dict(json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        remedy = "run `nemotron-export verify` again"
        raise BundleError(f"a broken file ({error})", "a parity report", remedy, where=str(path)) from error
