"""A baseline finds what got worse though it passes, tells noise from growth, and is refused for another bundle."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
from nemotron_errors import BundleError, RequestError
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.checks.report import ParityReport, ParityRow
from support.bundles import make_bundle
from typer.testing import CliRunner

from nemotron_export.cli import check
from nemotron_export.cli.app import app
from nemotron_export.parity.baseline import GROWTH, NOISE, compare_with_baseline, read_baseline
from nemotron_export.parity.verdict import bundle_identity, verify_bundle

OLD = 1e-5


def _report(*rows: ParityRow) -> ParityReport:
    return ParityReport(rows, "float32", 1.0)


def _row(measured: float = OLD, passed: bool = True, tolerance: float = 1e-4, check: str = "prefill") -> ParityRow:
    return ParityRow(check, "5 tokens", measured, tolerance, passed)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (_row(), _row(), ""),
        (_row(), _row(GROWTH * OLD), ""),
        (_row(), _row(2.01 * OLD), "2.01 times"),
        (_row(1e-8), _row(9e-7), ""),  # 90 times, and below 1 % of the tolerance
        (_row(1e-8), _row(1.1e-6), "110 times"),
        (_row(0.0), _row(2e-6), "more than"),
        (_row(), _row(2e-4, False), "fails now"),
        (_row(2e-4, False), _row(), ""),
        (_row(2e-4, False), _row(3e-4, False), ""),
        (_row(2e-4, False), _row(5e-4, False), "2.5 times"),
        (_row(), _row(math.nan, False), "fails now"),
        (_row(2e-4, False), _row(math.nan, False), "no number"),
        (_row(math.nan, False), _row(math.nan, False), ""),
        (_row(0.0, tolerance=0.0), _row(0.0, tolerance=0.0), ""),
        (_row(0.0, tolerance=0.0), _row(1.0, False, 0.0), "fails now"),
        (_row(), _row(tolerance=1e-3), "tolerance was 0.0001"),
        (_row(), _row(tolerance=1e-5), ""),
    ],
)
def test_what_counts_as_worse(old: ParityRow, new: ParityRow, problem: str) -> None:
    (row,) = compare_with_baseline(_report(old), _report(new))
    assert row.passed == (not problem)
    assert problem in row.problem
    assert json.loads(json.dumps(row.to_dict(), allow_nan=False))["passed"] == row.passed


def test_checks_that_went_and_came() -> None:
    old = _report(_row(check="gone"), _row(check="kept"), _row(check="kept"))
    new = _report(_row(check="kept"), _row(3 * OLD, check="kept"), _row(check="came"))
    rows = compare_with_baseline(old, new)
    assert [(r.check, r.problem) for r in rows] == [
        ("gone", "no longer checked"), ("kept", ""), ("kept", "3 times the old error"), ("came", ""),
    ]  # fmt: skip
    assert rows[0].new is None
    assert rows[3].old is None


def test_the_factor() -> None:
    old, new = _report(_row()), _report(_row(3 * OLD))
    assert not compare_with_baseline(old, new)[0].passed
    assert compare_with_baseline(old, new, 3.0)[0].passed
    for factor in (0.5, math.nan, math.inf):
        with pytest.raises(RequestError, match="--baseline-factor"):
            compare_with_baseline(old, new, factor)
    assert NOISE == 0.01
    # what the command's help says
    for command in (check.verify, check.parity):
        assert inspect.signature(command).parameters["baseline_factor"].default == GROWTH


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = make_bundle(tmp_path)
    assert verify_bundle(path, threads=1).passed
    return path


def _edited(bundle: Path, to: Path, edit) -> Path:  # type: ignore[no-untyped-def]
    document = json.loads((bundle / "parity.json").read_text())
    edit(document)
    to.write_text(json.dumps(document))
    return to


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("target", "onnx", "found target onnx; expected target ort-cpu"),
        ("dtype", "bfloat16", "found dtype bfloat16; expected dtype float32"),
        ("task", "feature-extraction", "found task feature-extraction"),
        ("config", "0" * 64, "found another model config"),
        ("weights", "0" * 64, "found another set of weight files"),
        ("contents", "0" * 64, "found another weights"),
    ],
)
def test_the_baseline_of_another_bundle_is_refused(
    bundle: Path, tmp_path: Path, key: str, value: str, match: str
) -> None:
    path = _edited(bundle, tmp_path / "old.json", lambda document: document["bundle"].update({key: value}))
    with pytest.raises(BundleError, match=match) as caught:
        read_baseline(path, bundle_identity(Manifest.read(bundle)))
    assert "start a new one" in caught.value.remedy
    result = CliRunner().invoke(app, ["verify", str(bundle), "--baseline", str(path)])
    assert result.exit_code == 2


def test_weights_that_were_not_scanned_cannot_tell(bundle: Path, tmp_path: Path) -> None:
    path = _edited(bundle, tmp_path / "old.json", lambda document: document["bundle"].update(contents=None))
    assert read_baseline(path, bundle_identity(Manifest.read(bundle))).passed


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"rows": 3}', "\x00"])
def test_a_broken_baseline_is_refused(bundle: Path, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleError, match=r"keep the parity\.json"):
        read_baseline(path, bundle_identity(Manifest.read(bundle)))


def test_a_verdict_that_names_no_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = _edited(bundle, tmp_path / "old.json", lambda document: document.pop("bundle"))
    with pytest.raises(BundleError, match="no 'bundle' in it; expected a verdict that names its bundle"):
        read_baseline(path, bundle_identity(Manifest.read(bundle)))


def test_the_command_holds_a_bundle_against_its_own_last_judgement(bundle: Path) -> None:
    result = CliRunner().invoke(
        app, ["verify", str(bundle), "--baseline", str(bundle / "parity.json"), "--threads", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "Against the baseline" in result.stdout
    assert "parity passed" in result.stdout


def test_the_command_fails_where_a_passing_check_grew(bundle: Path, tmp_path: Path) -> None:
    def smaller(document) -> None:  # type: ignore[no-untyped-def]
        for row in document["rows"]:
            row["measured"] = row["measured"] / 1000
            row["tolerance"] = row["tolerance"] / 1000

    path = _edited(bundle, tmp_path / "old.json", smaller)
    arguments = ["verify", str(bundle), "--baseline", str(path), "--threads", "1", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["passed"] is True
    worse = [row for row in document["baseline"] if not row["passed"]]
    assert worse
    assert all("tolerance was" in row["problem"] for row in worse)
    shown = CliRunner().invoke(app, arguments[:-1])
    assert shown.exit_code == 1
    assert f"{len(worse)} of {len(document['baseline'])} checks got worse" in shown.stdout
    # a bundle that got worse and passes stays passed
    assert Manifest.read(bundle).parity.state == "passed"
