"""The executor of a bundle that is also a folder for ONNX Runtime GenAI: its contract, driven by this runtime.

Shapes: B sequences, S new tokens, K positions whose logits are wanted, V vocabulary, N tokens that the mask counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_formats.cache import GENAI_CACHES

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.batch import Ids
from nemotron_runtime.executors.onnxruntime.bindings import bind_input, bind_output, check_names
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor
from nemotron_runtime.sampling.device import DeviceSampler, Sampling

__all__ = ["GenaiExecutor"]


class GenaiExecutor(OnnxRuntimeExecutor):
    """Runs ``input_ids``, ``attention_mask`` and past key/values to the logits of every token.

    Past and present are one buffer per layer and kind (GenAI's ``past_present_share_buffer``), so a step copies no
    cache. Prompts go one by one, without padding; a decode step takes all sequences, each with as many ones in its
    mask as it has tokens. Arguments and errors are those of :class:`OnnxRuntimeExecutor`.
    """

    cache_names = GENAI_CACHES
    dtype_remedy = "run this bundle with ONNX Runtime GenAI, or build with --dtype float16"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle, threads)
        self._one_by_one = True
        self._mask = np.zeros(0, np.int64)

    def _check_names(self, bundle: Bundle) -> None:
        check_names(bundle, self._session, self.caches, inputs=("input_ids", "attention_mask"))

    def make_caches(self, sequences: int, capacity: int) -> None:
        """See :meth:`PaddedExecutor.make_caches`."""
        super().make_caches(sequences, capacity)
        self._mask = np.zeros(sequences * capacity, np.int64)

    def step(
        self, tokens_B: Ids, query_start_B: Ids, advancing_B: npt.NDArray[np.bool_] | None, sampling: Sampling | None
    ) -> DeviceSampler:
        """See :meth:`PaddedExecutor.step`: of a step's binding the mask alone is bound anew."""
        self._bind_mask((self._step or self._make_step()).binding, query_start_B + 1)
        return super().step(tokens_B, query_start_B, advancing_B, sampling)

    def _run(self, sequence: int, inputs: tuple[Ids, ...], logits_BKV: npt.NDArray[Any]) -> None:
        input_ids_BS, query_start_B, query_length_B, logits_index_BK = inputs
        ids_1S = np.ascontiguousarray(input_ids_BS)
        logits_1SV = np.empty((*ids_1S.shape, self.output_size), self._logits_dtype)
        binding = self._binding(sequence)
        bind_input(binding, "input_ids", ids_1S)
        self._bind_mask(binding, query_start_B + query_length_B)
        bind_output(binding, self._output, logits_1SV)
        self._session.run_with_iobinding(binding)
        logits_BKV[0] = logits_1SV[0, logits_index_BK[0]]

    def _bind_mask(self, binding: Any, tokens_B: Ids) -> None:
        """Of sequences that have ``tokens_B`` tokens, the new ones included."""
        B, N = len(tokens_B), int(tokens_B.max())
        mask_BN = self._mask[: B * N].reshape(B, N)
        np.less(np.arange(N), tokens_B[:, None], out=mask_BN)
        bind_input(binding, "attention_mask", mask_BN)
