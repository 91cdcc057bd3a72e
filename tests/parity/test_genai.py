"""ONNX Runtime GenAI loads the bundle's folder and writes the tokens of our runtime and of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from support.checkpoints import run_blocked, write_checkpoint
from transformers import AutoModelForCausalLM

from nemotron_export import build
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model
from nemotron_export.parity.bisect import bisect

DEMO = Path(__file__).parents[2] / "nemotron_export" / "assets" / "demo"
NEW_TOKENS = 64
CASES: dict[str, dict[str, object]] = {
    # head_dim 32 is not hidden_size 96 / 4; the rotation goes into the kernel
    "head_dim 32 of 96/4": {"dtype": torch.bfloat16},
    # one KV head, biases, and 24 rotated lanes: their half is no multiple of 8, so the rotation stays outside
    "one KV head": {
        "dtype": torch.float32, "num_key_value_heads": 1, "partial_rotary_factor": 0.75, "attention_bias": True,
        "mlp_bias": True, "seed": 1,
    },
    "demo": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return build(DEMO, folder / "bundle", target="genai-cpu", max_seq_len=256, weights="copy")


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The bundle and transformers' model in fp32. Building proves the numbers of our own session."""
    folder = tmp_path_factory.mktemp("genai")
    torch.set_num_threads(1)
    if request.param == "demo":
        oracle = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
        return build(DEMO, folder / "bundle", target="genai-cpu", max_batch=4), oracle
    oracle = write_checkpoint(folder / "checkpoint", **CASES[request.param])  # type: ignore[arg-type]
    path = build(folder / "checkpoint", folder / "bundle", target="genai-cpu", max_batch=4, prefill_chunk=512)
    return path, oracle


def genai_generate(folder: Path, prompts: list[np.ndarray], new_tokens: int, **options: Any) -> list[list[int]]:
    """Tokens behind each prompt; the end of the sequence is ruled out, so that there are new_tokens of them."""
    longest = max(map(len, prompts))
    padded = np.zeros((len(prompts), longest), np.int32)  # the pad token is 0
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    length = longest + new_tokens
    params.set_search_options(
        **{"do_sample": False, "max_length": length, "min_length": length, "batch_size": len(prompts), **options}
    )
    generator = og.Generator(model, params)
    generator.append_tokens(padded)
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[longest:].tolist() for row in range(len(prompts))]


def prompt_of(length: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(length).integers(4, vocab_size, length)


@pytest.mark.parametrize("length", [16, 1200])
def test_genai_our_runtime_and_transformers_write_the_same_tokens(built: tuple[Path, Any], length: int) -> None:
    path, oracle = built
    ids = prompt_of(length, oracle.config.vocab_size)
    expected = oracle.generate(
        torch.from_numpy(ids)[None], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
        pad_token_id=0,
    )[0, length:].tolist()  # fmt: skip
    assert len(set(expected)) > 8, "a text that repeats one token proves little"
    assert genai_generate(path, [ids], NEW_TOKENS) == [expected]
    with nemotron_runtime.load(path) as model:
        result = model.generate(ids.tolist(), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    assert list(result.token_ids) == expected


def test_the_rotation_is_in_the_kernel_where_the_kernel_takes_its_width(built: tuple[Path, Any]) -> None:
    path, oracle = built
    graph = onnx.load(path / "model.onnx", load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    inside = {attribute.i for node in attentions for attribute in node.attribute if attribute.name == "do_rotary"}
    outside = oracle.config.num_key_value_heads == 1
    assert inside == {int(not outside)}
    # positions are made from the mask where a node in front rotates
    assert ("Range" in {node.op_type for node in graph.node}) is outside


def test_prompts_of_different_lengths_in_one_batch(built: tuple[Path, Any]) -> None:
    path, oracle = built
    prompts = [prompt_of(length, oracle.config.vocab_size) for length in (9, 33, 5)]
    alone = [genai_generate(path, [prompt], 12)[0] for prompt in prompts]
    # a short row's own tokens end before the batch's longest prompt does: it writes behind its own end
    assert genai_generate(path, prompts, 12) == alone
    with nemotron_runtime.load(path) as model:
        ours = model.generate([p.tolist() for p in prompts], max_new_tokens=12, min_new_tokens=12)
    assert [list(result.token_ids) for result in ours] == alone


def test_a_prompt_in_chunks_and_a_beam_search_that_shares_no_buffer(built: tuple[Path, Any]) -> None:
    path, oracle = built
    ids = prompt_of(50, oracle.config.vocab_size)
    assert genai_generate(path, [ids], 12, chunk_size=16) == genai_generate(path, [ids], 12)
    beams = oracle.generate(
        torch.from_numpy(ids)[None], max_new_tokens=12, min_new_tokens=12, do_sample=False, num_beams=3,
        early_stopping=True, pad_token_id=0,
    )[0, 50:].tolist()  # fmt: skip
    assert genai_generate(path, [ids], 12, num_beams=3, past_present_share_buffer=False) == [beams]


def test_genai_reads_the_texts_that_our_tokenizer_reads(demo_bundle: Path) -> None:
    tokenizer = og.Tokenizer(og.Model(str(demo_bundle)))
    # GenAI leaves the begin-of-sequence token out unless it is told otherwise
    tokenizer.update_options(add_special_tokens="true")
    with nemotron_runtime.load(demo_bundle) as model:
        for text in ("If the file does not exist,", "def f(x):\n    return x", "Zürich 日本 😀", "  two", "a<s>b"):
            ids = model.tokenizer.encode(text)
            assert ids[0] == 2
            assert tokenizer.encode(text).tolist() == ids


def test_the_folder_moves_with_all_that_genai_needs(demo_bundle: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(demo_bundle, tmp_path / "moved"))
    ids = prompt_of(16, 4096)
    assert genai_generate(moved, [ids], 8) == genai_generate(demo_bundle, [ids], 8)


def test_verify_and_generate_need_neither_torch_nor_genai(demo_bundle: Path) -> None:
    assert run_blocked("verify", demo_bundle).returncode == 0
    done = run_blocked("generate", demo_bundle, "If the file does not exist,", "-n", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_weights_give_genai_and_our_runtime_the_same_tokens(scheme: str, tmp_path: Path) -> None:
    path = build(DEMO, tmp_path / "bundle", target="genai-cpu", quantize=scheme, max_seq_len=256, parity=False)
    ids = prompt_of(50, 4096)
    with nemotron_runtime.load(path, allow_unverified=True) as model:
        ours = model.generate(ids.tolist(), max_new_tokens=32, min_new_tokens=32).token_ids
    assert genai_generate(path, [ids], 32) == [list(ours)]


def test_bisection_reads_genais_graph(demo_bundle: Path) -> None:
    model = load_model(Checkpoint.open(DEMO), torch.float32)
    found = bisect(Bundle.open(demo_bundle), [model], prompt_of(200, 4096))
    assert found.first is None
    assert len(found.layers) >= 16
    assert max(point.error for point in found.layers) < 1e-5
