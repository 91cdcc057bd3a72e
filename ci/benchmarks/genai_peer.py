"""ONNX Runtime GenAI: its backend for the bench, and its own model builder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nemotron_export.bench.backends import BACKENDS, Backend, BackendSpec, BenchRequest, Description
from nemotron_export.bench.backends.base import Ids

__all__ = ["GenaiBackend", "Peer", "builder_command", "offline"]


class Peer(Backend):
    """Options: path, description (the fields of `Description`), and those of the kind."""

    @classmethod
    def specs(cls, request: BenchRequest) -> list[BackendSpec]:
        raise AssertionError("the script names the specs of peers itself")

    def _description(self) -> Description:
        return Description(**self.options["description"])


class GenaiBackend(Peer):
    """A folder with genai_config.json on ONNX Runtime GenAI.

    Options: see :class:`Peer`; provider_options of CUDA, which are set over those of the folder ({} for the CPU).
    """

    kind: ClassVar[str] = "genai"

    def prepare(self) -> None:
        import onnxruntime_genai  # noqa: F401

    def load(self) -> Description:
        import onnxruntime_genai as og

        config = og.Config(self.options["path"])
        for name, value in self.options.get("provider_options", {}).items():
            config.set_provider_option("cuda", name, value)
        session = {"intra_op_num_threads": self.threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)
        self._generator: Any = None
        return self._description()

    def reset(self, sequences: int, capacity: int) -> None:
        import onnxruntime_genai as og

        self._generator = None
        params = og.GeneratorParams(self._model)
        # min_length: the end of the sequence is no reason to stop
        length = capacity + 1
        params.set_search_options(do_sample=False, batch_size=sequences, max_length=length, min_length=length)
        self._generator = og.Generator(self._model, params)

    def prefill(self, ids_BS: Ids) -> Ids:
        self._generator.append_tokens(ids_BS.astype(np.int32))
        return self._next()

    def decode(self, tokens_B: Ids) -> Ids:
        return self._next()

    def scores(self, ids_S: Ids) -> np.ndarray:
        """Logits [V] after a prompt."""
        self.reset(1, len(ids_S))
        self._generator.append_tokens(ids_S[None].astype(np.int32))
        return self._generator.get_logits().reshape(-1, self.options["description"]["vocab_size"])[-1]

    def close(self) -> None:
        self._generator = self._model = None

    def _next(self) -> Ids:
        # it feeds the token that it wrote last
        self._generator.generate_next_token()
        return self._generator.get_next_tokens().astype(np.int64)


def builder_command(
    checkpoint: Path, output: Path, precision: str, provider: str, cache: Path, extra: Sequence[str] = ()
) -> list[str]:
    """The command of GenAI's builder: precision "fp32", "bf16", "int4", …; provider "cpu" or "cuda"."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint), "-o", str(output)]
    command += ["-p", precision, "-e", provider, "-c", str(cache)]
    return [*command, "--extra_options", *extra] if extra else command


def offline() -> dict[str, str]:
    """The environment in which it reads the checkpoint's folder and nothing from the network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


BACKENDS[GenaiBackend.kind] = GenaiBackend
