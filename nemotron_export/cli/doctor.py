"""`nemotron-export doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from nemotron_export.cli.console import print_json, print_table, size_text

__all__ = ["doctor"]


def doctor(json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Say what is installed, which targets work here, and what would make the others work.

    Ends with exit code 3 where something is broken (a missing extra alone is not).
    """
    from nemotron_export.installation.doctor import examine

    report = examine()
    if json_output:
        print_json(asdict(report))
    else:
        machine = report.machine
        print_table(
            "Machine",
            ("what", "found"),
            [
                ("CPU", f"{machine.cpu}, {machine.cores} cores, {machine.instructions or 'instruction set unknown'}"),
                ("memory", f"{size_text(machine.memory_available)} free of {size_text(machine.memory_total)}"),
                ("system", machine.system),
                *(("GPU", gpu) for gpu in machine.gpus or ("none found",)),
            ],
        )
        typer.echo()
        print_table(
            "Packages",
            ("package", "version", "for", "proven"),
            [(p.name, p.version or "not installed", p.extra or "base", p.proven or "") for p in report.packages],
        )
        typer.echo()
        print_table(
            "Targets",
            ("target", "build here", "run here", "what would make it work"),
            [(t.name, "yes" if t.builds else "no", "yes" if t.runs else "no", t.remedy or "") for t in report.targets],
        )
        for problem in report.problems:
            typer.echo(f"\nproblem: {problem}")
    if report.problems:
        raise typer.Exit(3)
