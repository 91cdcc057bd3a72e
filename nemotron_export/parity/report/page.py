"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from nemotron_errors import RequestError
from nemotron_runtime.bundle.folder import write_atomically

from nemotron_export.parity.report import chart, words
from nemotron_export.parity.report.drift_plots import layer_plot, position_plot
from nemotron_export.parity.report.numbers import number, within
from nemotron_export.parity.report.output_plots import difference_plot, margin_plot, scatter_plot

__all__ = ["render_html", "write_html"]

_FOLDER = Path(__file__).parent
_MOST_FLIPS = 12
_PLOTS = (position_plot, layer_plot, scatter_plot, difference_plot, margin_plot)


def write_html(document: dict[str, Any], path: str | Path) -> None:
    """Writes :func:`render_html` into a file, whole or not at all.

    Raises:
        RequestError: no parity document.
        BundleError: a folder that cannot be written to.
    """
    write_atomically(Path(path), render_html(document))


def render_html(document: dict[str, Any]) -> str:
    """A page for people of what parity.json holds (schema.json; docs/parity-report.md says what it means).

    Everything in the document is escaped, names and tokens of unknown origin included.

    Raises:
        RequestError: a document that is none.
    """
    try:
        plots = [plot for make in _PLOTS if (plot := make(document)) is not None]
        bundle = document.get("bundle", {})
        values = {
            "name": str(bundle.get("name") or f"a {document['dtype']} bundle"),
            "verdict": words.verdict(document),
            "headline": words.headline(document),
            "facts": words.facts(document),
            "tiles": words.tiles(document),
            "plots": plots,
            "flips": words.flips(document),
            "checks": words.checks(document),
            "bisection": _bisection(document),
            "bundle": bundle,
            "definitions": words.definitions(document),
            "environment": document.get("environment", {}),
            "judged_by": document.get("judged_by", ""),
        }
        return _template().render(values)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, jinja2.UndefinedError) as error:
        found = f"a document that does not fit ({type(error).__name__}: {error})"
        remedy = "run `nemotron-export parity` again, which writes parity.json anew"
        raise RequestError(found, "what parity.json holds", remedy, where="the parity report") from error


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printable,
    )  # fmt: skip
    environment.filters |= {"number": number, "quoted": repr}
    environment.tests["dashed"] = lambda style: "own" in style.split()
    style = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    environment.globals |= {"style": style, "frame": chart, "most_flips": _MOST_FLIPS}
    return environment.get_template("page.html.j2")


def _printable(value: Any) -> Any:
    """Control and direction characters in names are shown as escapes, and have no effect."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in value)


def _bisection(document: dict[str, Any]) -> dict[str, Any] | None:
    found = document.get("bisection")
    if found is None:
        return None
    first = found["first"]
    layer = ""
    if first is not None and first["layer"] is not None:
        before, part, _ = first["point"].partition(f"layers.{first['layer']}")
        layer = before + part
    points = [
        {
            **point,
            "module": point["point"].partition(": ")[0].removeprefix(layer).lstrip("."),
            "op": point["point"].partition(": ")[2],
            "within": within(point),
            "meter": words.meter(float("inf") if point["error"] is None else point["error"] / point["tolerance"]),
        }
        for point in found["inside"]
    ]
    return {
        **found,
        "points": points,
        "module": "" if first is None else first["point"].partition(": ")[0],
        "layer": layer,
        "stages": list(dict.fromkeys(point["stage"] for point in found["layers"])),
    }
