"""Models whose kernels are compiled in tests: what the nodes of their graphs ask for.

Shapes: B sequences, S tokens, T cache capacity, H query heads, G key/value heads, D head_dim, R rotary_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_plugins.build import launches_of
from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.requests import KernelRequest, logits_request, request_of

__all__ = ["H100", "MINITRON_4B", "TINY", "ModelSizes"]

H100 = Gpu(90, 132)


@dataclass(frozen=True)
class ModelSizes:
    """A model's sizes and the limits of a build.

    Attributes:
        outputs: rows of the head's weight; 0 for a model without a head.
        biases: names of the projections that have one.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    hidden: int
    intermediate: int
    outputs: int
    dtype: str = "bfloat16"
    sequences: int = 1
    capacity: int = 256
    epsilon: float = 1e-5
    biases: tuple[str, ...] = ()

    @property
    def requests(self) -> dict[str, KernelRequest]:
        """By a name: of both graphs' nodes, and of the executor."""
        H, G, D, T = self.query_heads, self.kv_heads, self.head_dim, self.capacity
        packed = (H + 2 * G) * D
        cache, table = (None, G, None, D), (T, self.rotary_dim // 2)
        heads = {"num_heads": H, "num_kv_heads": G}

        def rotary(tokens: int | None) -> list[tuple[int | None, ...]]:
            return [(None, tokens, packed), table, table, (None, tokens), cache, cache, (None,)]

        nodes: dict[str, tuple[str, list[tuple[int | None, ...]], dict[str, Any]]] = {
            "update": ("PackedRotaryKVCacheUpdate", rotary(None), heads),
            "attention": ("CachedAttention", [(None, None, H, D), cache, cache, (None,)], {}),
            "fused": ("PackedRotaryCachedAttention", rotary(1), heads),
            "qkv": self._normed("qkv", packed),
            "up": self._normed("up", self.intermediate, activation="relu_squared"),
            "o": self._added("o", (H, D)),
            "down": self._added("down", (self.intermediate,)),
        }
        if self.outputs:
            nodes["head"] = self._normed("head", self.outputs, output="float32")
        found = {
            name: request_of(op, shapes, self.dtype, attributes, sequences=self.sequences, capacity=T)
            for name, (op, shapes, attributes) in nodes.items()
        }
        if self.outputs:
            found |= {op: logits_request(op, self.outputs) for op in ("Argmax", "TopCandidates")}
        return found

    def launches(self, gpu: Gpu = H100) -> dict[str, Launch]:
        """Every launch by ``name.variant``."""
        return {
            f"{name}.{variant}": launch
            for name, request in self.requests.items()
            for variant, launch in launches_of(request, gpu).items()
        }

    def _normed(self, name: str, outputs: int, activation: str = "none", output: str = "same") -> Any:
        I = self.hidden  # noqa: E741
        shapes = [(None, 1, I), (I,), (I,), (outputs, I), *([(outputs,)] if name in self.biases else [])]
        return "LayerNormLinear", shapes, {"epsilon": self.epsilon, "activation": activation, "output": output}

    def _added(self, name: str, inputs: tuple[int, ...]) -> Any:
        O, I = self.hidden, inputs[0] * (inputs[1] if inputs[1:] else 1)  # noqa: E741
        return (
            "LinearResidual",
            [(None, 1, *inputs), (O, I), (None, 1, O), *([(O,)] if name in self.biases else [])],
            {},
        )


MINITRON_4B = ModelSizes(
    query_heads=24, kv_heads=8, head_dim=128, rotary_dim=64, hidden=3072, intermediate=9216, outputs=256000,
    sequences=8, capacity=4096,
)  # fmt: skip
TINY = ModelSizes(
    query_heads=4, kv_heads=2, head_dim=32, rotary_dim=16, hidden=64, intermediate=96, outputs=120, biases=("qkv", "o")
)
