"""What a bundle's manifest says of its engines."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_formats.tensors import WeightInput

__all__ = ["RTXRecord", "TensorRTRecord"]


@dataclass(frozen=True)
class TensorRTRecord:
    """Two engines and what they were built with; they load with the same TensorRT on the same architecture alone.

    Attributes:
        version: of TensorRT, for example "10.6.0".
        architecture: of the GPU, for example "sm_90".
        gpu: its name.
        driver: version of the NVIDIA driver, or of the CUDA that it supports where only that could be read.
        prefill_engine: file name of the engine for several new tokens per sequence.
        decode_engine: file name of the engine for one new token per sequence.
        weights: in the order in which both engines take them; none where they hold them.
        kernels: architectures that the bundle has kernels for.
        cache_capacity: of a sequence's cache, where the engines take no other; 0 where they take any up to max_seq_len.
        embedded: whether each engine holds the weights.
    """

    version: str
    architecture: str
    gpu: str
    driver: str
    prefill_engine: str
    decode_engine: str
    weights: tuple[WeightInput, ...]
    kernels: tuple[str, ...] = ()
    cache_capacity: int = 0
    embedded: bool = False

    @property
    def has_plugins(self) -> bool:
        """Whether the engines hold this project's plugins; TensorRT's own layers want a cache of a fixed length."""
        return self.cache_capacity == 0


@dataclass(frozen=True)
class RTXRecord:
    """One engine of TensorRT for RTX per architecture; each takes prompts (profile 0) and decode steps (profile 1).

    Attributes:
        version: of TensorRT for RTX, for example "1.7.1".
        engines: architecture, for example "sm_89" → file name.
        cache_capacity: of a sequence's cache, no more and no less.
        weights: in the order in which the engines take them.
    """

    version: str
    engines: dict[str, str]
    cache_capacity: int
    weights: tuple[WeightInput, ...]
