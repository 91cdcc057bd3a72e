"""The ONNX Runtime session on an NVIDIA GPU: caches and a decode step's arrays on the device, one CUDA graph per step.

Shapes: B rows, V values per position, G key/value heads, T cache slots, D head_dim.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import MissingDependencyError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.base import Ids, Logits, Session
from nemotron_runtime.executors.onnxruntime.candidates import CandidateStep, check_candidate_graph
from nemotron_runtime.executors.onnxruntime.cpu import ROW_INPUTS, TOKENS_OUTPUT, TOTAL_INPUT, OnnxRuntimeSession
from nemotron_runtime.executors.onnxruntime.graph import import_onnxruntime, open_graph
from nemotron_runtime.executors.onnxruntime.placement import RECORD_PLACEMENT, check_placement
from nemotron_runtime.sampling.candidates import Candidates

__all__ = ["CUDA_PROVIDER", "OnnxRuntimeCudaSession", "start_cuda"]

CUDA_PROVIDER = "CUDAExecutionProvider"
_DEVICE = ("cuda", 0)
_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"
# caches of nearly the same length share a size, and so their buffers and their CUDA graph
_SLOT_STEP = 256


class OnnxRuntimeCudaSession(OnnxRuntimeSession):
    """Runs ``model.onnx`` on CUDA.

    A decode step has static buffers on the device: two small arrays go there, the likeliest tokens (or, where asked
    for, the logits) come back, and with ``cuda_graph`` the rest is one launch. Prefill runs the same graph uncaptured.
    To sample among the likeliest tokens, the bundle's graph of candidates reads the step's logits where they are.

    Args:
        bundle: the bundle.
        threads: threads within an op on the host; ONNX Runtime's choice where None.
        cuda_graph: capture decode steps; what the bundle says where None.
        allow_cpu_nodes: accept nodes that compute on the CPU; what the bundle says where None. Then no
            step is captured.

    Raises:
        MissingDependencyError: no onnxruntime with CUDA, or CUDA does not start.
        BundleError: see :class:`OnnxRuntimeSession`; nodes that ONNX Runtime placed on the CPU.
    """

    # numpy has no bfloat16: uint16 stands in for it
    _cache_types = {**OnnxRuntimeSession._cache_types, "bfloat16": (np.uint16, 16)}  # noqa: RUF012

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        *,
        cuda_graph: bool | None = None,
        allow_cpu_nodes: bool | None = None,
    ) -> None:
        record = bundle.manifest.session
        self._allow_cpu = record.allow_cpu_nodes if allow_cpu_nodes is None else allow_cpu_nodes
        wanted = record.cuda_graph if cuda_graph is None else cuda_graph
        self.cuda_graph = wanted and not self._allow_cpu
        self._ort = import_onnxruntime()
        self._graph_ids = itertools.count(1)
        self._allocated: tuple[int, int] | None = None
        self._device_step: _DeviceStep | None = None
        super().__init__(bundle, threads)
        self._element_type = self._cache_types[record.cache_dtype][1]
        self._no_graph = self._options(_NO_GRAPH)
        self._has_tokens = any(value.name == TOKENS_OUTPUT for value in self._session.get_outputs())
        self._candidates = 0
        self._candidate_session: Any = None
        if record.candidates is not None:
            self._candidate_session = self._open_on_device(bundle, record.candidates.graph, threads, has_weights=False)
            check_candidate_graph(bundle, self._candidate_session, self._logits_dtype, record.candidates.count)
            self._candidates = record.candidates.count

    def _open(self, bundle: Bundle, threads: int | None) -> Any:
        if CUDA_PROVIDER in self._ort.get_available_providers():
            start_cuda(self._ort)
        return self._open_on_device(bundle, bundle.manifest.session.graph, threads)

    def _open_on_device(self, bundle: Bundle, graph: str, threads: int | None, *, has_weights: bool = True) -> Any:
        session = open_graph(
            bundle,
            str(bundle.file(graph)),
            threads,
            has_weights=has_weights,
            on_device=True,
            # TF32 has 10 bits of mantissa: what is computed in fp32 stays so
            provider_options={"device_id": "0", "enable_cuda_graph": str(int(self.cuda_graph)), "use_tf32": "0"},
            # weights in allocations of their size: the arena's grow by doubling, to nearly twice of all weights
            config={RECORD_PLACEMENT: "1", "session.use_device_allocator_for_initializers": "1"},
        )
        if not self._allow_cpu:
            check_placement(session, str(bundle.directory))
            if session.get_providers()[0] == CUDA_PROVIDER:
                # every node is on the GPU, and so is every weight
                session.weights = {}
        return session

    def allocate(self, rows: int, slots: int) -> None:
        """See :meth:`Session.allocate`; buffers of the same size are kept, and finite values in them."""
        assert self._session is not None, "the session is closed"
        slots = min(-(-slots // _SLOT_STEP) * _SLOT_STEP, self.limits.max_seq_len)
        if self._allocated == (rows, slots):
            return
        self._release()
        shape_BGTD = (rows, self._heads, slots, self._head_dim)
        for name in self._caches:
            zeros_BGTD = np.zeros(shape_BGTD, self._cache_dtype)
            self._caches[name] = self._ort.OrtValue.ortvalue_from_numpy(zeros_BGTD, *_DEVICE)
        self._allocated = (rows, slots)

    def step(self, tokens_B: Ids, query_start_B: Ids) -> Logits:
        """See :meth:`Session.step`."""
        return self._launch(tokens_B, query_start_B).logits()

    def greedy_step(self, tokens_B: Ids, query_start_B: Ids, advance_B: npt.NDArray[np.bool_] | None = None) -> Ids:
        """See :meth:`Session.greedy_step`: the logits stay on the device."""
        if not self._has_tokens:
            return Session.greedy_step(self, tokens_B, query_start_B, advance_B)
        chosen_B1: Ids = self._launch(tokens_B, query_start_B).tokens_B1.numpy()
        return chosen_B1[:, 0]

    @property
    def candidates(self) -> int:
        """See :attr:`Session.candidates`: as the bundle's manifest says."""
        return self._candidates

    def candidate_step(self, tokens_B: Ids, query_start_B: Ids, temperature: float) -> Candidates:
        """See :meth:`Session.candidate_step`: the logits stay on the device."""
        step = self._launch(tokens_B, query_start_B)
        assert step.candidates is not None, "a bundle without candidates"
        return step.candidates.run(temperature)

    def candidate_logits(self) -> Logits:
        """See :meth:`Session.candidate_logits`."""
        assert self._device_step is not None, "a step comes first"
        return self._device_step.logits()

    def close(self) -> None:
        """Frees the sessions and what they have on the device."""
        if self._session is not None:
            self._release()
        self._candidate_session = None
        super().close()

    def _release(self) -> None:
        """Lets go of the buffers: first of the bindings and the CUDA graph that hold their addresses."""
        self._bindings.clear()
        step, self._device_step = self._device_step, None
        if step is not None:
            # what reads the logits goes before what writes them
            few, step.candidates = step.candidates, None
            captured = [self._session] if few is None or not few.launched else [self._candidate_session, self._session]
            for session in captured:
                # an older onnxruntime keeps a captured graph, some hundred KB, until the session ends
                if self.cuda_graph and hasattr(session, "release_captured_graph"):
                    session.release_captured_graph(step.graph_id)
        self._allocated = None
        for name in self._caches:
            self._caches[name] = np.zeros(0)

    def _launch(self, tokens_B: Ids, query_start_B: Ids) -> _DeviceStep:
        step = self._device_step or self._make_device_step()
        step.inputs["input_ids"].update_inplace(np.ascontiguousarray(tokens_B, np.int64)[:, None])
        step.inputs["query_start"].update_inplace(np.ascontiguousarray(query_start_B, np.int64))
        self._session.run_with_iobinding(step.binding, step.options)
        return step

    def _make_device_step(self) -> _DeviceStep:
        assert self._allocated is not None, "reset comes first"
        rows, slots = self._allocated
        step = _DeviceStep(self._ort, rows, self.output_size, self._logits_dtype)
        step.graph_id = next(self._graph_ids)
        step.options = self._options(str(step.graph_id))
        step.binding = self._new_binding(None)
        for name in self._row_inputs:
            step.binding.bind_ortvalue_input(name, step.inputs[name])
        if self._takes_total:
            # a captured step keeps this number: the bound of every length it may meet
            step.total[...] = slots
            step.binding.bind_input(TOTAL_INPUT, "cpu", 0, np.int32, (), step.total.ctypes.data)
        step.binding.bind_ortvalue_output(self._output, step.logits_B1V)
        if self._has_tokens:
            step.binding.bind_ortvalue_output(TOKENS_OUTPUT, step.tokens_B1)
        if self._candidate_session is not None:
            # the number of a CUDA graph is one of its session's
            step.candidates = CandidateStep(
                self._candidate_session, self._ort, _DEVICE, step.logits_B1V, self._candidates, step.options
            )
        self._device_step = step
        return step

    def _place(self, cache_BGTD: Any, row: int | None) -> tuple[Any, ...]:
        shape_BGTD = tuple(cache_BGTD.shape())
        address = cache_BGTD.data_ptr()
        if row is not None:
            address += row * math.prod(shape_BGTD[1:]) * self._cache_dtype.itemsize
            shape_BGTD = (1, *shape_BGTD[1:])
        return *_DEVICE, self._element_type, shape_BGTD, address

    def _run_options(self) -> Any:
        return self._no_graph

    def _options(self, graph_id: str) -> Any:
        options = self._ort.RunOptions()
        if self.cuda_graph:
            options.add_run_config_entry(_GRAPH_ID, graph_id)
        return options


def start_cuda(ort: Any) -> None:
    """Loads CUDA's libraries and uses the GPU once.

    ONNX Runtime lists the provider wherever it is built in. Where it does not start, a session computes on the CPU with
    no more than a line on stderr, and what is then refused is a node that the CPU has no kernel for.

    Raises:
        MissingDependencyError: no library, no driver or no GPU.
    """
    said = io.StringIO()
    # out of their packages; it prints what it does not find
    with contextlib.redirect_stdout(said):
        ort.preload_dlls(directory="")
    try:
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.int64), *_DEVICE)
    except Exception as error:  # ONNX Runtime's errors share no base class but this one
        reason = next(filter(None, said.getvalue().splitlines()), str(error).strip())
        raise MissingDependencyError(
            f"CUDA that does not start: {reason}", "a GPU, its driver, and CUDA's libraries that onnxruntime-gpu needs",
            "pip install onnxruntime-gpu[cuda,cudnn], or name the libraries' folders in LD_LIBRARY_PATH",
            where="onnxruntime",
        ) from error  # fmt: skip


class _DeviceStep:
    """A decode step's buffers on the device, their binding, and the number of its CUDA graph."""

    def __init__(self, ort: Any, rows: int, output_size: int, logits_dtype: Any) -> None:
        def on_device(array: npt.NDArray[Any]) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(array, *_DEVICE)

        one_token = (rows, 1)
        arrays: list[npt.NDArray[Any]] = [np.zeros(one_token, np.int64), np.zeros(rows, np.int64)]
        arrays += [np.ones(rows, np.int64), np.zeros(one_token, np.int64)]
        self.inputs = {name: on_device(array) for name, array in zip(ROW_INPUTS, arrays, strict=True)}
        self.logits_B1V = on_device(np.zeros((rows, 1, output_size), logits_dtype))
        self.tokens_B1 = on_device(np.zeros(one_token, np.int64))
        self.total = np.zeros((), np.int32)
        self.binding: Any = None
        self.options: Any = None
        self.graph_id = 0
        self.candidates: CandidateStep | None = None

    def logits(self) -> Logits:
        """The logits [B, V] that the last launch left, on the host."""
        logits_B1V: npt.NDArray[Any] = self.logits_B1V.numpy()
        return logits_B1V[:, 0].astype(np.float32, copy=False)
