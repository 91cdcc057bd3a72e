"""What a bundle's manifest says of its TensorRT engines."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_runtime.bundle.manifest_part import WeightPart

__all__ = ["RTXRecord", "TensorRTRecord", "TensorRTWeight"]


@dataclass(frozen=True)
class TensorRTWeight:
    """A weight that both engines take as an input.

    Attributes:
        name: of the input.
        dtype: numpy's name.
        shape: its dims.
        parts: its bytes are theirs, one part behind another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[WeightPart, ...]


@dataclass(frozen=True)
class TensorRTRecord:
    """Two engines and what they were built with; they load with the same TensorRT on the same architecture alone.

    Attributes:
        version: of TensorRT, for example "10.6.0".
        architecture: of the GPU, for example "sm_90".
        gpu: its name.
        driver: version of the NVIDIA driver, or of the CUDA that it supports where only that could be read.
        prefill_engine: file name of the engine for several new tokens per row.
        decode_engine: file name of the engine for one new token per row.
        max_logits: positions of a row, at most, whose logits one pass of the prefill engine gives.
        weights: in the order in which both engines take them; none where they hold them.
        prefill_workspace: bytes of activations that the prefill engine needs; 0 where unknown.
        decode_workspace: likewise the decode engine.
        kernels: architectures that the bundle has kernels for.
        cache_slots: of a row, where the engines take no other number; 0 where they take any up to max_seq_len.
        embedded: whether each engine holds the weights.
    """

    version: str
    architecture: str
    gpu: str
    driver: str
    prefill_engine: str
    decode_engine: str
    max_logits: int
    weights: tuple[TensorRTWeight, ...]
    prefill_workspace: int = 0
    decode_workspace: int = 0
    kernels: tuple[str, ...] = ()
    cache_slots: int = 0
    embedded: bool = False

    @property
    def has_plugins(self) -> bool:
        """Whether the engines hold this project's plugins; TensorRT's own layers want a cache of a fixed length."""
        return self.cache_slots == 0


@dataclass(frozen=True)
class RTXRecord:
    """One engine of TensorRT for RTX per architecture; each takes prompts (profile 0) and decode steps (profile 1).

    Attributes:
        version: of TensorRT for RTX, for example "1.7.1".
        engines: architecture, for example "sm_89" → file name.
        cache_slots: of a row, no more and no fewer.
        max_logits: positions of a row, at most, whose logits one pass gives.
        weights: in the order in which the engines take them.
    """

    version: str
    engines: dict[str, str]
    cache_slots: int
    max_logits: int
    weights: tuple[TensorRTWeight, ...]
