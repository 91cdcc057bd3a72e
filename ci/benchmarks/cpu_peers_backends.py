"""What else generates text from the same checkpoint: ONNX Runtime GenAI, llama.cpp, transformers with torch.compile.

Each is driven by its own library's shortest path for one sequence and greedy search. `scores` gives the logits of a
prompt's last token, for the comparison that comes before the measurement.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, ClassVar

import numpy as np
from genai_peer import GenaiBackend, Peer

from nemotron_export.bench.backends import BACKENDS, Description
from nemotron_export.bench.backends.base import Ids
from nemotron_export.bench.backends.eager import EagerBackend

__all__ = ["CompiledBackend", "GenaiBackend", "LlamaBackend"]

_UBATCH = 512


class LlamaBackend(Peer):
    """A GGUF file on llama.cpp, through the C functions that llama-cpp-python binds.

    Options: site, the folder that `pip install --target` put llama-cpp-python into; capacity; kv, the cache's f16 or
    f32.
    """

    kind: ClassVar[str] = "llama"

    def prepare(self) -> None:
        sys.path.append(self.options["site"])
        import llama_cpp

        @llama_cpp.llama_log_callback
        def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
            if level >= 4:  # errors
                sys.stderr.write(text.decode(errors="replace"))

        self._llama = llama_cpp
        self._silent = silent  # the library keeps the pointer
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def load(self) -> Description:
        llama = self._llama
        self._model = llama.llama_model_load_from_file(
            self.options["path"].encode(), llama.llama_model_default_params()
        )
        assert self._model, "llama.cpp loaded the model"
        params = llama.llama_context_default_params()
        params.n_ctx = self.options["capacity"]
        params.n_batch = params.n_ubatch = _UBATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = {"f16": llama.GGML_TYPE_F16, "f32": llama.GGML_TYPE_F32}[self.options["kv"]]
        self._context = llama.llama_init_from_model(self._model, params)
        assert self._context, "llama.cpp made the context"
        return self._description()

    def reset(self, sequences: int, capacity: int) -> None:
        assert sequences == 1
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def prefill(self, ids_BS: Ids) -> Ids:
        self._feed(ids_BS[0])
        return self._next()

    def decode(self, tokens_B: Ids) -> Ids:
        self._feed(tokens_B)
        return self._next()

    def scores(self, ids_S: Ids) -> np.ndarray:
        """Logits [V] after a prompt."""
        self.reset(1, len(ids_S))
        self._feed(ids_S)
        return self._logits().copy()

    def close(self) -> None:
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _feed(self, ids_S: Ids) -> None:
        tokens = (self._llama.llama_token * len(ids_S))(*ids_S.tolist())
        # without positions and flags: after what the context holds, logits of the last token
        code = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(tokens, len(ids_S)))
        assert code == 0, f"llama_decode gave {code}"

    def _logits(self) -> np.ndarray:
        pointer = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.options["description"]["vocab_size"],))

    def _next(self) -> Ids:
        return np.array([self._logits().argmax()])


class CompiledBackend(EagerBackend):
    """transformers' model and static cache, its forward pass through torch.compile; compiled in the warm-up rounds.

    Options: those of :class:`Peer`.
    """

    kind: ClassVar[str] = "compiled"

    def load(self) -> Description:
        import torch
        import transformers

        self._model = transformers.NemotronForCausalLM.from_pretrained(
            self.options["path"], dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._model.forward = torch.compile(self._model.forward)
        self._past: Any = None
        return Description(**self.options["description"])

    def reset(self, sequences: int, capacity: int) -> None:
        import transformers

        self._past = transformers.StaticCache(config=self._model.config, max_cache_len=capacity)


BACKENDS.update({cls.kind: cls for cls in (LlamaBackend, CompiledBackend)})
