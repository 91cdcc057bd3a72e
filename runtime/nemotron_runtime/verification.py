"""Proves a bundle on this machine, without torch: replays its reference and records the outcome."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_errors import BundleError

from nemotron_runtime.bundle import Bundle, set_parity_state, write_atomically
from nemotron_runtime.manifest import Manifest
from nemotron_runtime.parity import Progress, judge
from nemotron_runtime.reference import REFERENCE_FILE, missing_reference_remedy, read_reference
from nemotron_runtime.report import ParityReport
from nemotron_runtime.sessions.open import open_session

__all__ = ["PARITY_FILE", "read_report", "record_report", "verify"]

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
        MissingDependencyError: what the session needs is not installed.
    """
    opened = Bundle.open(bundle, weights_dir=weights_dir, allow_unverified=True)
    if REFERENCE_FILE not in opened.manifest.files:
        found, remedy = f"no {REFERENCE_FILE} (built with --no-parity)", missing_reference_remedy(opened.directory)
        raise BundleError(found, "the reference to judge by", remedy, where=str(opened.directory))
    reference = read_reference(opened.file(REFERENCE_FILE))
    with open_session(opened, threads) as session:
        report = judge(session, reference, opened.manifest.dtype, progress=progress)
    record_report(opened.directory, report)
    return report


def record_report(directory: str | Path, report: ParityReport) -> None:
    """Writes parity.json and the manifest's parity state where the outcome changes the state.

    A pass makes any bundle "passed". A failure makes a passed one "pending", so that it is refused from now on; one
    that the user waived stays waived. A bundle whose state stays is not written to, so it may lie on a read-only disk.
    """
    folder = Path(directory)
    state = Manifest.read(folder).parity.state
    failed = sum(not row.passed for row in report.rows)
    if report.passed and state == "passed":
        return
    if not report.passed and state == "waived":
        return
    write_atomically(folder / PARITY_FILE, json.dumps(report.to_dict(), indent=2) + "\n")
    if report.passed:
        set_parity_state(folder, "passed")
    else:
        set_parity_state(folder, "pending", reason=f"{failed} of {len(report.rows)} parity checks failed")


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
