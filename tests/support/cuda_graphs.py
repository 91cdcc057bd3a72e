"""Targets for CUDA whose graphs are run by ONNX Runtime's CPU kernels, and the models that they are judged with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from nemotron_graphs.targets import TARGETS

__all__ = ["CASES", "CPU", "on_cpu"]

CPU = "CPUExecutionProvider"
# name → run dtype, and what differs from the usual config
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped": ("float32", {}),
    "biases-multi-head": ("float32", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    # 4 rotated pairs: the rotation stays in front of the attention, and q, k and v stay three products
    "odd-rotary": ("float32", {"partial_rotary_factor": 0.25}),
    "grouped-fp16": ("float16", {}),
}


@contextmanager
def on_cpu(name: str) -> Iterator[None]:
    """The target's graphs name the CPU's provider, and may be fp32."""
    target = TARGETS[name]
    executor = target.executor.removesuffix("-cuda")
    changed = replace(target, dtypes=("float32", "float16"), executor=executor, provider=CPU, device="cpu", runner="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, name, changed)
        yield
