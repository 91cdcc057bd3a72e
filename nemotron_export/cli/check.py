"""`nemotron-export parity` (with torch) and `nemotron-export verify` (without)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemotron_export.cli.console import print_json, print_table, show_progress

if TYPE_CHECKING:
    from nemotron_runtime.parity import ParityReport

__all__ = ["parity", "print_report", "verify"]

_BUNDLE = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `build` made.")]
_WEIGHTS = Annotated[
    Path | None, typer.Option("--weights-dir", help="Where the weight files are now, if they were moved.")
]
_THREADS = Annotated[int | None, typer.Option(min=1, help="CPU threads; the runtime's choice by default.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def verify(bundle: _BUNDLE, weights_dir: _WEIGHTS = None, threads: _THREADS = None, json_output: _JSON = False) -> None:
    """Replay the bundle's stored reference here, without torch. Exit code 1 where the numbers differ."""
    from nemotron_export.verification import verify_bundle

    with show_progress() as progress:
        report = verify_bundle(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    _finish(report, json_output)


def parity(
    bundle: _BUNDLE,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint; by default the folder where the bundle's weights are.")
    ] = None,
    weights_dir: _WEIGHTS = None,
    threads: _THREADS = None,
    json_output: _JSON = False,
) -> None:
    """Run PyTorch and the bundle on the same prompts again and judge. Exit code 1 where the numbers differ."""
    from nemotron_export.parity import check_parity

    with show_progress() as progress:
        report = check_parity(
            bundle, checkpoint=checkpoint, weights_dir=weights_dir, threads=threads, progress=progress
        )
    _finish(report, json_output)


def print_report(report: ParityReport) -> None:
    """The report as a table on stdout."""
    print_table(
        "Parity with eager PyTorch fp32",
        ("check", "prompt", "measured", "tolerance", "result"),
        [(r.check, r.prompt, f"{r.measured:.2e}", f"{r.tolerance:.2e}", r.passed) for r in report.rows],
    )


def _finish(report: ParityReport, json_output: bool) -> None:
    if json_output:
        print_json(report.to_dict())
    else:
        print_report(report)
        typer.echo("\nparity passed" if report.passed else "\nparity FAILED")
    if not report.passed:
        raise typer.Exit(1)
