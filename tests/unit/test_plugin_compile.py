"""Kernels compiled ahead of time, without a GPU, and the records kept beside them."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from nemotron_errors import BundleError, GraphError

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")

from nemotron_plugins.compiling.compiler import ARCHITECTURES, compile_kernel
from nemotron_plugins.launches.attention import decode_splits
from nemotron_plugins.launches.launch import Gpu, Launch, LaunchRecord
from support.kernel_requests import MINITRON_4B

# bytes that a block may ask for, from NVIDIA's table of compute capabilities
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
# of the kernels of a model; the others differ in shapes alone. Decode splits the cache of two sequences into 16 parts,
# of eight into 4
KERNELS = {
    "attention": ("update.decode", "attention.r2", "attention.r8", "attention.combine2", "attention.prefill",
                  "fused.r2", "fused.r8"),
    "step": ("qkv.r1", "head.r1", "up.norm", "up.r8", "head.r8", "o.r1", "down.r4", "Argmax.argmax",
             "Argmax.argmax_combine", "TopCandidates.candidates", "TopCandidates.candidates_merge"),
}  # fmt: skip


def _launches(architecture: int, kernels: str = "attention", head_dim: int = 128) -> list[Launch]:
    sizes = dataclasses.replace(MINITRON_4B, head_dim=head_dim)
    launches = sizes.launches(Gpu(architecture, 132))
    return [launches[key] for key in KERNELS[kernels]]


@pytest.mark.parametrize(("kernels", "head_dim"), [("attention", 128), ("attention", 192), ("step", 128)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_for_every_architecture(architecture: int, kernels: str, head_dim: int) -> None:
    for launch in _launches(architecture, kernels, head_dim):
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
    assert decode_splits(kv_heads=8, sequences=1, capacity=4096, multiprocessors=132) == 64
    assert decode_splits(kv_heads=8, sequences=1, capacity=4096, multiprocessors=108) == 32
    assert decode_splits(kv_heads=8, sequences=8, capacity=4096, multiprocessors=132) == 4
    assert decode_splits(kv_heads=8, sequences=64, capacity=4096, multiprocessors=132) == 1
    # a part of less than a tile would stay empty
    assert decode_splits(kv_heads=8, sequences=1, capacity=100, multiprocessors=132) == 4
