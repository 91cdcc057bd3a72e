"""What the scripts about peers share: ONNX Runtime GenAI's backend for the bench, and its own model builder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nemotron_export.bench.backends import BACKENDS, Backend, BackendSpec, BenchRequest, Description
from nemotron_export.bench.backends.base import Ids
from nemotron_export.bench.traffic import kv_bytes_per_token, read_parameters, total_parameters
from nemotron_export.config.config import NemotronConfig

__all__ = ["GenaiBackend", "Peer", "add_versions", "builder_command", "greedy", "peer_spec", "run_builder"]


class Peer(Backend):
    """Options: path, device, description (the fields of `Description`), and those of the kind."""

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


def peer_spec(
    kind: str, name: str, path: Path, config: NemotronConfig, dtype: str, bits: float, cache: str, *,
    table_bits: int = 32, device: str = "cpu", **options: Any,
) -> BackendSpec:  # fmt: skip
    """A peer before its process exists.

    `bits` are those of a weight that a step reads, with its share of a group's scale, `table_bits` those of a value of
    the input embedding; `cache` is the KV cache's dtype.
    """
    read, total = read_parameters(config), total_parameters(config)
    weights = int(read * bits / 8)
    described = Description(dtype, config.vocab_size, weights, kv_bytes_per_token(config, cache))
    options = {"path": str(path), "device": device, "description": vars(described), **options}
    return BackendSpec(kind, name, options, weights + (total - read) * table_bits // 8, device)


def builder_command(
    checkpoint: Path, output: Path, precision: str, provider: str = "cpu", extra: Sequence[str] = ()
) -> list[str]:
    """The command of GenAI's builder, which then reads the checkpoint's folder and nothing from the network.

    Its precision is "fp32", "bf16", "int4", …; the provider "cpu" or "cuda".
    """
    command = ["env", "HF_HUB_OFFLINE=1", sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-m", str(checkpoint), "-o", str(output), "-c", f"{output}-cache", "-p", precision, "-e", provider]
    return [*command, "--extra_options", *extra] if extra else command


def run_builder(checkpoint: Path, output: Path, precision: str) -> None:
    """Runs it for the CPU."""
    done = subprocess.run(builder_command(checkpoint, output, precision), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the builder failed:\n{done.stderr[-3000:]}")


def greedy(backend: Backend, ids_S: np.ndarray, count: int) -> list[int]:
    """So many tokens that a loaded backend writes after a prompt."""
    # the last token is not fed
    backend.reset(1, len(ids_S) + count - 1)
    tokens_B = backend.prefill(ids_S[None])
    tokens = [int(tokens_B[0])]
    while len(tokens) < count:
        tokens_B = backend.decode(tokens_B)
        tokens.append(int(tokens_B[0]))
    return tokens


def add_versions(versions: dict[str, str], names: Sequence[str], **where: Any) -> None:
    """Adds the versions of those that are installed; `where` is for `importlib.metadata.distributions`."""
    for each in distributions(**where):
        if each.metadata["Name"] in names:
            # the first one found is what is imported
            versions.setdefault(each.metadata["Name"], each.version)


BACKENDS[GenaiBackend.kind] = GenaiBackend
