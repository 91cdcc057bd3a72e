"""The projections' kernels on a GPU: no further from fp32 than the eager definitions in the same dtype."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.linear_kernels import LinearCase, definition, linear_inputs, run_argmax, run_kernel

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="the kernels need an NVIDIA GPU of compute capability 8.0 or more",
)

DTYPES = (torch.bfloat16, torch.float16)
# of the definition's own RMSE against fp32
RATIO = 1.05
# input and output features of Minitron-4B's projections, and odd ones
NORMED = {
    "qkv": LinearCase(B=1, inputs=3072, outputs=5120, normed=True),
    "up": LinearCase(B=1, inputs=3072, outputs=9216, normed=True, activation="relu_squared"),
    # as wide as a vocabulary, as far as its blocks are concerned
    "head": LinearCase(B=1, inputs=3072, outputs=66000, normed=True, output="float32"),
    "odd": LinearCase(B=1, inputs=1000, outputs=77, normed=True, bias=True),
    "wide": LinearCase(B=1, inputs=6144, outputs=512, normed=True, bias=True, activation="relu_squared"),
}
ADDED = {
    "o": LinearCase(B=1, inputs=3072, outputs=3072),
    "down": LinearCase(B=1, inputs=9216, outputs=3072),
    "odd": LinearCase(B=1, inputs=1000, outputs=77, bias=True),
}
# every case compiles kernels of its own; 13 rows are two blocks of 8
CASES = [
    *((name, rows, torch.bfloat16) for name in ("qkv", "up", "head", "odd", "wide") for rows in (1, 3, 13)),
    *(("odd", rows, torch.float16) for rows in (1, 2)),
]
ADDED_CASES = [case for case in CASES if case[0] == "odd"] + [
    (name, rows, torch.bfloat16) for name in ("o", "down") for rows in (1, 3, 13)
]


def _rmse(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).square().mean().sqrt())


def _check(case: LinearCase, rows: int, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, B=rows)
    inputs = linear_inputs(case, dtype, "cuda")
    exact = definition(case, tuple(t.double() for t in inputs))
    got = run_kernel(case, inputs)
    assert got.dtype == (torch.float32 if case.output == "float32" else dtype)
    assert not got.isnan().any()
    assert _rmse(got, exact) <= RATIO * _rmse(definition(case, inputs), exact)


@pytest.fixture(autouse=True)
def _full_precision() -> Any:
    """PyTorch's bf16 and fp16 products accumulate in fp32 throughout, and its fp32 products are not TF32."""
    backend = torch.backends.cuda.matmul
    kept = (
        backend.allow_tf32,
        backend.allow_bf16_reduced_precision_reduction,
        backend.allow_fp16_reduced_precision_reduction,
    )
    backend.allow_tf32 = False
    backend.allow_bf16_reduced_precision_reduction = backend.allow_fp16_reduced_precision_reduction = False
    yield
    (
        backend.allow_tf32,
        backend.allow_bf16_reduced_precision_reduction,
        backend.allow_fp16_reduced_precision_reduction,
    ) = kept


@pytest.mark.parametrize(("name", "rows", "dtype"), CASES)
def test_layernorm_linear_is_as_near_to_fp32_as_its_definition(name: str, rows: int, dtype: torch.dtype) -> None:
    _check(NORMED[name], rows, dtype)


@pytest.mark.parametrize(("name", "rows", "dtype"), ADDED_CASES)
def test_linear_residual_is_as_near_to_fp32_as_its_definition(name: str, rows: int, dtype: torch.dtype) -> None:
    _check(ADDED[name], rows, dtype)


@pytest.mark.parametrize("rows", [1, 3])
def test_projections_in_fp32_are_not_tf32(rows: int) -> None:
    for case in (NORMED["odd"], ADDED["odd"]):
        case = dataclasses.replace(case, B=rows)
        inputs = linear_inputs(case, torch.float32, "cuda")
        exact = definition(case, tuple(t.double() for t in inputs))
        assert _rmse(run_kernel(case, inputs), exact) <= 2e-6 * float(exact.abs().max())


def test_a_chain_of_kernels_reads_what_the_one_before_wrote() -> None:
    """Launched one after another, each starts before the one before has ended; still each waits for its result."""
    from support.torch_kernels import run_op

    attributes = {"epsilon": 1e-5, "activation": "relu_squared", "output": "same"}
    torch.manual_seed(0)
    layers = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02 for shape in ((1024, 1024), (1024, 1024))]
        for _ in range(24)
    ]
    zeros = torch.zeros(1024, device="cuda", dtype=torch.bfloat16)

    def run(x: torch.Tensor, *, wait: bool) -> torch.Tensor:
        for up, down in layers:
            (between,) = run_op("LayerNormLinear", (x, zeros, zeros, up), attributes)
            if wait:
                torch.cuda.synchronize()
            (x,) = run_op("LinearResidual", (between, down, x))
            if wait:
                torch.cuda.synchronize()
        return x

    for rows in (1, 4):
        x = torch.randn(rows, 1, 1024, device="cuda", dtype=torch.bfloat16)
        expected = run(x, wait=True)
        for _ in range(20):
            assert torch.equal(run(x, wait=False), expected)
        # in a graph no host stands between two launches
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(x, wait=False)
        for _ in range(20):
            out.zero_()
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(out, expected)


@pytest.mark.parametrize("vocab", [7, 5003, 256000])
def test_argmax_is_numpy_s(vocab: int) -> None:
    logits = np.random.default_rng(0).normal(size=(9, vocab)).astype(np.float32)
    logits[1] = 0.0
    logits[2, [vocab - 1, 3]] = 9.0
    logits[3, [vocab // 2, vocab // 2 + 1]] = 9.0
    np.testing.assert_array_equal(run_argmax(logits, "cuda"), logits.argmax(-1))
