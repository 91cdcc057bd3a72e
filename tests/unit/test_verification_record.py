"""What a judgement leaves behind when it is interrupted at any write, and when two processes judge at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle import folder as bundle_module
from nemotron_runtime.bundle.folder import write_atomically
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.checks import verification
from nemotron_runtime.checks.report import ParityReport, ParityRow
from nemotron_runtime.checks.verification import PARITY_FILE, check_bundle, record_report
from support.bundles import make_bundle

from nemotron_export.parity.verdict import record

GOOD = ParityReport((ParityRow("prefill", "5 tokens", 1e-7, 1e-4, True),), "float32", 1.0)
BAD = ParityReport((ParityRow("prefill", "5 tokens", 1e-2, 1e-4, False),), "float32", 1.0)


def _state(path: Path) -> tuple[str, bool | None]:
    """The manifest's state, and whether parity.json says that all passed."""
    judged = path / PARITY_FILE
    return Manifest.read(path).parity.state, json.loads(judged.read_text())["passed"] if judged.exists() else None


class Crash(BaseException):
    """Stands for the process's end."""


@pytest.mark.parametrize(("before", "report"), [("pending", GOOD), ("passed", BAD), ("pending", BAD)])
@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_crash_never_leaves_a_bundle_that_passed_without_its_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, report: ParityReport, at: str, number: int
) -> None:
    path = make_bundle(tmp_path, parity=before)
    if before == "passed":
        (path / PARITY_FILE).write_text(json.dumps(GOOD.to_dict()))
    calls = iter(range(10))

    def crashing(original):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            if next(calls) == number:
                raise Crash
            return original(*arguments, **options)

        return call

    function = {"write": "fdopen", "fsync": "fsync", "replace": "replace"}[at]
    monkeypatch.setattr(os, function, crashing(getattr(os, function)))
    with pytest.raises(Crash):
        record_report(path, report)
    monkeypatch.undo()
    state, judged = _state(path)
    assert state in ("pending", before)
    if state == "passed":
        # the first write of a failure did not happen: the old judgement stands whole
        assert (number, judged) == (0, True)
    # both files are whole, and the next judgement goes through
    record_report(path, report)
    assert _state(path) == ("passed" if report.passed else "pending", report.passed)


def test_a_pass_writes_the_judgement_first_and_a_failure_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bundle(tmp_path, parity="pending")
    written: list[str] = []

    def noted(target: Path, text: str) -> None:
        written.append(target.name)
        write_atomically(target, text)

    monkeypatch.setattr(verification, "write_atomically", noted)
    monkeypatch.setattr(bundle_module, "write_atomically", noted)
    record_report(path, GOOD)
    record_report(path, BAD)
    assert written == [PARITY_FILE, "manifest.json", "manifest.json", PARITY_FILE]


def test_a_judgement_alone_records_nothing(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, parity="pending")
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert check_bundle(path, threads=1).passed
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_a_pass_that_cannot_be_written_again_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_bundle(tmp_path)

    def refused(target: Path, text: str) -> None:
        raise BundleError("Read-only file system", "a folder that can be written to", "…", where=str(target))

    monkeypatch.setattr(verification, "write_atomically", refused)
    monkeypatch.setattr(bundle_module, "write_atomically", refused)
    record(path, GOOD, threads=1, judged_by="verify")
    assert "was not recorded" in caplog.text
    with pytest.raises(BundleError, match="Read-only"):
        record(path, BAD, threads=1, judged_by="verify")


def _judge_often(path: Path, report: ParityReport, ready, times: int) -> None:  # type: ignore[no-untyped-def]
    ready.wait()
    for _ in range(times):
        record_report(path, report)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_processes_at_once_agree_with_one_of_them(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, parity="pending")
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        ready = context.Barrier(2)
        reports = [replace(report, logit_range=float(attempt)) for report in (GOOD, BAD)]
        processes = [context.Process(target=_judge_often, args=(path, report, ready, 40)) for report in reports]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        state, judged = _state(path)
        assert (state, judged) in {("passed", True), ("pending", False)}
        # nothing half-written is left beside them
        assert not [name for name in os.listdir(path) if name.startswith(f".{PARITY_FILE}") or ".manifest" in name]
