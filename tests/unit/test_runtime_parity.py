"""The judge: passes a right session, and fails each kind of wrong one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from nemotron_errors import BundleError, LimitError
from nemotron_runtime.checks import check
from nemotron_runtime.checks.reference import Reference, ReferencePrompt, read_reference, write_reference
from nemotron_runtime.checks.replay import Replayed
from nemotron_runtime.checks.report import ParityReport, ParityRow
from nemotron_runtime.checks.rules import LowPrecisionCheck
from safetensors.numpy import load_file, save_file
from support.toy_engine import ToyEngine, ToyExecutor

STEPS = 8


def toy_reference(lengths=(3, 5, 17), eager_rmse=None, steps=STEPS):
    truth, rng, prompts = ToyEngine(), np.random.default_rng(0), []
    for n in lengths:
        ids = rng.integers(0, truth.vocab_size, n)
        history, chosen = list(ids), []
        for _ in range(steps):
            chosen.append(truth.row_logits(history))
            history.append(int(chosen[-1].argmax()))
        top = np.sort(chosen, -1)
        positions = np.array([0, n // 2, n - 1])
        step_positions = np.array([0, steps // 2, steps - 2])
        prompts.append(
            ReferencePrompt(
                ids, positions, np.stack([truth.row_logits(ids[: p + 1]) for p in positions]),
                np.array(history[n:]), top[:, -1] - top[:, -2], step_positions, np.stack(chosen)[step_positions + 1],
            )
        )  # fmt: skip
    return Reference(tuple(prompts), eager_rmse=eager_rmse, judge={"model": "toy"})


REFERENCE = toy_reference()


def failed(report):
    return {row.check.split(",")[0].split(" of ")[0] for row in report.rows if not row.passed}


class PoisonedExecutor(ToyExecutor):
    """Goes wrong in one way."""

    def __init__(self, how, **options):
        super().__init__(**options)
        self.how, self.passes = how, 0

    def forward(self, input_ids_BS, query_start_B, query_length_B, logits_index_BK):
        logits = super().forward(input_ids_BS, query_start_B, query_length_B, logits_index_BK)
        B, S = input_ids_BS.shape
        wrong = {
            "everything": True,
            "decode": S == 1 and query_start_B.min() > 0,
            "several rows": B > 1,
            "later chunks": B == 1 and S > 1 and query_start_B[0] > 0,
            "nan": B == 1,
        }[self.how]
        if wrong:
            logits[..., 7] += np.nan if self.how == "nan" else 0.05
        return logits


def Poisoned(how, **options):  # noqa: N802
    return ToyEngine(how, executor=PoisonedExecutor, **options)


def test_a_right_session_passes_every_check():
    report = check(ToyEngine(), REFERENCE, "float32")
    assert report.passed
    checks = [row.check for row in report.rows]
    for expected in ("prefill", "cached decode", "greedy", "prefill in chunks", "padded rows"):
        assert any(name.startswith(expected) for name in checks)
    assert len([c for c in checks if c.startswith("greedy")]) == 3
    assert all(row.measured == 0 for row in report.rows)
    assert [row.prompt for row in report.rows if row.check.startswith("padded")] == ["rows of 17, 5, 3, 9 tokens"]


@pytest.mark.parametrize(
    ("how", "checks"),
    [
        ("everything", {"prefill", "cached decode", "padded rows", "prefill in chunks"}),
        # the shortest prompt's chunks are single tokens
        ("decode", {"cached decode", "padded rows", "prefill in chunks"}),
        ("several rows", {"padded rows"}),
        ("later chunks", {"prefill in chunks"}),
        ("nan", {"prefill", "cached decode", "prefill in chunks"}),
    ],
)
def test_each_kind_of_error_fails_its_checks(how, checks):
    report = check(Poisoned(how, prefill_chunk=64), REFERENCE, "float32")
    assert not report.passed
    assert checks <= failed(report)
    assert failed(report) - checks <= {"greedy"}
    if how == "nan":
        assert any(math.isnan(row.measured) and "NaN" in row.note for row in report.rows)


def test_the_tolerance_is_relative_to_the_logit_range():
    small = check(ToyEngine(error=1e-6), REFERENCE, "float32")
    assert small.passed
    assert max(row.measured for row in small.rows) > 0
    assert not check(ToyEngine(error=1e-2), REFERENCE, "float32").passed


def test_a_greedy_flip_fails_fp32_and_is_described():
    prompt = REFERENCE.prompts[0]
    greedy = prompt.greedy.copy()
    greedy[-1] = (greedy[-1] + 1) % 32
    changed = replace(REFERENCE, prompts=(replace(prompt, greedy=greedy),))
    report = check(ToyEngine(), changed, "float32")
    (row,) = (row for row in report.rows if row.check.startswith("greedy"))
    assert (row.passed, row.measured) == (False, 1.0)
    assert f"token {STEPS - 1} is" in row.note
    assert "margin" in row.note


def test_one_row_sessions_skip_the_padded_check():
    report = check(ToyEngine(max_batch=1), REFERENCE, "float32")
    assert report.passed
    assert not any(row.check.startswith("padded") for row in report.rows)


def test_a_single_prompt_still_gives_ragged_rows():
    report = check(ToyEngine(), toy_reference((17,)), "float32")
    assert [row.prompt for row in report.rows if row.check.startswith("padded")] == ["rows of 17, 9, 1 tokens"]


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (0.05, True), (0.09, True), (0.3, False)])
def test_low_precision_is_judged_by_the_rmse_of_pytorchs_own_run(error, passes):
    report = check(ToyEngine(error=error), toy_reference(eager_rmse=0.1), "bfloat16")
    (row,) = (row for row in report.rows if row.check.startswith("prefill and cached decode"))
    assert row.passed is passes
    assert row.measured == pytest.approx(error / 0.1, rel=0.1, abs=1e-6)
    assert report.passed is passes


@pytest.mark.parametrize(
    ("steps", "margins", "past", "passes"),
    [
        (63, [0.39], 0, True),
        (63, [0.41], 1, False),  # of fewer than 64 none may be past the margin
        (64, [0.39, 0.38], 0, True),
        (64, [0.41, 0.39], 1, True),
        (64, [0.41, 0.42], 2, False),
        (64, [0.79], 1, True),
        (64, [0.81], 1, False),  # nor past twice the margin
    ],
)
def test_low_precision_flips_fail_only_past_the_margin(steps, margins, past, passes):
    reference = toy_reference((5,), eager_rmse=0.1, steps=steps)
    prompt = reference.prompts[0]
    choices, known = prompt.greedy.copy(), prompt.margins.copy()
    for at, margin in enumerate(margins, 1):
        choices[-at], known[-at] = (choices[-at] + 1) % 32, margin
    judged = LowPrecisionCheck(ToyEngine(), reference)
    judged.check_whole(replace(prompt, margins=known), Replayed(prompt.logits, prompt.step_logits, choices))
    (row,) = judged.rows
    assert row.check == f"greedy, {steps} tokens, flips past the margin"
    assert (row.passed, row.measured, row.tolerance) == (passes, past, steps // 64)
    assert row.note.startswith(f"{len(margins)} flips")


def test_low_precision_padded_and_chunked_runs_are_judged_too():
    reference = toy_reference(eager_rmse=0.001)
    assert failed(check(Poisoned("several rows"), reference, "float16")) == {"padded rows"}
    assert failed(check(Poisoned("later chunks", prefill_chunk=64), reference, "float16")) == {
        next(r.check for r in check(ToyEngine(), reference, "float16").rows if "chunks" in r.check)
        .split(",")[0]
        .split(" of ")[0]
    }


def test_low_precision_needs_pytorchs_own_rmse():
    with pytest.raises(BundleError, match="eager_rmse"):
        check(ToyEngine(), REFERENCE, "bfloat16")


def test_a_reference_of_another_model_or_past_the_limits():
    with pytest.raises(BundleError, match="outputs of 32 values"):
        check(ToyEngine(vocab_size=33), REFERENCE, "float32")
    with pytest.raises(LimitError, match=r"17 prompt tokens and 8 greedy ones.*at most 20"):
        check(ToyEngine(max_seq_len=20), REFERENCE, "float32")


def test_progress_ends_at_its_total():
    calls = []
    check(ToyEngine(), REFERENCE, "float32", progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2]
    assert [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_reference_round_trip(tmp_path):
    path = tmp_path / "reference.safetensors"
    write_reference(path, toy_reference(eager_rmse=0.25))
    read = read_reference(path)
    assert (read.tolerance, read.eager_rmse, read.judge) == (1e-4, 0.25, {"model": "toy"})
    assert read.logit_range == REFERENCE.logit_range
    for got, expected in zip(read.prompts, REFERENCE.prompts, strict=True):
        for name in ("ids", "positions", "logits", "greedy", "margins", "step_positions", "step_logits"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert "001/step_logits" in load_file(path)


def test_broken_references(tmp_path):
    path = tmp_path / "reference.safetensors"
    with pytest.raises(BundleError, match="no such file"):
        read_reference(path)
    path.write_bytes(b"no reference")
    with pytest.raises(BundleError, match="broken file"):
        read_reference(path)
    write_reference(path, REFERENCE)
    tensors = load_file(path)
    good = {"format": "1", "kind": "nemotron-reference", "tolerance": "1e-4", "task": "causal-lm"}
    for change in ({"format": "2"}, {"kind": "other"}, {"tolerance": "x"}, {"tolerance": "nan"}, {"tolerance": "0"}):
        save_file(tensors, path, metadata={**good, **change})
        with pytest.raises(BundleError):
            read_reference(path)
    for name, value in (
        ("000/logits", tensors["000/logits"][:1]),
        ("000/margins", tensors["000/margins"][:-1]),
        ("001/positions", tensors["001/positions"] + 1),
    ):
        save_file({**tensors, name: value}, path, metadata=good)
        with pytest.raises(BundleError, match=f"prompt {name[:3]}"):
            read_reference(path)
    save_file({k: v for k, v in tensors.items() if k != "002/greedy"}, path, metadata=good)
    with pytest.raises(BundleError, match="no tensor 002/greedy"):
        read_reference(path)


def test_report_is_json_and_comes_back():
    report = ParityReport((ParityRow("prefill", "3 tokens", math.nan, 1e-4, False, "NaN"),), "float32", 2.5)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert data["rows"][0]["measured"] is None
    again = ParityReport.from_dict(data)
    assert math.isnan(again.rows[0].measured)
    assert again.to_dict() == report.to_dict()
    assert not ParityReport((), "float32", 1.0).passed
