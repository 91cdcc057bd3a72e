"""The session of a bundle that is also a folder for ONNX Runtime GenAI: its contract, driven by this runtime.

Shapes: B rows, S new tokens, K positions whose logits are wanted, V vocabulary, G key/value heads, T cache slots,
D head_dim, N tokens that the mask counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.base import Ids, Logits, Session
from nemotron_runtime.executors.onnxruntime.graph import open_graph

__all__ = ["GenaiSession"]

_DTYPES = {"float32": np.float32, "float16": np.float16}


class GenaiSession(Session):
    """Runs ``input_ids``, ``attention_mask`` and past key/values to the logits of every token.

    Past and present are one buffer per layer and kind (GenAI's ``past_present_share_buffer``), so a step copies no
    cache. Prompts go row by row, without padding; a decode step takes all rows, each with as many ones in its mask as
    it has tokens.

    Args:
        bundle: the bundle.
        threads: threads within an op; ONNX Runtime's choice where None.

    Raises:
        MissingDependencyError: no onnxruntime, or none with the provider.
        BundleError: a dtype that numpy lacks, a graph that ONNX Runtime refuses or that is not what the manifest says,
            or a changed weights chunk.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        manifest = bundle.manifest
        super().__init__(manifest.model.vocab_size, manifest.limits, manifest.head.size)
        record, where = manifest.session, str(bundle.directory)
        if record.cache_dtype not in _DTYPES:
            remedy = "run this bundle with ONNX Runtime GenAI, or build with --dtype float16"
            raise BundleError(f"a {record.cache_dtype} cache", " or ".join(_DTYPES), remedy, where=where)
        self._dtype = _DTYPES[record.cache_dtype]
        self._heads, self._head_dim = manifest.model.num_kv_heads, manifest.model.head_dim
        pairs = [(layer, kind) for layer in range(manifest.model.num_layers) for kind in ("key", "value")]
        # past's name → present's name, and past's name → the buffer that is both
        self._present = {f"past_key_values.{layer}.{kind}": f"present.{layer}.{kind}" for layer, kind in pairs}
        self._caches: dict[str, npt.NDArray[Any]] = dict.fromkeys(self._present, np.zeros(0))
        self._session: Any = open_graph(bundle, str(bundle.file(record.graph)), threads)
        _check_names(bundle, self._session, self._present)
        self._bindings: dict[int, Any] = {}
        self._step: tuple[Ids, npt.NDArray[Any], Any] | None = None
        self._mask = np.zeros(0, np.int64)

    def allocate(self, rows: int, slots: int) -> None:
        """See :meth:`Session.allocate`."""
        assert self._session is not None, "the session is closed"
        # the bindings hold addresses of the arrays they go with
        self._bindings.clear()
        self._step = None
        for name in self._caches:
            self._caches[name] = np.zeros((rows, self._heads, slots, self._head_dim), self._dtype)
        self._mask = np.zeros(rows * slots, np.int64)

    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """See :meth:`Session.forward`."""
        B, K = logits_index_BK.shape
        logits_BKV = np.zeros((B, K, self.output_size), np.float32)
        for b in np.flatnonzero(query_length_B).tolist():
            row = slice(b, b + 1)
            ids_1S = np.ascontiguousarray(input_ids_BS[row, : query_length_B[b]])
            logits_1SV = np.empty((*ids_1S.shape, self.output_size), self._dtype)
            if b not in self._bindings:
                self._bindings[b] = self._new_binding(b)
            _bind(self._bindings[b], ids_1S, logits_1SV)
            self._run(self._bindings[b], query_start_B[row] + query_length_B[row])
            logits_BKV[b] = logits_1SV[0, logits_index_BK[b]]
        return logits_BKV

    def step(self, tokens_B: Ids, query_start_B: Ids) -> Logits:
        """See :meth:`Session.step`: one binding, made once per cache, of which the mask alone is bound anew."""
        if self._step is None:
            ids_B1 = np.zeros((self.rows, 1), np.int64)
            logits_B1V = np.zeros((self.rows, 1, self.output_size), self._dtype)
            binding = self._new_binding(None)
            _bind(binding, ids_B1, logits_B1V)
            self._step = ids_B1, logits_B1V, binding
        ids_B1, logits_B1V, binding = self._step
        ids_B1[:, 0] = tokens_B
        self._run(binding, query_start_B + 1)
        return logits_B1V[:, 0].astype(np.float32, copy=False)

    def close(self) -> None:
        """Frees the session and the caches."""
        self._bindings.clear()
        self._step = None
        self._caches.clear()
        self._session = None

    def _run(self, binding: Any, tokens_B: Ids) -> None:
        """One pass over rows whose masks count ``tokens_B`` tokens."""
        B, N = len(tokens_B), int(tokens_B.max())
        mask_BN = self._mask[: B * N].reshape(B, N)
        np.less(np.arange(N), tokens_B[:, None], out=mask_BN)
        binding.bind_input("attention_mask", "cpu", 0, np.int64, mask_BN.shape, mask_BN.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _new_binding(self, row: int | None) -> Any:
        """A binding of the caches of one row, or of all (None)."""
        binding = self._session.io_binding()
        for past, cache_BGTD in self._caches.items():
            part = cache_BGTD if row is None else cache_BGTD[row : row + 1]
            where = ("cpu", 0, self._dtype, part.shape, part.ctypes.data)
            binding.bind_input(past, *where)
            binding.bind_output(self._present[past], *where)
        return binding


def _bind(binding: Any, ids_BS: Ids, logits_BSV: npt.NDArray[Any]) -> None:
    """Binds by address: the arrays must live until the run is over."""
    binding.bind_input("input_ids", "cpu", 0, np.int64, ids_BS.shape, ids_BS.ctypes.data)
    binding.bind_output("logits", "cpu", 0, logits_BSV.dtype.type, logits_BSV.shape, logits_BSV.ctypes.data)


def _check_names(bundle: Bundle, session: Any, present: dict[str, str]) -> None:
    record = bundle.manifest.session
    for what, values, recorded, expected in (
        ("inputs", session.get_inputs(), record.inputs, {"input_ids", "attention_mask", *present}),
        ("outputs", session.get_outputs(), record.outputs, {"logits", *present.values()}),
    ):
        names = {value.name for value in values}
        if not names == set(recorded) == expected:
            raise BundleError(
                f"{what} {', '.join(sorted(names))}", ", ".join(sorted(expected)), "build the bundle again",
                where=str(bundle.file(record.graph)),
            )  # fmt: skip
