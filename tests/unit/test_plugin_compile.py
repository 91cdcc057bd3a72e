"""Kernels compiled ahead of time, without a GPU, and the records kept beside them."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from nemotron_errors import BundleError, GraphError

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")

from nemotron_plugins.compiling.compiler import ARCHITECTURES, compile_kernel
from nemotron_plugins.launches.attention import (
    cached_attention_combine_rule,
    cached_attention_decode_rule,
    cached_attention_prefill_rule,
    decode_splits,
    rotary_cached_attention_decode_rule,
)
from nemotron_plugins.launches.launch import Launch, LaunchRecord
from nemotron_plugins.launches.rotary import rotary_kv_cache_update_rule
from support.kernel_specs import MINITRON_4B

# bytes that a block may ask for, from NVIDIA's table of compute capabilities
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
HEADS = {"query_heads": 24, "kv_heads": 8, "head_dim": 128}


def _launches(architecture: int, head_dim: int = 128) -> list[Launch]:
    heads, pdl = {**HEADS, "head_dim": head_dim}, architecture >= 90
    return [
        rotary_kv_cache_update_rule(**heads, rotary_dim=64, max_tokens=1, pdl=pdl),
        cached_attention_decode_rule(**heads, dtype="bfloat16", splits=16, pdl=pdl),
        cached_attention_decode_rule(**heads, dtype="bfloat16", splits=2, pdl=pdl),
        cached_attention_combine_rule(query_heads=24, head_dim=head_dim, splits=16, pdl=pdl),
        cached_attention_prefill_rule(**heads, dtype="bfloat16", architecture=architecture, pdl=pdl),
        rotary_cached_attention_decode_rule(**heads, rotary_dim=64, dtype="bfloat16", splits=16, pdl=pdl),
        rotary_cached_attention_decode_rule(**heads, rotary_dim=64, dtype="bfloat16", splits=2, pdl=pdl),
    ]


# of the kernels of a decode step; the others differ in shapes alone
STEP = (
    "layernorm_linear.qkv.r1", "layernorm_linear.head.r1", "layernorm_rows", "layernorm_linear.up.r8",
    "layernorm_linear.head.r8", "linear_residual.o.r1", "linear_residual.down.r4", "argmax", "argmax_combine",
    "candidates", "candidates_merge",
)  # fmt: skip


@pytest.mark.parametrize("kernels", ["attention", "attention, head_dim 192", "step"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_for_every_architecture(architecture: int, kernels: str) -> None:
    if kernels == "step":
        step = MINITRON_4B.launches(architecture)
        launches = [step[key] for key in STEP]
    else:
        launches = _launches(architecture, 192 if "192" in kernels else 128)
    for launch in launches:
        compiled = compile_kernel(launch, dtype="bfloat16", architecture=architecture)
        record = compiled.record
        assert compiled.cubin[:4] == b"\x7fELF"
        assert record.cubin_sha256 == hashlib.sha256(compiled.cubin).hexdigest()
        assert record.entry.encode() in compiled.cubin
        assert record.shared_bytes <= SHARED_MEMORY[architecture]
        assert record.hidden_arguments == ("global_scratch", "profile_scratch")
        assert (record.architecture, record.pdl) == (f"sm_{architecture}", architecture >= 90)
        assert LaunchRecord.from_json(record.to_json()) == record


def test_what_cannot_be_compiled_is_refused() -> None:
    launch = _launches(90)[0]
    with pytest.raises(GraphError, match="sm_75"):
        compile_kernel(launch, dtype="bfloat16", architecture=75)
    with pytest.raises(GraphError, match="int8"):
        compile_kernel(launch, dtype="int8", architecture=90)
    with pytest.raises(GraphError, match="programmatic dependent launch on sm_80"):
        compile_kernel(launch, dtype="bfloat16", architecture=80)


def test_broken_records_are_refused() -> None:
    record = compile_kernel(_launches(80)[2], dtype="float16", architecture=80).record
    text = record.to_json()
    for broken in ("{", "[]", text.replace('"entry"', '"entrance"'), text.replace('"times"', '"time"')):
        with pytest.raises(BundleError, match="compile the kernel again"):
            LaunchRecord.from_json(broken)
    assert dataclasses.replace(record, entry="other") != record


def test_grids_follow_the_sizes_of_a_call() -> None:
    rotary, decode, _, combine, prefill, fused, _ = _launches(90)
    assert rotary.grid_of(B=3, S=1) == (3, 20)
    assert decode.grid_of(B=3, S=1) == fused.grid_of(B=3, S=1) == (24, 16)
    assert combine.grid_of(B=3, S=1) == (72,)
    assert prefill.grid_of(B=3, S=100) == (3, 24)


def test_splits_give_every_multiprocessor_a_few_blocks_and_no_more() -> None:
    assert decode_splits(kv_heads=8, max_rows=1, slots=4096, multiprocessors=132) == 64
    assert decode_splits(kv_heads=8, max_rows=1, slots=4096, multiprocessors=108) == 32
    assert decode_splits(kv_heads=8, max_rows=8, slots=4096, multiprocessors=132) == 4
    assert decode_splits(kv_heads=8, max_rows=64, slots=4096, multiprocessors=132) == 1
    # a part of less than a tile would stay empty
    assert decode_splits(kv_heads=8, max_rows=1, slots=100, multiprocessors=132) == 4
