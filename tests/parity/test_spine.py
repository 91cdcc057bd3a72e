"""End to end: a checkpoint that transformers wrote → a bundle → the tokens that transformers generates."""

from __future__ import annotations

import json

import nemotron_runtime
import numpy as np
import pytest
import torch
from support.checkpoints import run_blocked, write_checkpoint

from nemotron_export import build, check_parity

TARGETS = ("onnx", "ort-cpu")
CASES = [(target, dtype) for target in TARGETS for dtype in ("bfloat16", "float32")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(bundle, transformers' model in fp32, checkpoint)."""
    target, dtype = request.param
    folder = tmp_path_factory.mktemp("spine")
    torch.set_num_threads(2)
    model = write_checkpoint(folder / "checkpoint", getattr(torch, dtype))
    path = build(folder / "checkpoint", folder / "bundle", target=target, max_batch=4, prefill_chunk=512)
    return path, model, folder / "checkpoint"


@pytest.mark.parametrize("length", [16, 1200])
def test_greedy_tokens_are_those_of_transformers(built, length: int) -> None:  # type: ignore[no-untyped-def]
    path, oracle, _ = built
    ids = np.random.default_rng(length).integers(4, 320, length)
    expected = oracle.generate(
        torch.from_numpy(ids)[None], max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, length:].tolist()
    assert len(set(expected)) > 8, "a text that repeats one token proves little"
    with nemotron_runtime.load(path) as model:
        result = model.generate(ids.tolist(), max_new_tokens=64, ignore_eos=True)
    assert list(result.token_ids) == expected
    assert result.finish_reason == "length"


def test_logits_are_those_of_transformers(built) -> None:  # type: ignore[no-untyped-def]
    path, oracle, _ = built
    ids = np.random.default_rng(5).integers(4, 320, 700)
    with torch.inference_mode():
        expected = oracle(torch.from_numpy(ids)[None]).logits[0].numpy()
    with nemotron_runtime.load(path) as model:
        found = model.logits(ids)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * (expected.max() - expected.min())


def test_the_bundle_carries_its_proof(built) -> None:  # type: ignore[no-untyped-def]
    path, _, checkpoint = built
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["parity"]["state"] == "passed"
    assert manifest["scan"]["done"] is True
    assert manifest["weights"]["directory"] == str(checkpoint)
    assert {"model.onnx", "reference.safetensors", "tokenizer.json", "config.json", "LICENSE"} <= set(manifest["files"])
    assert (path / "model.onnx").stat().st_size < 1_000_000
    report = json.loads((path / "parity.json").read_text())
    assert report["passed"] is True
    assert report["environment"]["versions"]["onnxruntime"]
    assert len(report["rows"]) >= 12


def test_parity_repeats_and_verify_needs_no_torch(built) -> None:  # type: ignore[no-untyped-def]
    path, _, _ = built
    report = check_parity(path)
    assert report.passed
    assert any("reference" in row.check for row in report.rows)
    result = run_blocked("verify", path, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["passed"] is True


def test_generate_needs_no_torch(built) -> None:  # type: ignore[no-untyped-def]
    path, oracle, _ = built
    result = run_blocked("generate", path, "Hello there", "-n", "16", "--ignore-eos", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    with nemotron_runtime.load(path) as model:
        prompt = model.tokenizer.encode("Hello there")
    expected = oracle.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt) :].tolist()
    assert found["token_ids"] == expected
    assert found["prompt_tokens"] == len(prompt)
    streamed = run_blocked("generate", path, "Hello there", "-n", "16", "--ignore-eos")
    assert streamed.stdout == found["text"] + "\n"
