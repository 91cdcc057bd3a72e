"""A bundle on the torch-free runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from nemotron_errors import LimitError, RequestError
from nemotron_formats.dtypes import item_bytes
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.sampling.device import GREEDY

from nemotron_export.bench.backends.base import Backend, BackendSpec, BenchRequest, Description, Ids
from nemotron_export.bench.shapes import Shape
from nemotron_export.bench.traffic import kv_bytes_per_token, read_parameters, total_parameters
from nemotron_export.checkpoint.expected import expected_tensors
from nemotron_export.config.config import NemotronConfig

if TYPE_CHECKING:
    from nemotron_runtime.model import Model

__all__ = ["BundleBackend"]


class BundleBackend(Backend):
    """Options: path, weights_dir, allow_unverified, executor."""

    kind: ClassVar[str] = "bundle"
    _model: Model

    @classmethod
    def specs(cls, request: BenchRequest) -> list[BackendSpec]:
        """One per bundle."""
        specs = []
        for bundle, name in zip(request.bundles, _names(request.bundles), strict=True):
            for shape in request.options.shapes:
                _check_fits(bundle, shape)
            config = NemotronConfig.from_dict(bundle.manifest.model.config)
            options = {
                "path": str(bundle.directory),
                "weights_dir": None if request.weights_dir is None else str(request.weights_dir),
                "allow_unverified": request.allow_unverified,
                "executor": bundle.manifest.session.executor,
            }
            embedding = total_parameters(config) - read_parameters(config)
            weights = _read_bytes(bundle.manifest, config) + embedding * item_bytes(bundle.manifest.dtype)
            # an engine for prompts and one for steps hold their own each
            copies = 2 if bundle.manifest.weights.mode == "embedded" else 1
            specs.append(BackendSpec(cls.kind, name, options, copies * weights, bundle.manifest.session.device))
        return specs

    def prepare(self) -> None:
        import nemotron_runtime.model  # noqa: F401

        if self.options["executor"] == "tensorrt":
            from nemotron_runtime.cuda import load_driver
            from nemotron_runtime.executors.tensorrt.module import load_tensorrt

            load_driver()
            load_tensorrt()
        else:
            import onnxruntime  # noqa: F401

    def load(self) -> Description:
        import nemotron_runtime

        self._model = nemotron_runtime.load(
            self.options["path"],
            weights_dir=self.options["weights_dir"],
            allow_unverified=self.options["allow_unverified"],
            threads=self.threads,
        )
        manifest = self._model.bundle.manifest
        config = NemotronConfig.from_dict(manifest.model.config)
        return Description(
            manifest.dtype,
            manifest.model.vocab_size,
            _read_bytes(manifest, config),
            kv_bytes_per_token(config, manifest.session.cache_dtype),
        )

    def reset(self, sequences: int, capacity: int) -> None:
        self._model.engine.reset(sequences, capacity)

    def prefill(self, ids_BS: Ids) -> Ids:
        return np.argmax(self._model.engine.prefill(list(ids_BS)), axis=-1)

    def decode(self, tokens_B: Ids) -> Ids:
        chosen_B = self._model.engine.decode(tokens_B, sampling=GREEDY).tokens
        assert chosen_B is not None
        return chosen_B

    def device_peak_bytes(self) -> int | None:
        return self._model.engine.executor.device_memory_peak

    def close(self) -> None:
        self._model.close()


def _read_bytes(manifest: Manifest, config: NemotronConfig) -> int:
    """Bytes of the weights that a decode step reads: quantized ones as codes and scales, the others in the dtype."""
    quantized = manifest.quantization
    if quantized is None:
        return read_parameters(config) * item_bytes(manifest.dtype)
    shapes = expected_tensors(config)
    rest = read_parameters(config) - sum(math.prod(shapes[name]) for name in quantized.tensors)
    return quantized.file.size + rest * item_bytes(manifest.dtype)


def _format(manifest: Manifest) -> str:
    quantized = manifest.quantization
    return "" if quantized is None else f" {quantized.format}"


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Target, dtype and quantization; where these are the same the folder's name, then a number where that is too."""
    names = [f"bundle {b.manifest.target} {b.manifest.dtype}{_format(b.manifest)}" for b in bundles]
    folders = [f"{name} ({b.directory.resolve().name})" for name, b in zip(names, bundles, strict=True)]
    names = [folder if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]
    return [f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _check_fits(bundle: Bundle, shape: Shape) -> None:
    where, limits = str(bundle.directory), bundle.manifest.limits
    if bundle.manifest.task != "causal-lm":
        found, remedy = f"a bundle for {bundle.manifest.task}", "measure bundles of language models"
        raise RequestError(found, "a bundle for causal-lm", remedy, where=where)
    if shape.batch > limits.max_batch:
        remedy = "lower --batch, or build with a larger --max-batch"
        raise LimitError(f"--batch {shape.batch}", f"at most {limits.max_batch} rows", remedy, where=where)
    if shape.capacity > limits.max_seq_len:
        found = f"{shape.prompt_tokens} prompt tokens and {shape.new_tokens} new ones"
        remedy = "lower --prompt-tokens, --context or --new-tokens, or build with a larger --max-seq-len"
        raise LimitError(found, f"at most {limits.max_seq_len} tokens a row", remedy, where=where)
