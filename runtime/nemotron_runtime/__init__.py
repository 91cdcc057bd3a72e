"""The torch-free runtime: bundles, executors, the engine over them, sampling, tokenizer, generation."""

from __future__ import annotations

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.chat import ChatResult
from nemotron_runtime.engine.results import Generation, Timings
from nemotron_runtime.model import Model, Result, TextChunk, load
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.tasks import Answer, Classification, Tag
from nemotron_runtime.text.tokenizer import Tokenizer

__all__ = [
    "Answer",
    "Bundle",
    "ChatResult",
    "Classification",
    "Generation",
    "GenerationParams",
    "Limits",
    "Model",
    "Result",
    "Tag",
    "TextChunk",
    "Timings",
    "Tokenizer",
    "load",
]
