"""The graph of ``genai-cuda`` by ONNX Runtime's CPU kernels, and GenAI's tokens beside those of an ``ort`` bundle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.onnxruntime.genai import GenaiExecutor
from support.checkpoints import write_checkpoint
from support.cuda_graphs import CASES, on_cpu
from support.genai_agreement import DEMO, Written, check_agreement, write_both

from nemotron_export import build


@pytest.fixture(scope="module", autouse=True)
def cuda_on_cpu() -> Iterator[None]:
    """The target's graphs name the CPU's provider."""
    with on_cpu("genai-cuda"):
        yield


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle that passed the parity protocol, and its case."""
    dtype, changes = CASES[request.param]
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("genai_cuda")
    write_checkpoint(folder / "checkpoint", torch.float32, **changes)
    path = build(
        folder / "checkpoint", folder / "bundle", target="genai-cuda", dtype=dtype, max_batch=4, max_seq_len=700,
        prefill_chunk=512, reference_steps=16,
    )  # fmt: skip
    return path, request.param


def test_the_graph_passes_the_parity_protocol_on_cpu_kernels(built: tuple[Path, str]) -> None:
    path, case = built
    report = json.loads((path / "parity.json").read_text())
    assert report["passed"] is True
    assert len(report["rows"]) >= 8
    ops = Counter(node.op_type for node in onnx.load(path / "model.onnx", load_external_data=False).graph.node)
    # the first norm has no sum in front
    assert (ops["SkipLayerNormalization"], ops["LayerNormalization"]) == (2 * 3, 1)
    assert ops["Concat"] >= {"odd-rotary": 0, "biases-multi-head": 6}.get(case, 3)
    assert (ops["FusedMatMul"] < 6 * 3 + 1) is (case != "odd-rotary")


def test_what_is_packed_is_computed_at_load(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, case = built
    real = onnxruntime.SessionOptions

    def writing() -> onnxruntime.SessionOptions:
        options = real()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", writing)
    GenaiExecutor(Bundle.open(path)).close()
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    made = {node.op_type for node in graph.node if node.input and set(node.input) <= weights}
    # the CPU, which has no product in fp16, widens its weights
    assert made <= ({"Cast"} if case == "grouped-fp16" else set())


def test_genai_and_our_runtime_write_the_same_behind_every_prompt(tmp_path: Path) -> None:
    options = {"max_seq_len": 1024, "parity": False, "scan": False}
    genai = build(DEMO, tmp_path / "genai", target="genai-cuda", dtype="float32", **options)  # type: ignore[arg-type]
    ours = build(DEMO, tmp_path / "ours", target="ort-cpu", **options)  # type: ignore[arg-type]
    written = write_both(genai, ours)
    assert [each.parting for each in written] == [None] * len(written)
    check_agreement(written, DEMO, torch.float32, "cpu")
    assert max(len(each.prompt) for each in written) > 500
    one = written[0]
    # the judge: a token that PyTorch is sure is another, in fp32 and in bf16, then a text that differs
    other = [*one.theirs[:20], (one.theirs[20] + 1) % 4096, *one.theirs[21:]]
    wrong = Written(one.prompt, other, one.ours, one.texts)
    assert wrong.parting == 20
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(AssertionError, match="token 20"):
            check_agreement([wrong, *written[1:]], DEMO, dtype, "cpu")
    with pytest.raises(AssertionError):
        check_agreement([replace(one, texts=(one.texts[0], "another"))], DEMO, torch.float32, "cpu")


def test_a_near_tie_may_part_on_half_of_the_prompts_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = {torch.float32: np.array([[1.0, 0.99, 0.0]]), torch.bfloat16: np.array([[1.0, 0.99, 0.1]])}
    monkeypatch.setattr("support.genai_agreement.load_model", lambda opened, dtype, *rest: dtype)
    monkeypatch.setattr("support.genai_agreement._logits", lambda dtype, text, device: logits[dtype])
    same = Written([5], [0], [0], ("a", "a"))
    tie, sure = Written([5], [1], [0], ("b", "a")), Written([5], [2], [0], ("c", "a"))
    check_agreement([tie, same], DEMO, torch.bfloat16, "cpu")
    with pytest.raises(AssertionError, match="2 of 3 prompts parted"):
        check_agreement([tie, tie, same], DEMO, torch.bfloat16, "cpu")
    with pytest.raises(AssertionError, match="1 apart"):
        check_agreement([sure, same], DEMO, torch.bfloat16, "cpu")
    with pytest.raises(AssertionError, match="allowed 0"):
        check_agreement([tie, same], DEMO, torch.float32, "cpu")
