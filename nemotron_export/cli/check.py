"""`nemotron-export parity` (with torch) and `nemotron-export verify` (without)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from nemotron_errors import RequestError

from nemotron_export.cli.console import print_json, print_table, show_progress
from nemotron_export.cli.options import BundleArgument, JsonOutput, Reference, ReferenceSteps, Threads, WeightsDir

if TYPE_CHECKING:
    from nemotron_runtime.checks.report import ParityReport

    from nemotron_export.parity.baseline import BaselineRow
    from nemotron_export.parity.bisect import Bisection

__all__ = ["parity", "print_bisection", "print_report", "verify"]

JunitFile = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML: a test case for each check.")]
BaselineFile = Annotated[
    Path | None,
    typer.Option("--baseline", help="An older parity.json; exit code 1 where a check got worse, though it may pass."),
]
BaselineFactor = Annotated[
    float, typer.Option(min=1, help="How many times the baseline's error is still good, above 1 % of the tolerance.")
]


def verify(
    bundle: BundleArgument,
    weights_dir: WeightsDir = None,
    threads: Threads = None,
    junit: JunitFile = None,
    baseline: BaselineFile = None,
    baseline_factor: BaselineFactor = 2.0,
    json_output: JsonOutput = False,
) -> None:
    """Replay the bundle's stored reference here, without torch. Exit code 1 where the numbers differ."""
    from nemotron_export.parity.verdict import report_document, verify_bundle

    held = _read_baseline(bundle, baseline)
    with show_progress() as progress:
        report = verify_bundle(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    document = report_document(bundle, report, threads=threads, judged_by="verify")
    _finish(bundle, report, document, json_output, None, junit, held, baseline_factor)


def parity(
    bundle: BundleArgument,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint; by default the folder where the bundle's weights are.")
    ] = None,
    weights_dir: WeightsDir = None,
    threads: Threads = None,
    reference: Reference = "auto",
    reference_steps: ReferenceSteps = None,
    reference_device: Annotated[
        str | None,
        typer.Option(
            help="Where PyTorch computes the reference: cpu, cuda or auto; auto for a TensorRT bundle, else cpu."
        ),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first layer and op that leave PyTorch, with their errors.")
    ] = False,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write a self-contained HTML page with plots; bisects too.")
    ] = None,
    junit: JunitFile = None,
    baseline: BaselineFile = None,
    baseline_factor: BaselineFactor = 2.0,
    json_output: JsonOutput = False,
) -> None:
    """Run PyTorch and the bundle on the same prompts again and compare. Exit code 1 where the numbers differ."""
    from nemotron_export.parity.check import check_parity
    from nemotron_export.parity.verdict import amend, report_document

    if report_file is not None and not report_file.absolute().parent.is_dir():
        raise RequestError(
            f"no folder {report_file.absolute().parent}", "a folder that exists", "make it first", where="--report"
        )
    held = _read_baseline(bundle, baseline)
    examination = None
    with show_progress() as progress:
        report = check_parity(
            bundle, checkpoint=checkpoint, weights_dir=weights_dir, threads=threads, reference=reference,
            reference_steps=reference_steps, reference_device=reference_device, progress=progress,
        )  # fmt: skip
        document = report_document(bundle, report, threads=threads, judged_by="parity")
        if bisect or report_file is not None:
            from nemotron_export.parity.examine import examine

            examination = examine(
                bundle, drift=report_file is not None, checkpoint=checkpoint, weights_dir=weights_dir,
                threads=threads, progress=progress,
            )  # fmt: skip
            document = amend(bundle, examination.to_dict())
        if report_file is not None:
            from nemotron_export.parity.report import write_html

            write_html(document, report_file)
    bisection = None if examination is None else examination.bisection
    _finish(bundle, report, document, json_output, bisection, junit, held, baseline_factor)


def print_report(report: ParityReport) -> None:
    """The report as a table on stdout."""
    _print_checks(
        f"Parity of the {report.dtype} bundle with eager PyTorch fp32",
        ("check", "prompt", "measured", "tolerance", "result", "note"),
        [(r.check, r.prompt, _number(r.measured), _number(r.tolerance), r.passed, r.note) for r in report.rows],
    )


def _print_checks(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; its last column, of remarks, is left out where there are none."""
    most = len(columns) if any(row[-1] for row in rows) else -1
    print_table(title, columns[:most], [row[:most] for row in rows])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return str(int(value)) if value == int(value) else f"{value:.2e}" if value < 0.01 else f"{value:.4f}"


def print_bisection(found: Bisection) -> None:
    """Where the bundle leaves PyTorch, and the values around it, as a table on stdout."""
    typer.echo()
    if found.first is None:
        typer.echo(
            f"Bisection, {found.tokens} tokens: no value leaves PyTorch; the largest error of {len(found.layers)} "
            f"values is {found.before:.2e} of its range"
        )
        return
    first = found.first
    rows = [
        (error.stage, error.point, error.computed_by, _number(error.error), _number(error.tolerance), error.passed)
        for error in (found.inside or found.layers)
    ]
    columns = ("stage", "value", "computed by", "error", "tolerance", "result")
    print_table(f"Bisection, {found.tokens} tokens: the values of the first layer that leaves PyTorch", columns, rows)
    module = first.point.partition(": ")[0]
    typer.echo(
        f"\nFirst to leave: {' / '.join(found.ops)} of {module}, computed by {first.computed_by}, in {first.stage}\n"
        f"error before it {_number(found.before)}, after it {_number(first.error)} (shares of the value's range)"
    )


def _read_baseline(bundle: Path, path: Path | None) -> ParityReport | None:
    """Read before the check, which replaces the bundle's own parity.json."""
    if path is None:
        return None
    from nemotron_runtime.bundle.manifest import Manifest

    from nemotron_export.parity.baseline import read_baseline
    from nemotron_export.parity.verdict import bundle_identity

    return read_baseline(path, bundle_identity(Manifest.read(bundle)))


def _print_baseline(rows: Sequence[BaselineRow]) -> None:
    typer.echo()
    _print_checks(
        "Against the baseline",
        ("check", "prompt", "old", "new", "tolerance", "result", "what got worse"),
        [(r.check, r.prompt, _number(r.old), _number(r.new), _number(r.tolerance), r.passed, r.problem) for r in rows],
    )


def _finish(
    bundle: Path,
    report: ParityReport,
    document: dict[str, Any],
    json_output: bool,
    bisection: Bisection | None,
    junit: Path | None,
    held: ParityReport | None,
    factor: float,
) -> None:
    baseline: tuple[BaselineRow, ...] = ()
    if held is not None:
        from nemotron_export.parity.baseline import compare_with_baseline

        baseline = compare_with_baseline(held, report, factor)
    worse = sum(not row.passed for row in baseline)
    if junit is not None:
        from nemotron_export.parity.junit import write_junit

        write_junit(junit, report, document, bundle.resolve().name, baseline)
    if json_output:
        print_json({**document, "baseline": [row.to_dict() for row in baseline]} if baseline else document)
    else:
        print_report(report)
        if bisection is not None:
            print_bisection(bisection)
        if baseline:
            _print_baseline(baseline)
        typer.echo("\nparity passed" if report.passed else "\nparity FAILED")
        if worse:
            typer.echo(f"{worse} of {len(baseline)} checks got worse than the baseline")
    if worse or not report.passed:
        raise typer.Exit(1)
