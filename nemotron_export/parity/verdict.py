"""Verifies a bundle without torch, and records verdicts with the machine that they were made on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import write_atomically
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.checks.report import ParityReport
from nemotron_runtime.checks.verification import PARITY_FILE, check_bundle, read_report, record_report

from nemotron_export.installation.versions import environment
from nemotron_export.progress import Progress, silent

__all__ = [
    "amend",
    "bundle_identity",
    "quiet_about_parity",
    "read_report",
    "record",
    "report_document",
    "verify_bundle",
]


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
        report = check_bundle(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    record(Path(bundle), report, threads=threads, judged_by=judged_by)
    return report


@contextmanager
def quiet_about_parity() -> Iterator[None]:
    """Keeps the runtime from warning that a bundle is not proved while it is being proved."""
    logger = logging.getLogger("nemotron_runtime.bundle.folder")
    logger.addFilter(_drop)
    try:
        yield
    finally:
        logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


def report_document(bundle: Path, report: ParityReport, *, threads: int | None, judged_by: str) -> dict[str, Any]:
    """The report, of which bundle, who made it and on what machine: what parity.json holds.

    Raises:
        BundleError: a broken manifest.
    """
    return {
        **report.to_dict(),
        "bundle": bundle_identity(Manifest.read(bundle)),
        "judged_by": judged_by,
        "environment": environment(threads),
    }


def bundle_identity(manifest: Manifest) -> dict[str, str | None]:
    """What two verdicts must agree in to be compared: target, task, dtype and model.

    `config` and `weights` are SHA-256 of the config and of the weight files' headers, `contents` of the weights
    themselves, None where they were not scanned.
    """
    files = manifest.weights.files
    chunks = [file.chunks for file in files]
    return {
        "target": manifest.target,
        "task": manifest.task,
        "dtype": manifest.dtype,
        "config": _digest(manifest.model.config),
        "weights": _digest([[file.name, file.size, file.header_sha256] for file in files]),
        "contents": None if None in chunks else _digest([manifest.weights.chunk_bytes, chunks]),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
        raise BundleError(f"no readable file ({error})", "the verdict", remedy, where=str(path)) from error
    # what identifies the bundle stays, and what describes it is added
    about = {**document.get("bundle", {}), **added.get("bundle", {})}
    document |= {**added, "bundle": about}
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return dict(document)


def record(bundle: Path, report: ParityReport, *, threads: int | None, judged_by: str) -> None:
    """Writes parity.json, and the manifest's parity state where it changes; see :func:`record_report`.

    Raises:
        BundleError: a state that changes and cannot be written.
    """
    record_report(bundle, report, report_document(bundle, report, threads=threads, judged_by=judged_by))
