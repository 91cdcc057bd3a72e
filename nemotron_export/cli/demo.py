"""`nemotron-export demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemotron_export.cli.console import print_json, print_table, show_progress, size_text

__all__ = ["demo"]


def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Keep the bundle here; a temporary folder by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, for PyTorch and the bundle alike.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Build the embedded checkpoint for the CPU, prove it, generate text, and measure it beside eager PyTorch."""
    from nemotron_export.cli.check import print_report
    from nemotron_export.demo import run_demo

    with show_progress() as progress:
        result = run_demo(output, threads=threads, progress=progress)
    if json_output:
        print_json(result.to_dict())
        return
    typer.echo(
        f"{result.checkpoint}\n{size_text(result.bundle_bytes)} of bundle, built in {result.build_seconds:.1f} s"
    )
    for text in result.texts:
        typer.echo(f"\n[{text.prompt}]{text.completion}")
    typer.echo()
    print_report(result.report)
    typer.echo()
    bench = result.benchmark
    print_table(
        f"Decode, batch 1, behind {bench.prompt_tokens} prompt tokens (median of {bench.rounds} interleaved rounds of "
        f"{bench.new_tokens} tokens)",
        ("what runs", "tok/s", "beside fp32 eager"),
        [(r.name, f"{r.tokens_per_second:.1f}", f"{r.ratio:.2f}x") for r in bench.rows],
    )
    typer.echo(f"\n{bench.machine}\n{bench.versions}\n\nEvery check passed.")
