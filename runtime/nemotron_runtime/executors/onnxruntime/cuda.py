"""The executor over ONNX Runtime on an NVIDIA GPU: caches and a decode step's arrays there, one CUDA graph per step.

Shapes: B sequences, V values of an output, G key/value heads, T capacity, D head_dim.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import MissingDependencyError
from nemotron_formats.cache import round_capacity
from nemotron_formats.dtypes import DTYPES

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.batch import Ids
from nemotron_runtime.executors.onnxruntime.bindings import TOKENS_OUTPUT, TOTAL_INPUT, bind_input
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor, step_inputs
from nemotron_runtime.executors.onnxruntime.graph import import_onnxruntime, open_graph
from nemotron_runtime.executors.onnxruntime.placement import RECORD_PLACEMENT, check_placement
from nemotron_runtime.executors.onnxruntime.sampler import OnnxRuntimeSampler, check_candidate_graph, on_device
from nemotron_runtime.sampling.device import DeviceSampler, Sampling

__all__ = ["CUDA_PROVIDER", "OnnxRuntimeCudaExecutor", "start_cuda"]

CUDA_PROVIDER = "CUDAExecutionProvider"
_DEVICE = ("cuda", 0)
_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"


@dataclass
class _DeviceStep:
    """A decode step's buffers on the device, their binding, and the number of its CUDA graph."""

    inputs: dict[str, Any]
    total: npt.NDArray[np.int32]
    sampler: OnnxRuntimeSampler
    binding: Any
    options: Any
    graph_id: int


class OnnxRuntimeCudaExecutor(OnnxRuntimeExecutor):
    """Runs ``model.onnx`` on CUDA.

    A decode step has static buffers on the device: two small arrays go there, the likeliest tokens (or, where asked
    for, the logits) come back, and with ``cuda_graph`` the rest is one launch. Prefill runs the same graph uncaptured.
    To sample among the top-k candidates, the bundle's graph of them reads the step's logits where they are.

    Args:
        bundle: the bundle.
        threads: threads within an op on the host; ONNX Runtime's choice where None.
        cuda_graph: capture decode steps; what the bundle says where None.
        allow_cpu_nodes: accept nodes that compute on the CPU; what the bundle says where None. Then no
            step is captured.

    Raises:
        MissingDependencyError: no onnxruntime with CUDA, or CUDA does not start.
        BundleError: see :class:`OnnxRuntimeExecutor`; nodes that ONNX Runtime placed on the CPU.
    """

    cache_dtypes = (*OnnxRuntimeExecutor.cache_dtypes, "bfloat16")

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
        self._element_type = DTYPES[record.cache_dtype].onnx
        self._no_graph = self._options(_NO_GRAPH)
        self._has_tokens = any(value.name == TOKENS_OUTPUT for value in self._session.get_outputs())
        self._candidate_session: Any = None
        if record.candidates is not None:
            self._candidate_session = self._open_on_device(bundle, record.candidates.graph, threads, has_weights=False)
            check_candidate_graph(bundle, self._candidate_session, self._logits_dtype, record.candidates.count)
            self.candidate_count = record.candidates.count

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

    def make_caches(self, sequences: int, capacity: int) -> None:
        """See :meth:`PaddedExecutor.make_caches`; buffers of the same size are kept, and finite values in them."""
        assert self._session is not None, "the executor is closed"
        allocated = sequences, round_capacity(capacity, self.limits.max_seq_len)
        if self._allocated == allocated:
            return
        self._release()
        for cache in self.caches:
            zeros_BGTD = np.zeros(cache.shape(*allocated), self._cache_dtype)
            self._buffers[cache.input_name] = on_device(self._ort, _DEVICE, zeros_BGTD)
        self._allocated = allocated

    def step(
        self, tokens_B: Ids, query_start_B: Ids, advancing_B: npt.NDArray[np.bool_] | None, sampling: Sampling | None
    ) -> DeviceSampler:
        """See :meth:`PaddedExecutor.step`: the logits stay on the device."""
        step = self._device_step or self._make_device_step()
        step.inputs["input_ids"].update_inplace(np.ascontiguousarray(tokens_B, np.int64)[:, None])
        step.inputs["query_start"].update_inplace(np.ascontiguousarray(query_start_B, np.int64))
        self._session.run_with_iobinding(step.binding, step.options)
        return step.sampler

    def close(self) -> None:
        """See :meth:`Executor.close`."""
        if self._session is not None:
            self._release()
        self._candidate_session = None
        super().close()

    def _release(self) -> None:
        """Lets go of the buffers: first of the bindings and the CUDA graphs that hold their addresses."""
        self._bindings.clear()
        step, self._device_step = self._device_step, None
        if step is not None:
            # what reads the logits goes before what writes them
            captured = [self._candidate_session, self._session] if step.sampler.launched else [self._session]
            for session in captured:
                # an older onnxruntime keeps a captured graph, some hundred KB, until the session ends
                if self.cuda_graph and hasattr(session, "release_captured_graph"):
                    session.release_captured_graph(step.graph_id)
        self._allocated = None
        self._buffers.clear()

    def _make_device_step(self) -> _DeviceStep:
        assert self._allocated is not None, "reset comes first"
        sequences, capacity = self._allocated
        graph_id = next(self._graph_ids)
        options = self._options(str(graph_id))
        # the number of a CUDA graph is one of its session's
        sampler = OnnxRuntimeSampler(
            self._ort, _DEVICE, np.zeros((sequences, self.output_size), self._logits_dtype), options,
            chooses=self._has_tokens, session=self._candidate_session, candidate_count=self.candidate_count,
        )  # fmt: skip
        inputs = {name: on_device(self._ort, _DEVICE, array) for name, array in step_inputs(sequences).items()}
        # a captured step keeps this number: the bound of every length it may meet
        total = np.array(capacity, np.int32)
        step = _DeviceStep(inputs, total, sampler, self._new_binding(-1), options, graph_id)
        for name in self._row_inputs:
            step.binding.bind_ortvalue_input(name, inputs[name])
        if self._takes_total:
            bind_input(step.binding, TOTAL_INPUT, total)
        step.binding.bind_ortvalue_output(self._output, sampler.logits_B1V)
        if self._has_tokens:
            step.binding.bind_ortvalue_output(TOKENS_OUTPUT, sampler.tokens_B1)
        self._device_step = step
        return step

    def _place(self, cache_BGTD: Any, sequence: int) -> tuple[Any, ...]:
        shape_BGTD = tuple(cache_BGTD.shape())
        address = cache_BGTD.data_ptr()
        if sequence >= 0:
            address += sequence * math.prod(shape_BGTD[1:]) * self._cache_dtype.itemsize
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

    ONNX Runtime lists the provider wherever it is built in. Where it does not start, its session computes on the CPU
    with no more than a line on stderr, and what is then refused is a node that the CPU has no kernel for.

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
