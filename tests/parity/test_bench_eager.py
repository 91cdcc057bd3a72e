"""What `bench` times as eager PyTorch is the model: its tokens are transformers' own, with either cache."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from support.checkpoints import ODD, write_checkpoint

from nemotron_export.bench import BenchOptions, run_bench
from nemotron_export.bench.backends import BenchRequest
from nemotron_export.bench.backends.eager import EagerBackend
from nemotron_export.bench.options import Shape
from nemotron_export.bench.worker import prompt_ids

SHAPE = Shape(prompt_tokens=12, new_tokens=6, batch=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    path = tmp_path_factory.mktemp("checkpoint")
    return path, write_checkpoint(path, torch.bfloat16)


def request(checkpoint: Path, bundles: tuple[Bundle, ...] = (), dtypes: tuple[str, ...] = ()) -> BenchRequest:
    return BenchRequest(bundles, checkpoint, None, False, BenchOptions(*astuple(SHAPE), eager_dtypes=dtypes))


@pytest.mark.parametrize("number", [0, 1])
def test_both_caches_generate_what_transformers_does(checkpoint: tuple[Path, torch.nn.Module], number: int) -> None:
    path, oracle = checkpoint
    backend = EagerBackend(EagerBackend.specs(request(path, dtypes=("float32",)))[number].options, 1)
    backend.prepare()
    described = backend.load()
    ids = prompt_ids(SHAPE, described.vocab_size)
    # twice: nothing of the first round may be left in the second
    for _ in range(2):
        backend.reset(SHAPE.batch, SHAPE.capacity)
        tokens = [backend.prefill(ids)]
        for _ in range(SHAPE.new_tokens):
            tokens.append(backend.decode(tokens[-1]))
        expected = oracle.generate(
            torch.from_numpy(ids), max_new_tokens=SHAPE.new_tokens + 1, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones(ids.shape, dtype=torch.int64),
        )  # fmt: skip
        assert torch.equal(torch.from_numpy(ids), expected[:, : SHAPE.prompt_tokens])
        assert [t.tolist() for t in tokens] == expected[:, SHAPE.prompt_tokens :].T.tolist()
    backend.close()


def test_a_dtype_is_measured_once_and_costs_its_own_bytes(checkpoint: tuple[Path, torch.nn.Module]) -> None:
    path, oracle = checkpoint
    specs = EagerBackend.specs(request(path))
    assert [(s.options["dtype"], s.options["cache"]) for s in specs] == [
        ("float32", "dynamic"), ("float32", "static"), ("bfloat16", "dynamic"), ("bfloat16", "static"),
    ]  # fmt: skip
    parameters = sum(p.numel() for p in oracle.parameters())
    assert [s.weight_bytes for s in specs] == [4 * parameters] * 2 + [2 * parameters] * 2


def test_eager_pytorch_alone_is_measured_from_a_checkpoint(checkpoint: tuple[Path, torch.nn.Module]) -> None:
    path, oracle = checkpoint
    options = BenchOptions(12, 6, 2, rounds=1, threads=1, eager_dtypes=("float32",), eager_caches=("static",))
    result = run_bench([], against=["eager"], checkpoint=path, options=options)
    (backend,) = result.backends
    assert (backend.name, backend.kind, backend.dtype) == (
        "eager float32, sdpa, static cache",
        "eager",
        "float32",
    )
    embedding = ODD["vocab_size"] * ODD["hidden_size"]
    assert backend.weight_bytes == 4 * (sum(p.numel() for p in oracle.parameters()) - embedding)
    assert backend.kv_bytes_per_token == 2 * 3 * 2 * 32 * 4
    assert result.baseline == backend.at(12).decode_tokens_per_second.median
