"""The KV cache's geometry and names, for graphs, engines and executors alike.

Shapes: B sequences, G key/value heads, T capacity (tokens that a sequence's cache can hold), D head_dim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_formats.dtypes import item_bytes

__all__ = [
    "CACHES",
    "GENAI_CACHES",
    "CacheNames",
    "CacheSpec",
    "cache_specs",
    "find_cache",
    "round_capacity",
    "total_bytes",
]

# capacities are rounded up to a multiple, so that requests of similar lengths share buffers and CUDA graphs
_CAPACITY_STEP = 256


@dataclass(frozen=True)
class CacheNames:
    """What a graph calls its caches; ``{layer}`` and ``{kind}`` ("k" or "v" in ``kinds``' words) are filled in.

    Attributes:
        input: of the cache that a graph takes.
        output: of the updated one, which is the same memory.
        kinds: what it calls keys and values.
    """

    input: str
    output: str
    kinds: tuple[str, str]


CACHES = CacheNames("{kind}_cache.{layer}", "{kind}_cache_out.{layer}", ("k", "v"))
GENAI_CACHES = CacheNames("past_key_values.{layer}.{kind}", "present.{layer}.{kind}", ("key", "value"))


@dataclass(frozen=True)
class CacheSpec:
    """The keys or the values of one layer: [B, G, T, D].

    Attributes:
        layer: number of the decoder layer.
        heads: G.
        head_dim: D.
        dtype: numpy's name.
        input_name: of the graph's input.
        output_name: of the graph's output, whose memory is the input's.
    """

    layer: int
    heads: int
    head_dim: int
    dtype: str
    input_name: str
    output_name: str

    def shape(self, sequences: int, capacity: int) -> tuple[int, int, int, int]:
        """[B, G, T, D] of a contiguous cache."""
        return sequences, self.heads, capacity, self.head_dim

    def bytes(self, tokens: int) -> int:
        """Bytes of so many tokens, of all sequences together."""
        return tokens * self.heads * self.head_dim * item_bytes(self.dtype)


def cache_specs(
    layers: int, heads: int, head_dim: int, dtype: str, names: CacheNames = CACHES
) -> tuple[CacheSpec, ...]:
    """Every cache of a model, layer by layer, keys before values."""
    return tuple(
        CacheSpec(
            layer, heads, head_dim, dtype,
            names.input.format(layer=layer, kind=kind), names.output.format(layer=layer, kind=kind),
        )
        for layer in range(layers)
        for kind in names.kinds
    )  # fmt: skip


def find_cache(name: str | None, names: CacheNames = CACHES) -> tuple[int, int] | None:
    """Layer and kind (0 keys, 1 values) of the cache whose input or output has this name; None for any other name."""
    for pattern in (names.input, names.output):
        kinds = "|".join(names.kinds)
        regex = re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{kind\}", f"(?P<kind>{kinds})")
        if match := re.fullmatch(regex, name or ""):
            return int(match["layer"]), names.kinds.index(match["kind"])
    return None


def round_capacity(tokens: int, most: int) -> int:
    """The capacity to allocate for so many tokens of a sequence: rounded up, and never above ``most``."""
    return min(-(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP, most)


def total_bytes(caches: Sequence[CacheSpec], tokens: int) -> int:
    """Bytes of all caches for so many tokens, of all sequences together."""
    return sum(cache.bytes(tokens) for cache in caches)
