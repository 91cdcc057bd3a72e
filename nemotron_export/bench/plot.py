"""Decode speed against context length, drawn by matplotlib (the extra `report`)."""

from __future__ import annotations

from pathlib import Path

from nemotron_errors import RequestError

from nemotron_export.bench.results import BenchResult
from nemotron_export.installation.extras import require

__all__ = ["check_plot", "draw"]

_FORMATS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Finds out before anything is measured whether :func:`draw` could write there.

    Raises:
        RequestError: another ending than .png or .svg, or no such folder.
        MissingDependencyError: no matplotlib.
    """
    if path.suffix.lower() not in _FORMATS:
        raise RequestError(repr(path.name), "a name that ends in .png or .svg", "choose one of them", where="--plot")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"no folder {path.parent}", "an existing folder", "make it first", where="--plot")
    require("matplotlib", "which draws the plot")


def draw(result: BenchResult, path: Path) -> None:
    """Writes the plot: medians as lines, minimum and maximum over the rounds as bars.

    Raises:
        MissingDependencyError: no matplotlib.
    """
    require("matplotlib", "which draws the plot")
    import matplotlib
    from matplotlib.figure import Figure

    machine = result.machine
    # ids that do not change from run to run, and text that stays text
    with matplotlib.rc_context({"svg.hashsalt": "nemotron-export", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        for backend in result.backends:
            speeds = [m.decode_tokens_per_second for m in backend.measurements]
            medians = [s.median for s in speeds]
            below = [s.median - s.minimum for s in speeds]
            above = [s.maximum - s.median for s in speeds]
            axes.errorbar(
                result.contexts, medians, yerr=(below, above), marker="o", markersize=4, capsize=3,
                linestyle="-" if backend.kind == "bundle" else "--", label=backend.name,
            )  # fmt: skip
        axes.set_xticks(result.contexts)
        axes.set_xlabel("prompt tokens in the KV cache")
        axes.set_ylabel(f"decode, tokens per second, batch {result.batch}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.set_title(f"{machine['cpu']}, {machine['threads']} threads", fontsize="medium")
        axes.legend(fontsize="small")
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
