"""`nemotron-export inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nemotron_export.cli.console import print_json, print_table
from nemotron_export.cli.options import JsonOutput

__all__ = ["inspect"]


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint or a bundle.")],
    passes: Annotated[
        bool, typer.Option("--passes", help="Lower the model and show what each graph pass did.")
    ] = False,
    dump_graphs: Annotated[
        Path | None, typer.Option(help="Keep the graph after each pass in this folder, as .onnx files.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="With --passes: the target; a bundle's own, or ort-cpu, by default.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="With --passes: the run dtype.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Show what a checkpoint or a bundle holds: config, tensors, ops, sizes, limits, parity."""
    if passes or dump_graphs is not None:
        _show_passes(path, target, dtype, dump_graphs, json_output)
        return
    from nemotron_export.inspection.summary import inspect_path

    found = inspect_path(path)
    if json_output:
        print_json(found)
        return
    for index, (title, content) in enumerate(found.items()):
        if index:
            typer.echo()
        print_table(title, ("what", "value"), _rows(content))


def _show_passes(
    path: Path, target: str | None, dtype: str | None, dump_graphs: Path | None, json_output: bool
) -> None:
    from nemotron_export.inspection.passes import inspect_passes

    lowered = inspect_passes(path, target=target, dtype=dtype, dump_graphs=dump_graphs)
    if json_output:
        print_json([{"graph": name, **asdict(r)} for name, graph in lowered.graphs.items() for r in graph.passes])
        return
    columns = ("", "pass", "nodes", "inputs", "initializers", "more of", "fewer of")
    for graph in lowered.graphs.values():
        rows = [
            (
                number,
                r.name,
                *map(_change, (r.nodes, r.inputs, r.initializers)),
                _ops(r.added, "+"),
                _ops(r.removed, "-"),
            )
            for number, r in enumerate(graph.passes, start=1)
        ]
        if rows:
            print_table(f"{len(rows)} passes: the dialect graph to {graph.file}", columns, rows)


def _change(pair: tuple[int, int]) -> str:
    before, after = pair
    return str(after) if before == after else f"{before} > {after}"


def _ops(counts: dict[str, int], sign: str) -> str:
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{sign}{count} {op}" for op, count in most_first) or "-"


def _rows(content: Any) -> list[tuple[str, str]]:
    if not isinstance(content, dict):
        return [("", _text(content))]
    return [(key, _text(value)) for key, value in content.items()]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)
