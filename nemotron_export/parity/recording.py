"""Values of eager PyTorch at chosen points, caught by hooks on the reference path.

Shapes: n tokens, k chosen positions, f values of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nemotron_export.model.cache import DynamicCache
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.parity.points import Point

__all__ = ["Recorder", "Values"]

Values = dict[str, npt.NDArray[np.float32]]


class Recorder:
    """A model and its dynamic cache; each :meth:`feed` continues after what was fed before."""

    def __init__(self, model: NemotronPreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache()

    @torch.inference_mode()
    def feed(self, ids: npt.NDArray[np.int64], points: Sequence[Point], positions: npt.NDArray[np.int64]) -> Values:
        """Runs new tokens through the model.

        Args:
            ids: int64 [n].
            positions: int64 [k], which of the new tokens.

        Returns:
            Point's name → float32 [k, f].
        """
        start = self._cache.get_seq_length()
        chosen = torch.from_numpy(positions)
        values: dict[str, torch.Tensor] = {}
        handles = [self._hook(point, values, chosen, len(ids)) for point in points if point.hook in ("input", "output")]
        try:
            out = self._model.base_model(torch.from_numpy(ids)[None], past_key_values=self._cache, use_cache=True)
            self._model.head(out.last_hidden_state[:, chosen])
        finally:
            for handle in handles:
                handle.remove()
        for point in points:
            if point.hook in ("key", "value"):
                assert point.layer is not None
                caches = self._cache.keys if point.hook == "key" else self._cache.values
                values[point.name] = caches[point.layer][0, :, start + chosen].transpose(0, 1)
        return {name: value.float().reshape(len(positions), -1).numpy().copy() for name, value in values.items()}

    def _hook(self, point: Point, values: dict[str, torch.Tensor], chosen: torch.Tensor, tokens: int) -> Any:
        module = self._model.get_submodule(point.hooked or point.module)

        def keep(value: torch.Tensor) -> None:
            if value.ndim == 4:
                # rotated heads [B, heads, S, D]
                value = value.transpose(1, 2)
            # the head is run at the chosen positions alone
            values[point.name] = (value[0, chosen] if value.shape[1] == tokens else value[0]).clone()

        if point.hook == "input":
            before: Callable[..., None] = lambda module, args: keep(args[0])  # noqa: E731
            return module.register_forward_pre_hook(before)

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            # a decoder layer gives its attention weights too
            keep(output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(after)
