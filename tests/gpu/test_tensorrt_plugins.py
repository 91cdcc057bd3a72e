"""Each plugin in an engine of TensorRT, compared with the definition of its op.

Shapes: B sequences, S new tokens, T cache capacity, H query heads, G key/value heads, D head_dim, R rotary_dim, P
positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nemotron_graphs.ops import packed_rotary_cached_attention, packed_rotary_kv_cache_update
from support.linear_kernels import LinearCase, definition, linear_inputs
from support.plugin_engines import NodeEngine
from support.plugin_kernels import AttentionCase, RotaryCase, attention_inputs, reference_attention, rotary_inputs

pytest.importorskip("tensorrt", reason="needs TensorRT's Python bindings", exc_type=ImportError)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="engines run on an NVIDIA GPU")

DTYPES = (torch.bfloat16, torch.float16)
# of the definition's own RMSE against fp32
RATIO = 1.05
CAPACITY, SEQUENCES = 1600, 8
# query heads, key/value heads, head_dim, rotary_dim
HEADS = {"64": (12, 4, 64, 32), "128": (24, 8, 128, 64), "192": (24, 2, 192, 96)}
# new tokens, the tokens that each sequence has already, and the capacity
CALLS: tuple[tuple[int, tuple[int, ...], int], ...] = (
    (1, (1030,), 1100),
    (1, (0, 511, 1500), 1600),
    (1, (5, 900, 0, 77, 1023, 1024, 300, 1), 1100),
    (2, (600, 3), 700),
    (130, (0, 1001), 1300),
    (1, (7,), 8),
)
RANGES = {"B": (1, 1, SEQUENCES), "S": (1, 1, 256), "T": (1, CAPACITY, CAPACITY)}


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """PyTorch's products accumulate in fp32 throughout, and its fp32 products are not TF32."""
    backend: Any = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    kept = [getattr(backend, name) for name in names]
    for name in names:
        setattr(backend, name, False)
    yield
    for name, value in zip(names, kept, strict=True):
        setattr(backend, name, value)


def _rmse(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).square().mean().sqrt())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_packed_rotary_kv_cache_update_equals_its_definition_bit_for_bit(heads: str, dtype: torch.dtype) -> None:
    H, G, D, R = HEADS[heads]
    table, cache = (dtype, ("P", R // 2)), (dtype, ("B", G, "T", D))
    inputs = [(dtype, ("B", "S", (H + 2 * G) * D)), table, table, (torch.int64, ("B", "S")), cache, cache,
              (torch.int64, ("B",))]  # fmt: skip
    engine = NodeEngine(
        "PackedRotaryKVCacheUpdate",
        dtype,
        inputs,
        [(dtype, ("B", "S", H, D)), cache, cache],
        {**RANGES, "P": (1, CAPACITY, CAPACITY)},
        {"num_heads": H, "num_kv_heads": G},
    )
    for S, starts, T in CALLS:
        case = RotaryCase(H=H, G=G, D=D, R=R, S=S, starts=starts, T=T)
        tensors: Any = rotary_inputs(case, dtype, "cuda")
        before = [tensor.clone() for tensor in tensors]
        expected = packed_rotary_kv_cache_update.eager(*before, num_heads=H, num_kv_heads=G)
        q_out = torch.empty(len(starts), S, H, D, dtype=dtype, device="cuda")
        engine.bind(tensors, (q_out, tensors[4], tensors[5]))
        engine.run()
        for got, wanted in zip((q_out, tensors[4], tensors[5]), expected, strict=True):
            assert torch.equal(got, wanted)
        graph = engine.record()
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        tensors[0].mul_(-1)
        before[0].mul_(-1)
        expected = packed_rotary_kv_cache_update.eager(*before, num_heads=H, num_kv_heads=G)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip((q_out, tensors[4], tensors[5]), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_one_token_rotated_kept_and_attending_is_as_near_to_fp32_as_its_definition(
    heads: str, dtype: torch.dtype
) -> None:
    H, G, D, R = HEADS[heads]
    table, cache = (dtype, ("P", R // 2)), (dtype, ("B", G, "T", D))
    inputs = [(dtype, ("B", 1, (H + 2 * G) * D)), table, table, (torch.int64, ("B", 1)), cache, cache,
              (torch.int64, ("B",))]  # fmt: skip
    engine = NodeEngine(
        "PackedRotaryCachedAttention",
        dtype,
        inputs,
        [(dtype, ("B", 1, H, D)), cache, cache],
        {**{name: RANGES[name] for name in ("B", "T")}, "P": (1, CAPACITY, CAPACITY)},
        {"num_heads": H, "num_kv_heads": G},
    )
    for _, starts, T in CALLS:
        case = RotaryCase(H=H, G=G, D=D, R=R, S=1, starts=starts, T=T)
        tensors: Any = rotary_inputs(case, dtype, "cuda")
        out = torch.empty(len(starts), 1, H, D, dtype=dtype, device="cuda")
        engine.bind(tensors, (out, tensors[4], tensors[5]))
        graph = None
        for sign in (1, -1):
            before = [tensor.clone() for tensor in tensors]
            before[0].mul_(sign)
            tensors[0].copy_(before[0])
            torch.cuda.synchronize()
            if graph is None:
                engine.run()
            else:
                graph.replay()
            torch.cuda.synchronize()
            wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in before]
            exact = packed_rotary_cached_attention.eager(*wide, num_heads=H, num_kv_heads=G)[0]
            same, *caches = packed_rotary_cached_attention.eager(*before, num_heads=H, num_kv_heads=G)
            assert _rmse(out, exact) <= RATIO * _rmse(same, exact) + 1e-7
            for got, wanted in zip(tensors[4:6], caches, strict=True):
                assert torch.equal(got, wanted)
            graph = graph or engine.record()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_cached_attention_is_as_near_to_fp32_as_its_definition(heads: str, dtype: torch.dtype) -> None:
    H, G, D, _ = HEADS[heads]
    q, cache = (dtype, ("B", "S", H, D)), (dtype, ("B", G, "T", D))
    engine = NodeEngine(
        "CachedAttention",
        dtype,
        [q, cache, cache, (torch.int64, ("B",))],
        [q],
        RANGES,
        {},
    )
    for S, starts, T in CALLS:
        case = AttentionCase(H=H, G=G, D=D, S=S, starts=starts, T=T)
        inputs: Any = attention_inputs(case, dtype, "cuda")
        out = torch.empty_like(inputs[0])
        engine.bind(inputs[:4], (out,))
        engine.run()
        _check_attention(inputs, out, dtype)
        graph = engine.record()
        # other queries and a shorter past in the same memory
        inputs[0].mul_(-1)
        inputs[3].sub_((inputs[3] > 0).long())
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        _check_attention(inputs, out, dtype)


def _check_attention(inputs: Any, out: torch.Tensor, dtype: torch.dtype) -> None:
    exact = reference_attention(inputs, torch.float32)
    assert not out.isnan().any()
    # one token has nothing to choose from: then both are exact
    assert _rmse(out, exact) <= RATIO * _rmse(reference_attention(inputs, dtype), exact) + 1e-7


NORMED = {
    "qkv": LinearCase(B=1, inputs=1000, outputs=(24 + 2 * 8) * 128, normed=True),
    "up": LinearCase(B=1, inputs=1000, outputs=776, normed=True, activation="relu_squared", bias=True),
    "head": LinearCase(B=1, inputs=1000, outputs=1056, normed=True, output="float32"),
}
ADDED = {
    "o": LinearCase(B=1, inputs=24 * 128, outputs=1000),
    "down": LinearCase(B=1, inputs=776, outputs=1000, bias=True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*NORMED, *ADDED])
def test_projections_are_as_near_to_fp32_as_their_definitions(name: str, dtype: torch.dtype) -> None:
    case = {**NORMED, **ADDED}[name]
    sizes: list[tuple[torch.dtype, tuple[int | str, ...]]] = [
        (dtype, ("B", *tensor.shape[1:]) if tensor.dim() == 3 else tuple(tensor.shape))
        for tensor in linear_inputs(case, dtype)
    ]
    out_dtype = torch.float32 if case.output == "float32" else dtype
    engine = NodeEngine(
        "LayerNormLinear" if case.normed else "LinearResidual",
        dtype,
        sizes,
        [(out_dtype, ("B", 1, case.outputs))],
        {"B": RANGES["B"]},
        case.attributes if case.normed else {},
    )
    for B in range(1, SEQUENCES + 1):
        case = dataclasses.replace(case, B=B)
        inputs = linear_inputs(case, dtype, "cuda")
        out = torch.empty(B, 1, case.outputs, dtype=out_dtype, device="cuda")
        engine.bind(inputs, (out,))
        engine.run()
        _check_projection(case, inputs, out)
        graph = engine.record()
        inputs[0].mul_(-1)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        _check_projection(case, inputs, out)


def _check_projection(case: LinearCase, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
    exact = definition(case, tuple(tensor.double() for tensor in inputs))
    assert not out.isnan().any()
    assert _rmse(out, exact) <= RATIO * _rmse(definition(case, inputs), exact)
