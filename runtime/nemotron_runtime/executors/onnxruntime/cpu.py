"""The executor over ONNX Runtime, its KV cache in the host's memory and written in place.

Shapes: B sequences, S new tokens, K positions whose outputs are wanted, V values of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError
from nemotron_formats.cache import CACHES, CacheNames, cache_specs
from nemotron_formats.dtypes import DTYPES

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.batch import Ids, Logits
from nemotron_runtime.executors.onnxruntime.bindings import (
    ROW_INPUTS,
    TOKENS_OUTPUT,
    TOTAL_INPUT,
    bind_input,
    bind_output,
    check_names,
)
from nemotron_runtime.executors.onnxruntime.graph import open_graph
from nemotron_runtime.executors.padded import PaddedExecutor
from nemotron_runtime.sampling.device import DeviceSampler, HostSampler, Sampling

__all__ = ["OnnxRuntimeExecutor", "step_inputs"]

_ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass
class _Step:
    """A decode step's arrays, filled in place, and the binding that holds their addresses."""

    inputs: dict[str, Ids]
    total: npt.NDArray[np.int32]
    logits_B1V: npt.NDArray[Any]  # noqa: N815 (a shape-suffixed name)
    binding: Any


class OnnxRuntimeExecutor(PaddedExecutor):
    """Runs ``model.onnx`` on the provider that the bundle names.

    The caches are numpy arrays (``np.zeros``: pages that no token reached cost no memory), bound by address as input
    and output of the same run, so a step writes its tokens' entries and copies no cache.

    Args:
        bundle: the bundle.
        threads: threads within an op; ONNX Runtime's choice where None.

    Raises:
        MissingDependencyError: no onnxruntime, or none with the provider.
        BundleError: a graph that ONNX Runtime refuses or that is not what the manifest says; a changed weights chunk.
    """

    cache_names: ClassVar[CacheNames] = CACHES
    # numpy's names of what the caches may be
    cache_dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    dtype_remedy: ClassVar[str] = "build the bundle again with another --dtype"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        manifest, record = bundle.manifest, bundle.manifest.session
        model = manifest.model
        if record.cache_dtype not in self.cache_dtypes:
            found, expected = f"a {record.cache_dtype} cache", " or ".join(self.cache_dtypes)
            raise BundleError(found, expected, self.dtype_remedy, where=str(bundle.directory))
        caches = cache_specs(
            model.num_layers, model.num_kv_heads, model.head_dim, record.cache_dtype, self.cache_names
        )  # fmt: skip
        super().__init__(model.vocab_size, manifest.limits, manifest.head.size, caches)
        self._output = manifest.head.output
        self._one_by_one = record.prefill_rows == "one"
        self._cache_dtype = DTYPES[record.cache_dtype].storage
        # by the input's name
        self._buffers: dict[str, Any] = {}
        self._session: Any = self._open(bundle, threads)
        self._check_names(bundle)
        names = {value.name for value in self._session.get_inputs()}
        self._row_inputs = [name for name in ROW_INPUTS if name in names]
        self._takes_total = TOTAL_INPUT in names
        (logits,) = (value for value in self._session.get_outputs() if value.name == self._output)
        if logits.type not in _ELEMENT_TYPES:
            remedy = "build the bundle again with another --dtype"
            raise BundleError(f"logits of {logits.type}", "float32 or float16", remedy, where=str(bundle.directory))
        self._logits_dtype = _ELEMENT_TYPES[logits.type]
        # of prefill, by sequence; -1 for all
        self._bindings: dict[int, Any] = {}
        self._step: _Step | None = None

    def _open(self, bundle: Bundle, threads: int | None) -> Any:
        return open_graph(bundle, str(bundle.file(bundle.manifest.session.graph)), threads)

    def _check_names(self, bundle: Bundle) -> None:
        check_names(bundle, self._session, self.caches, optional=(*ROW_INPUTS, TOTAL_INPUT, TOKENS_OUTPUT))

    def make_caches(self, sequences: int, capacity: int) -> None:
        """See :meth:`PaddedExecutor.make_caches`."""
        assert self._session is not None, "the executor is closed"
        # the bindings hold addresses of the arrays they go with
        self._bindings.clear()
        self._step = None
        for cache in self.caches:
            self._buffers[cache.input_name] = np.zeros(cache.shape(sequences, capacity), self._cache_dtype)

    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """See :meth:`PaddedExecutor.forward`."""
        logits_BKV = np.zeros((*logits_index_BK.shape, self.output_size), self._logits_dtype)
        if not self._one_by_one:
            self._run(-1, (input_ids_BS, query_start_B, query_length_B, logits_index_BK), logits_BKV)
        else:
            for b in np.flatnonzero(query_length_B).tolist():
                one = slice(b, b + 1)
                ids_1S = input_ids_BS[one, : query_length_B[b]]
                self._run(b, (ids_1S, query_start_B[one], query_length_B[one], logits_index_BK[one]), logits_BKV[one])
        return logits_BKV.astype(np.float32, copy=False)

    def step(
        self, tokens_B: Ids, query_start_B: Ids, advancing_B: npt.NDArray[np.bool_] | None, sampling: Sampling | None
    ) -> DeviceSampler:
        """See :meth:`PaddedExecutor.step`: one binding, made once per cache, whose arrays are filled in place."""
        step = self._step or self._make_step()
        step.inputs["input_ids"][:, 0] = tokens_B
        step.inputs["query_start"][:] = query_start_B
        self._session.run_with_iobinding(step.binding)
        return HostSampler(step.logits_B1V[:, 0].astype(np.float32, copy=False))

    def close(self) -> None:
        """See :meth:`Executor.close`."""
        self._bindings.clear()
        self._step = None
        self._buffers.clear()
        self._session = None

    def _make_step(self) -> _Step:
        logits_B1V = np.zeros((self.sequences, 1, self.output_size), self._logits_dtype)
        # sequences of several lengths: the bound of all of them
        total = np.array(self.capacity, np.int32)
        step = _Step(step_inputs(self.sequences), total, logits_B1V, self._new_binding(-1))
        for name in self._row_inputs:
            bind_input(step.binding, name, step.inputs[name])
        if self._takes_total:
            bind_input(step.binding, TOTAL_INPUT, step.total)
        bind_output(step.binding, self._output, logits_B1V)
        self._step = step
        return step

    def _binding(self, sequence: int) -> Any:
        """The prefill binding of one sequence, or of all (-1), with its caches bound."""
        if sequence not in self._bindings:
            self._bindings[sequence] = self._new_binding(sequence)
        return self._bindings[sequence]

    def _new_binding(self, sequence: int) -> Any:
        binding = self._session.io_binding()
        for cache in self.caches:
            where = self._place(self._buffers[cache.input_name], sequence)
            binding.bind_input(cache.input_name, *where)
            binding.bind_output(cache.output_name, *where)
        return binding

    def _place(self, cache_BGTD: Any, sequence: int) -> tuple[Any, ...]:
        """Device, its number, element type, shape and address of a cache, or of one sequence's part of it."""
        part = cache_BGTD if sequence < 0 else cache_BGTD[sequence : sequence + 1]
        return "cpu", 0, part.dtype.type, part.shape, part.ctypes.data

    def _run_options(self) -> Any:
        """Options of the runs of :meth:`forward`."""
        return None

    def _run(self, sequence: int, inputs: tuple[Ids, ...], logits_BKV: npt.NDArray[Any]) -> None:
        """A pass of one sequence, or of all (-1); ``inputs`` are those of ``ROW_INPUTS``."""
        binding = self._binding(sequence)
        contiguous = dict(zip(ROW_INPUTS, map(np.ascontiguousarray, inputs), strict=True))
        for name in self._row_inputs:
            bind_input(binding, name, contiguous[name])
        total = np.array((contiguous["query_start"] + contiguous["query_length"]).max(), np.int32)
        if self._takes_total:
            bind_input(binding, TOTAL_INPUT, total)
        bind_output(binding, self._output, logits_BKV)
        self._session.run_with_iobinding(binding, self._run_options())


def step_inputs(sequences: int) -> dict[str, Ids]:
    """``ROW_INPUTS`` of a step of so many sequences."""
    arrays = (
        np.zeros((sequences, 1), np.int64),
        np.zeros(sequences, np.int64),
        np.ones(sequences, np.int64),
        np.zeros((sequences, 1), np.int64),
    )
    return dict(zip(ROW_INPUTS, arrays, strict=True))
