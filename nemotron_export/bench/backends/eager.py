"""Eager PyTorch: the reference model, sdpa attention, a static or a dynamic KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nemotron_errors import MissingDependencyError, RequestError
from nemotron_formats.dtypes import RUN_DTYPES, item_bytes

from nemotron_export.bench.backends.base import Backend, BackendSpec, BenchRequest, Description, Ids
from nemotron_export.bench.options import EAGER_CACHES
from nemotron_export.bench.traffic import kv_bytes_per_token, read_parameters, total_parameters
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.extras import require

if TYPE_CHECKING:
    from nemotron_export.model import NemotronForCausalLM
    from nemotron_export.model.cache import Cache

__all__ = ["EAGER_DEVICES", "EagerBackend"]

EAGER_DEVICES = ("cpu", "cuda")


class EagerBackend(Backend):
    """Options: checkpoint, dtype, cache, device."""

    kind: ClassVar[str] = "eager"
    _model: NemotronForCausalLM
    _past: Cache

    @classmethod
    def specs(cls, request: BenchRequest) -> list[BackendSpec]:
        """One per dtype and kind of cache: they differ in speed and in peak memory."""
        require("torch", "which eager PyTorch is")
        if request.checkpoint is None and not request.bundles:
            raise RequestError("no checkpoint", "a folder for eager PyTorch", "name it with --checkpoint")
        folder = request.bundles[0].weights_directory if request.checkpoint is None else request.checkpoint
        checkpoint = Checkpoint.open(folder)
        for bundle in request.bundles:
            if bundle.manifest.model.config != checkpoint.config.to_dict():
                found = f"{bundle.directory} was built from another model"
                remedy = "name the bundles' checkpoint with --checkpoint, or measure them one after another"
                raise RequestError(found, "bundles of the checkpoint they are compared with", remedy, where=str(folder))
        own = (bundle.manifest.dtype for bundle in request.bundles)
        dtypes = request.options.eager_dtypes or tuple(dict.fromkeys(("float32", *own, "bfloat16")))
        _check_known("--eager-dtype", dtypes, RUN_DTYPES)
        _check_known("--eager-cache", request.options.eager_caches, EAGER_CACHES)
        _check_known("--eager-device", (request.options.eager_device,), EAGER_DEVICES)
        device = request.options.eager_device
        place = ", cuda" if device == "cuda" else ""
        return [
            BackendSpec(
                cls.kind,
                f"eager {dtype}, sdpa, {cache} cache{place}",
                {"checkpoint": str(checkpoint.directory), "dtype": dtype, "cache": cache, "device": device},
                total_parameters(checkpoint.config, tied=checkpoint.tied) * item_bytes(dtype),
                device,
            )
            for dtype in dict.fromkeys(dtypes)
            for cache in dict.fromkeys(request.options.eager_caches)
        ]

    def prepare(self) -> None:
        import torch

        import nemotron_export.model.load  # noqa: F401

        torch.set_num_threads(self.threads)
        if self.options["device"] == "cuda" and not torch.cuda.is_available():
            found, expected = f"PyTorch {torch.__version__} that sees no GPU", "a GPU that it can use"
            raise MissingDependencyError(
                found, expected, "install a build for CUDA, or --eager-device cpu", where="torch"
            )

    def load(self) -> Description:
        import torch

        from nemotron_export.model import NemotronForCausalLM
        from nemotron_export.model.cache import DynamicCache

        dtype = self.options["dtype"]
        checkpoint = Checkpoint.open(self.options["checkpoint"])
        self._model = NemotronForCausalLM.from_checkpoint(
            checkpoint, getattr(torch, dtype), device=self.options["device"]
        )
        self._past = DynamicCache()
        config = checkpoint.config
        return Description(
            dtype, config.vocab_size, read_parameters(config) * item_bytes(dtype), kv_bytes_per_token(config, dtype)
        )

    def reset(self, sequences: int, capacity: int) -> None:
        from nemotron_export.model.cache import DynamicCache, StaticCache

        self._past = DynamicCache() if self.options["cache"] == "dynamic" else StaticCache(capacity)

    def prefill(self, ids_BS: Ids) -> Ids:
        return self._next(ids_BS)

    def decode(self, tokens_B: Ids) -> Ids:
        return self._next(tokens_B[:, None])

    def device_peak_bytes(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated() if self.options["device"] == "cuda" else None

    def close(self) -> None:
        del self._model, self._past

    def _next(self, ids_BS: Ids) -> Ids:
        import torch

        with torch.inference_mode():
            logits = self._model(
                torch.from_numpy(ids_BS).to(self._model.device), past_key_values=self._past, use_cache=True,
                logits_to_keep=1,
            ).logits  # fmt: skip
            return logits[:, -1].argmax(-1).cpu().numpy()


def _check_known(option: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not values:
        raise RequestError("nothing", f"some of {', '.join(known)}", "correct it", where=option)
    for value in values:
        if value not in known:
            raise RequestError(repr(value), f"some of {', '.join(known)}", "correct it", where=option)
