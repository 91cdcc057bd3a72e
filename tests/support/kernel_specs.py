"""Models whose kernels are compiled in tests."""

from __future__ import annotations

from nemotron_plugins.kernel_spec import KernelSpec

__all__ = ["MINITRON_4B", "TINY"]

MINITRON_4B = KernelSpec(
    query_heads=24,
    kv_heads=8,
    head_dim=128,
    rotary_dim=64,
    hidden=3072,
    intermediate=9216,
    outputs=256000,
    epsilon=1e-5,
    dtype="bfloat16",
    max_batch=8,
    max_seq_len=4096,
    multiprocessors=132,
)
TINY = KernelSpec(
    query_heads=4,
    kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    hidden=64,
    intermediate=96,
    outputs=120,
    epsilon=1e-5,
    dtype="bfloat16",
    max_batch=1,
    max_seq_len=256,
    multiprocessors=132,
    attention_bias=True,
)
