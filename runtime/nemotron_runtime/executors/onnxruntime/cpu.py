"""The session that runs a bundle's graph with ONNX Runtime, its KV cache written in place.

Shapes: B rows, S new tokens, K positions whose outputs are wanted, V values of each, G key/value heads, T cache slots,
D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.base import Ids, Logits, Session
from nemotron_runtime.executors.onnxruntime.graph import open_graph

__all__ = ["ROW_INPUTS", "TOKENS_OUTPUT", "TOTAL_INPUT", "OnnxRuntimeSession"]

_ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
ROW_INPUTS = ("input_ids", "query_start", "query_length", "logits_index")
# tokens of the longest row, the new ones included: what some kernels read on the host
TOTAL_INPUT = "total_sequence_length"
# the likeliest tokens, beside the logits
TOKENS_OUTPUT = "tokens"


class OnnxRuntimeSession(Session):
    """Runs ``model.onnx`` on the provider that the bundle names.

    The caches are numpy arrays (``np.zeros``: pages that no token reached cost no memory), bound by address as input
    and output of the same run, so a step writes its slots and copies no cache.

    Args:
        bundle: the bundle.
        threads: threads within an op; ONNX Runtime's choice where None.

    Raises:
        MissingDependencyError: no onnxruntime, or none with the provider.
        BundleError: a graph that ONNX Runtime refuses or that is not what the manifest says; a changed weights chunk.
    """

    # dtype of the cache → numpy's type that holds it, ONNX's number of it
    _cache_types: ClassVar[Mapping[str, tuple[Any, int]]] = {"float32": (np.float32, 1), "float16": (np.float16, 10)}

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        manifest = bundle.manifest
        super().__init__(manifest.model.vocab_size, manifest.limits, manifest.head.size)
        self._output = manifest.head.output
        self._by_row = manifest.session.prefill_rows == "one"
        self._cache_dtype = _cache_dtype(manifest.session.cache_dtype, self._cache_types, bundle)
        self._heads, self._head_dim = manifest.model.num_kv_heads, manifest.model.head_dim
        cache_names = [
            f"{kind}.{layer}" for layer in range(manifest.model.num_layers) for kind in ("k_cache", "v_cache")
        ]
        self._caches: dict[str, npt.NDArray[Any]] = dict.fromkeys(cache_names, np.zeros(0))
        self._session: Any = self._open(bundle, threads)
        names = _names(self._session.get_inputs())
        self._row_inputs = [name for name in ROW_INPUTS if name in names]
        self._takes_total = TOTAL_INPUT in names
        _check_names(bundle, self._session, cache_names)
        (logits,) = (value for value in self._session.get_outputs() if value.name == self._output)
        if logits.type not in _ELEMENT_TYPES:
            remedy = "build the bundle again with another --dtype"
            raise BundleError(f"logits of {logits.type}", "float32 or float16", remedy, where=str(bundle.directory))
        self._logits_dtype = _ELEMENT_TYPES[logits.type]
        self._bindings: dict[int, Any] = {}
        self._step: _Step | None = None

    def _open(self, bundle: Bundle, threads: int | None) -> Any:
        return open_graph(bundle, str(bundle.file(bundle.manifest.session.graph)), threads)

    def allocate(self, rows: int, slots: int) -> None:
        """See :meth:`Session.allocate`."""
        assert self._session is not None, "the session is closed"
        # the bindings hold addresses of the arrays they go with
        self._bindings.clear()
        self._step = None
        shape_BGTD = (rows, self._heads, slots, self._head_dim)
        for name in self._caches:
            self._caches[name] = np.zeros(shape_BGTD, self._cache_dtype)

    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """See :meth:`Session.forward`."""
        B, S = input_ids_BS.shape
        K = logits_index_BK.shape[1]
        if S == K == 1 and (query_length_B == 1).all():
            return self.step(input_ids_BS[:, 0], query_start_B)[:, None]
        logits_BKV = np.zeros((B, K, self.output_size), self._logits_dtype)
        if not self._by_row:
            inputs = (input_ids_BS, query_start_B, query_length_B, logits_index_BK)
            self._run(self._binding(None), inputs, logits_BKV)
        else:
            for b in np.flatnonzero(query_length_B):
                row = slice(b, b + 1)
                ids = input_ids_BS[row, : query_length_B[b]]
                inputs = (ids, query_start_B[row], query_length_B[row], logits_index_BK[row])
                self._run(self._binding(int(b)), inputs, logits_BKV[row])
        return logits_BKV.astype(np.float32, copy=False)

    def step(self, tokens_B: Ids, query_start_B: Ids) -> Logits:
        """See :meth:`Session.step`: one binding, made once per cache, whose arrays are filled in place."""
        step = self._step or self._make_step()
        step.input_ids_B1[:, 0] = tokens_B
        step.query_start_B[:] = query_start_B
        self._session.run_with_iobinding(step.binding)
        return step.logits_B1V[:, 0].astype(np.float32, copy=False)

    def close(self) -> None:
        """Frees the session and the caches."""
        self._bindings.clear()
        self._step = None
        self._caches.clear()
        self._session = None

    def _make_step(self) -> _Step:
        step = _Step(self.rows, self.output_size, self._logits_dtype)
        step.binding = self._new_binding(None)
        self._bind(step.binding, step.inputs(), step.logits_B1V)
        if self._takes_total:
            # rows of several lengths: the bound of all of them
            step.total[...] = self.slots
            step.binding.bind_input(TOTAL_INPUT, "cpu", 0, np.int32, (), step.total.ctypes.data)
        self._step = step
        return step

    def _binding(self, row: int | None) -> Any:
        """The prefill binding of one row, or of all (None), with its caches bound."""
        key = -1 if row is None else row
        if key not in self._bindings:
            self._bindings[key] = self._new_binding(row)
        return self._bindings[key]

    def _new_binding(self, row: int | None) -> Any:
        binding = self._session.io_binding()
        for name, cache_BGTD in self._caches.items():
            where = self._place(cache_BGTD, row)
            binding.bind_input(name, *where)
            binding.bind_output(name.replace("_cache.", "_cache_out."), *where)
        return binding

    def _place(self, cache_BGTD: Any, row: int | None) -> tuple[Any, ...]:
        """Device, its number, element type, shape and address of a cache, or of one row of it."""
        part = cache_BGTD if row is None else cache_BGTD[row : row + 1]
        return "cpu", 0, part.dtype.type, part.shape, part.ctypes.data

    def _run_options(self) -> Any:
        """Options of the runs of :meth:`forward`."""
        return None

    def _bind(self, binding: Any, inputs: tuple[Ids, ...], logits_BKV: npt.NDArray[Any]) -> None:
        for name, value in zip(ROW_INPUTS, inputs, strict=True):
            if name in self._row_inputs:
                binding.bind_input(name, "cpu", 0, np.int64, value.shape, value.ctypes.data)
        binding.bind_output(self._output, "cpu", 0, self._logits_dtype, logits_BKV.shape, logits_BKV.ctypes.data)

    def _run(self, binding: Any, inputs: tuple[Ids, ...], logits_BKV: npt.NDArray[Any]) -> None:
        # bound by address: these must live until the run is over
        contiguous = tuple(np.ascontiguousarray(value) for value in inputs)
        self._bind(binding, contiguous, logits_BKV)
        if self._takes_total:
            total = np.array((contiguous[1] + contiguous[2]).max(), np.int32)
            binding.bind_input(TOTAL_INPUT, "cpu", 0, np.int32, (), total.ctypes.data)
        self._session.run_with_iobinding(binding, self._run_options())


class _Step:
    """The arrays of a decode step, bound once."""

    def __init__(self, rows: int, output_size: int, logits_dtype: Any) -> None:
        self.input_ids_B1 = np.zeros((rows, 1), np.int64)
        self.query_start_B = np.zeros(rows, np.int64)
        self.query_length_B = np.ones(rows, np.int64)
        self.logits_index_B1 = np.zeros((rows, 1), np.int64)
        self.total = np.zeros((), np.int32)
        self.logits_B1V = np.zeros((rows, 1, output_size), logits_dtype)
        self.binding: Any = None

    def inputs(self) -> tuple[Ids, ...]:
        """In the order of the row inputs."""
        return self.input_ids_B1, self.query_start_B, self.query_length_B, self.logits_index_B1


def _cache_dtype(name: str, types: Mapping[str, tuple[Any, int]], bundle: Bundle) -> np.dtype[Any]:
    if name not in types:
        remedy = "build the bundle again with another --dtype"
        raise BundleError(f"cache dtype {name}", " or ".join(types), remedy, where=str(bundle.directory))
    return np.dtype(types[name][0])


def _check_names(bundle: Bundle, session: Any, cache_names: list[str]) -> None:
    record, where = bundle.manifest.session, str(bundle.file(bundle.manifest.session.graph))
    known = {*ROW_INPUTS, TOTAL_INPUT, *cache_names}
    inputs, outputs = _names(session.get_inputs()), _names(session.get_outputs())
    if set(inputs) != set(record.inputs) or not set(cache_names) <= set(inputs) <= known:
        raise BundleError(
            f"inputs {', '.join(inputs)}", ", ".join(record.inputs), "build the bundle again", where=where
        )
    expected = {bundle.manifest.head.output, *(name.replace("_cache.", "_cache_out.") for name in cache_names)}
    if set(outputs) != set(record.outputs) or set(outputs) - {TOKENS_OUTPUT} != expected:
        raise BundleError(
            f"outputs {', '.join(outputs)}", ", ".join(record.outputs), "build the bundle again", where=where
        )


def _names(values: Any) -> list[str]:
    return [value.name for value in values]
