"""The torch-free runtime: bundles, sessions, KV cache, sampling, tokenizer, generation."""

from __future__ import annotations

from nemotron_runtime.bundle import Bundle
from nemotron_runtime.limits import Limits
from nemotron_runtime.model import Model, Result, TextChunk, load
from nemotron_runtime.params import GenerationParams
from nemotron_runtime.results import Generation, Timings
from nemotron_runtime.tokenizer import Tokenizer

__all__ = [
    "Bundle",
    "Generation",
    "GenerationParams",
    "Limits",
    "Model",
    "Result",
    "TextChunk",
    "Timings",
    "Tokenizer",
    "load",
]
