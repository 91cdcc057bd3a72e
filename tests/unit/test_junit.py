"""JUnit XML: one test case for each check, with numbers, notes and the machine; valid whatever the names hold."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from nemotron_errors import BundleError
from nemotron_runtime.checks.report import ParityReport, ParityRow
from support.bundles import TinyModel, make_bundle, make_reference
from typer.testing import CliRunner

from nemotron_export.cli.app import app
from nemotron_export.parity.baseline import compare_with_baseline
from nemotron_export.parity.junit import junit_xml, write_junit

ROWS = (
    ParityRow("prefill", "5 tokens", 2e-7, 1e-4, True),
    ParityRow("greedy, 64 tokens differing", "5 tokens", 3.0, 0.0, False, "token 4 is 7, not <9> & \x00 (margin 0.1)"),
    ParityRow("prefill", "16 tokens", math.nan, 1e-4, False, "NaN or infinity among the outputs"),
)
REPORT = ParityReport(ROWS, "float32", 12.5)
DOCUMENT = {
    "dtype": "float32", "logit_range": 12.5, "judged_by": "verify", "bundle": {"target": "ort-cpu", "contents": None},
    "environment": {"cpu": "a processor", "versions": {"onnxruntime": "1.32.0"}},
}  # fmt: skip


def test_one_case_for_each_check() -> None:
    root = ElementTree.fromstring(junit_xml(REPORT, DOCUMENT, "mini.bundle"))
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "3", "2")
    (suite,) = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("parity of mini.bundle", "3", "2")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [
        "prefill [5 tokens]", "greedy, 64 tokens differing [5 tokens]", "prefill [16 tokens]",
    ]  # fmt: skip
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == 3
    assert cases[0].find("failure") is None
    assert cases[0].findtext("system-out") == "measured 2e-07, tolerance 0.0001"
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "measured 3, tolerance 0"
    assert "not <9> & \ufffd (margin 0.1)" in str(failure.text)
    assert cases[2].find("failure").get("message") == "measured nan, tolerance 0.0001"  # type: ignore[union-attr]


def test_machine_and_bundle_are_properties() -> None:
    root = ElementTree.fromstring(junit_xml(REPORT, DOCUMENT, "mini.bundle"))
    found = {item.get("name"): item.get("value") for item in root.iter("property")}
    assert found == {
        "bundle.target": "ort-cpu", "judged_by": "verify", "environment.cpu": "a processor",
        "environment.versions.onnxruntime": "1.32.0", "dtype": "float32", "logit_range": "12.5",
    }  # fmt: skip


def test_a_baseline_is_a_suite_of_its_own() -> None:
    baseline = compare_with_baseline(ParityReport((ROWS[0], ROWS[0]), "float32", 1.0), REPORT)
    root = ElementTree.fromstring(junit_xml(REPORT, DOCUMENT, "mini.bundle", baseline))
    assert (root.get("tests"), root.get("failures")) == ("7", "3")
    held = root[1]
    assert (held.get("name"), held.get("failures")) == ("mini.bundle against its baseline", "1")
    assert [item.get("message") for item in held.iter("failure")] == ["no longer checked"]


def test_the_command_writes_it_whether_it_passes_or_not(tmp_path: Path) -> None:
    good = make_bundle(tmp_path / "good")
    bad = make_bundle(tmp_path / "bad", reference=make_reference(TinyModel(seed=1, positions=256)))
    for bundle, code in ((good, 0), (bad, 1)):
        target = tmp_path / "reports" / bundle.parent.name / "verify.xml"
        result = CliRunner().invoke(app, ["verify", str(bundle), "--junit", str(target), "--threads", "1"])
        assert result.exit_code == code, result.output
        root = ElementTree.parse(target).getroot()
        assert int(root.get("tests", "0")) > 3
        assert (int(root.get("failures", "0")) > 0) == bool(code)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="another place for --junit"):
        write_junit(tmp_path / "file" / "parity.xml", REPORT, DOCUMENT, "mini.bundle")
