"""Bundles of TensorRT's engines: what is checked before a build, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from nemotron_errors import GraphError, MissingDependencyError, RequestError
from nemotron_graphs.targets import Target, tensorrt_native
from nemotron_graphs.targets.lowering import Lowered
from nemotron_plugins.build import build_library
from nemotron_plugins.launches.launch import Gpu as KernelGpu
from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.requests import KernelRequest, logits_request
from nemotron_runtime.bundle.engine_records import TensorRTRecord
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.builder import Builder, check_stored_dtype
from nemotron_export.building.head import head_record
from nemotron_export.building.host_weights import host_constants
from nemotron_export.building.kernels import bind_kernels
from nemotron_export.building.preflight import Estimate
from nemotron_export.building.request import BuildRequest
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.extras import require
from nemotron_export.progress import Progress
from nemotron_export.tensorrt import BuiltEngine, EngineJob, build_engine, load_product
from nemotron_export.tensorrt.constants import Constant
from nemotron_export.tensorrt.gpu import Gpu, check_device_memory, current_gpu, estimate_device, find_gpu
from nemotron_export.tensorrt.messages import node_ops
from nemotron_export.tensorrt.shapes import Range, decode_ranges, input_shapes, pass_ranges
from nemotron_export.tensorrt.timing_cache import TimingCacheFile, default_cache_folder

__all__ = ["KERNELS_FOLDER", "TensorRTBuilder"]

KERNELS_FOLDER = "kernels"
_FIRST_NATIVE = (10, 15)
# of the weights on the host while an engine that holds them is made: the builder's constants, its copy and the engine
_EMBEDDING_COPIES = 3


class TensorRTBuilder(Builder):
    """Two engines for the GPU that is here, and kernels of our own for several architectures.

    Attributes:
        trt: TensorRT's module, once it was found.
        gpu: where the engines are built and run.
        cache_folder: of what TensorRT measures.
        architectures: what kernels are compiled for, once chosen: the GPU's first, then others (90, …).
    """

    takes = ("--architectures", "--no-plugins", "--embed-weights")
    trt: Any
    gpu: Gpu
    cache_folder: Path
    architectures: tuple[int, ...]

    def __init__(self, target: Target, request: BuildRequest) -> None:
        super().__init__(target if request.plugins else tensorrt_native, request)

    @property
    def version(self) -> str:
        """TensorRT's version without what its packaging adds, for example "10.6.0"."""
        return ".".join(str(self.trt.__version__).split(".")[:3])

    def find(self) -> None:
        """Looks for GPU, driver, TensorRT and Triton.

        Raises:
            MissingDependencyError: no GPU, driver, cuda-python, TensorRT or Triton, or a TensorRT without the layers
                that take the place of plugins.
        """
        # first of all: TensorRT's own way to say that there is no GPU is to end the process
        self.gpu = find_gpu()
        self.trt = load_product("tensorrt")
        require("triton", "which compiles the kernels")
        self.cache_folder = default_cache_folder()
        if not self.request.plugins and tuple(map(int, self.version.split(".")[:2])) < _FIRST_NATIVE:
            least = ".".join(map(str, _FIRST_NATIVE))
            raise MissingDependencyError(
                f"TensorRT {self.version}", f"{least} or later, whose parser has layers for rotation and KV cache",
                f"leave --no-plugins out, or install TensorRT {least}", where="--no-plugins",
            )  # fmt: skip

    def plan(self, checkpoint: Checkpoint, dtype: str, limits: Limits) -> None:
        """Checks dtype, architectures and GPU memory.

        Raises:
            GraphError: weights in another dtype, or a GPU that kernels are not compiled for.
            RequestError: such an architecture.
            ResourceError: too little GPU memory for a session at the limits, with the numbers.
        """
        check_stored_dtype(checkpoint, dtype)
        self.architectures = choose_architectures(self.gpu, self.request.architectures)
        embeds = self.request.embed_weights
        held = checkpoint.num_bytes * (2 if embeds else 1)
        first = "leave --embed-weights out: both engines then share one copy of the weights; or " if embeds else ""
        check_device_memory(estimate_device(checkpoint.config, held, limits, dtype), self.gpu, first=first)

    def needs(self, estimate: Estimate, checkpoint: Checkpoint) -> Estimate:
        """Weights and caches are on the GPU, but for engines that hold the weights."""
        weights = _EMBEDDING_COPIES * checkpoint.num_bytes if self.request.embed_weights else 0
        return replace(estimate, weights=weights, caches=0)

    def write(
        self, lowered: Lowered, checkpoint: Checkpoint, limits: Limits, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Writes graphs, kernels and engines.

        Raises:
            EngineError: TensorRT refuses a graph.
            GraphError: kernels that do not fit the graph.
            ResourceError: too little GPU memory.
            KeyboardInterrupt: interrupted; nothing of the engine in work is written.
        """
        requests = [request for graph in lowered.graphs.values() for request in bind_kernels(graph.model, limits)]
        if checkpoint.task == "causal-lm":
            # the executor's own: what chooses tokens
            vocab = head_record(checkpoint.config, checkpoint.task)["size"]
            requests += [logits_request(op, vocab) for op in ("Argmax", "TopCandidates")]
        lowered.save(folder)
        library = self._write_kernels(requests, folder, progress)
        constants = host_constants(checkpoint, lowered.weights) if self.request.embed_weights else {}
        engines = {}
        for name, ranges in (("prefill", pass_ranges(limits)), ("decode", decode_ranges(limits))):
            # an engine is written and dropped before the next is built: it may hold all weights
            built = self._build(name, lowered.graphs[name].model, ranges, library, progress, constants)
            engines[name] = f"{name}.engine"
            (folder / engines[name]).write_bytes(built.plan)
        record = TensorRTRecord(
            version=self.version,
            architecture=self.gpu.architecture,
            gpu=self.gpu.name,
            driver=self.gpu.driver,
            prefill_engine=engines["prefill"],
            decode_engine=engines["decode"],
            weights=() if constants else lowered.weights,
            kernels=tuple(f"sm_{architecture}" for architecture in self.architectures),
            cache_capacity=0 if self.request.plugins else limits.max_seq_len,
            embedded=bool(constants),
        )
        return {"tensorrt": asdict(record)}

    def _write_kernels(self, requests: Sequence[KernelRequest], folder: Path, progress: Progress) -> KernelLibrary:
        """Compiles the kernels into the bundle; gives those of this GPU."""
        gpus = [KernelGpu(architecture, self.gpu.multiprocessors) for architecture in self.architectures]
        libraries = build_library(requests, gpus, lambda done, total: progress("compile kernels", done, total))
        for library in libraries.values():
            library.save(folder / KERNELS_FOLDER)
        return libraries[self.gpu.capability]

    def _build(
        self, name: str, model: ir.Model, ranges: Mapping[str, Range], library: KernelLibrary, progress: Progress,
        constants: Mapping[str, Constant],
    ) -> BuiltEngine:  # fmt: skip
        from nemotron_plugins.tensorrt import register, take_error, use_library

        plugins = self.request.plugins
        if plugins:
            register()

        @contextmanager
        def around() -> Iterator[None]:
            with current_gpu(), use_library(library):
                yield

        job = EngineJob(
            name=name,
            graph=ir.to_proto(model).SerializeToString(),
            profiles=[input_shapes(model.graph.inputs, ranges)],
            nodes=node_ops(model.graph),
            constants=constants,
            in_place=plugins,
            parser_flags=() if plugins else ("ENABLE_PLUGIN_OVERRIDE",),
            around=around,
            plugin_error=take_error,
        )
        timing = TimingCacheFile(self.cache_folder, self.version, self.gpu.name, self.gpu.driver)
        built = build_engine(self.trt, job, timing=timing, progress=progress)
        expected = {str(value.name) for value in model.graph.inputs if value.name not in constants}
        if odd := sorted(set(built.inputs) ^ expected):
            raise GraphError(f"inputs missing or added by the parser: {', '.join(odd[:8])}", "the graph's inputs",
                             "report it with the graph", where=f"{name}.onnx")  # fmt: skip
        return built


def choose_architectures(gpu: Gpu, wanted: Sequence[str]) -> tuple[int, ...]:
    """What kernels are compiled for: the GPU's architecture, and those that the user names.

    Raises:
        GraphError: a GPU that kernels are not compiled for.
        RequestError: such an architecture.
    """
    from nemotron_plugins.compiling.compiler import ARCHITECTURES

    names = ", ".join(f"sm_{known}" for known in ARCHITECTURES)
    if gpu.capability not in ARCHITECTURES:
        remedy = "build on one of these; --target tensorrt-rtx builds without kernels of our own"
        raise GraphError(f"{gpu.name} ({gpu.architecture})", names, remedy, where="--target tensorrt")
    chosen = {gpu.capability: None}
    for name in wanted:
        number = name.strip().removeprefix("sm_")
        if not number.isdigit() or int(number) not in ARCHITECTURES:
            raise RequestError(f"'{name}'", names, "name some of them", where="--architectures")
        chosen[int(number)] = None
    return tuple(chosen)
