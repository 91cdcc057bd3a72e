"""What the commands write: JSON or tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nemotron_errors import NemotronError

from nemotron_export.progress import Progress, silent

__all__ = ["print_error", "print_json", "print_table", "show_progress", "size_text"]


def print_json(document: Any) -> None:
    """One JSON document, alone on stdout."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    # piped output is not cut to an assumed terminal of 80 columns
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)
    # not as the table's own title, which is wrapped to the table's width
    console.print(Text(title, style="bold"))
    console.print(table)


def _cell(value: object) -> Any:
    from rich.text import Text

    if isinstance(value, bool):
        return Text("ok", style="green") if value else Text("FAILED", style="bold red")
    return Text(str(value))


def print_error(error: NemotronError) -> None:
    """The error's three parts on stderr."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    text.append("error", style="bold red")
    if error.where:
        text.append(f"  {error.where}")
    for label, part in (("found", error.found), ("expected", error.expected), ("remedy", error.remedy)):
        text.append(f"\n  {label:<9}", style="bold")
        text.append(part)
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yields what takes (stage, done, total); draws on stderr where that is a terminal, else does nothing."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich import progress as rich_progress
    from rich.console import Console

    bar = rich_progress.Progress(
        rich_progress.SpinnerColumn(finished_text="✓"),
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, rich_progress.TaskID] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bar.update(task, total=1, completed=1)
            tasks[stage] = bar.add_task(stage, total=None)
        bar.update(tasks[stage], completed=done, total=total or None)

    with bar:
        yield update


def size_text(count: int) -> str:
    """Bytes as people read them: `8.4 GB` (decimal)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
