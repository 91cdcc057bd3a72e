"""A verdict as JUnit XML, which continuous integration shows: one test case for each check."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import write_atomically
from nemotron_runtime.checks.report import ParityReport, ParityRow

from nemotron_export.parity.baseline import BaselineRow

__all__ = ["junit_xml", "write_junit"]

# what XML 1.0 cannot hold, not even escaped
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(
    path: str | Path, report: ParityReport, document: Mapping[str, Any], name: str, baseline: Sequence[BaselineRow] = ()
) -> None:
    """Writes :func:`junit_xml` to a file; its folder is made.

    Raises:
        BundleError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose another place for --junit"
        raise BundleError(str(error.strerror or error), "a folder to write to", remedy, where=str(target)) from error
    write_atomically(target, junit_xml(report, document, name, baseline))


def junit_xml(
    report: ParityReport, document: Mapping[str, Any], name: str, baseline: Sequence[BaselineRow] = ()
) -> str:
    """One suite for the checks, and one for the comparison with a baseline where there is one.

    Args:
        report: the checks.
        document: what parity.json holds of it; machine, versions and bundle become properties.
        name: the bundle's.
        baseline: what :func:`nemotron_export.parity.baseline.compare_with_baseline` gave.
    """
    suites = ElementTree.Element("testsuites", {"name": "nemotron-export"})
    suite = _suite(suites, f"parity of {name}", [row.passed for row in report.rows])
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _flat(document, ("bundle", "judged_by", "environment", "dtype", "logit_range")):
        ElementTree.SubElement(properties, "property", {"name": _text(key), "value": _text(value)})
    for row in report.rows:
        failure = None if row.passed else _numbers(row)
        _case(suite, "parity", row.check, row.prompt, failure, f"{_numbers(row)}\n{row.note}".strip())
    if baseline:
        suite = _suite(suites, f"{name} against its baseline", [row.passed for row in baseline])
        for held in baseline:
            numbers = f"old {held.old}, new {held.new}, tolerance {held.tolerance:g}"
            _case(suite, "baseline", held.check, held.prompt, held.problem or None, numbers)
    for counted in ("tests", "failures"):
        suites.set(counted, str(sum(int(suite.get(counted, "0")) for suite in suites)))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _suite(parent: ElementTree.Element, name: str, passed: Sequence[bool]) -> ElementTree.Element:
    counts = {"tests": str(len(passed)), "failures": str(passed.count(False)), "errors": "0", "skipped": "0"}
    return ElementTree.SubElement(parent, "testsuite", {"name": _text(name), **counts})


def _case(suite: ElementTree.Element, kind: str, check: str, prompt: str, failure: str | None, details: str) -> None:
    classname = f"{kind}.{suite.get('name')}".replace("/", "_")
    case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": _text(f"{check} [{prompt}]")})
    if failure is None:
        ElementTree.SubElement(case, "system-out").text = _text(details)
    else:
        ElementTree.SubElement(case, "failure", {"message": _text(failure), "type": kind}).text = _text(details)


def _numbers(row: ParityRow) -> str:
    return f"measured {row.measured:g}, tolerance {row.tolerance:g}"


def _flat(document: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Chosen entries, those of objects by dotted names."""
    pairs: list[tuple[str, str]] = []
    for name in names:
        value = document.get(name)
        if isinstance(value, Mapping):
            pairs += [(f"{name}.{key}", inner) for key, inner in _flat(value, list(value))]
        elif value is not None:
            pairs.append((name, str(value)))
    return pairs


def _text(value: str) -> str:
    return _NOT_XML.sub("\ufffd", value)
