"""`nemotron-export parity` (with torch) and `nemotron-export verify` (without)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemotron_export.cli.console import print_json, print_table, show_progress
from nemotron_export.cli.loading import BundleArgument, JsonOutput, Threads, WeightsDir

if TYPE_CHECKING:
    from nemotron_runtime.report import ParityReport

__all__ = ["parity", "print_report", "verify"]


def verify(
    bundle: BundleArgument, weights_dir: WeightsDir = None, threads: Threads = None, json_output: JsonOutput = False
) -> None:
    """Replay the bundle's stored reference here, without torch. Exit code 1 where the numbers differ."""
    from nemotron_export.verification import verify_bundle

    with show_progress() as progress:
        report = verify_bundle(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    _finish(report, json_output, threads, "verify")


def parity(
    bundle: BundleArgument,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint; by default the folder where the bundle's weights are.")
    ] = None,
    weights_dir: WeightsDir = None,
    threads: Threads = None,
    json_output: JsonOutput = False,
) -> None:
    """Run PyTorch and the bundle on the same prompts again and judge. Exit code 1 where the numbers differ."""
    from nemotron_export.parity import check_parity

    with show_progress() as progress:
        report = check_parity(
            bundle, checkpoint=checkpoint, weights_dir=weights_dir, threads=threads, progress=progress
        )
    _finish(report, json_output, threads, "parity")


def print_report(report: ParityReport) -> None:
    """The report as a table on stdout."""
    noted = any(row.note for row in report.rows)
    columns = ("check", "prompt", "measured", "tolerance", "result", *(("note",) if noted else ()))
    print_table(
        f"Parity of the {report.dtype} bundle with eager PyTorch fp32",
        columns,
        [
            (r.check, r.prompt, _number(r.measured), _number(r.tolerance), r.passed, *((r.note,) if noted else ()))
            for r in report.rows
        ],
    )


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return str(int(value)) if value == int(value) else f"{value:.2e}" if value < 0.01 else f"{value:.4f}"


def _finish(report: ParityReport, json_output: bool, threads: int | None, judged_by: str) -> None:
    if json_output:
        from nemotron_export.verification import report_document

        print_json(report_document(report, threads=threads, judged_by=judged_by))
    else:
        print_report(report)
        typer.echo("\nparity passed" if report.passed else "\nparity FAILED")
    if not report.passed:
        raise typer.Exit(1)
