"""The engines of a TensorRT bundle: what is checked before a build, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from nemotron_errors import GraphError, MissingDependencyError, RequestError
from nemotron_graphs.targets import LoweredGraph, Target
from nemotron_graphs.targets.tensorrt import TensorRTGraphs
from nemotron_plugins.kernel_spec import KernelSpec
from nemotron_plugins.library import SESSION_KERNELS, KernelLibrary, build_library
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest_part import WeightPart
from nemotron_runtime.bundle.manifest_tensorrt import TensorRTRecord, TensorRTWeight

from nemotron_export.building.head import head_record
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.extras import require
from nemotron_export.progress import Progress
from nemotron_export.tensorrt import BuiltEngine, EngineJob, build_engine, load_product
from nemotron_export.tensorrt.constants import Constant
from nemotron_export.tensorrt.gpu import Gpu, check_device_memory, current_gpu, estimate_device, find_gpu
from nemotron_export.tensorrt.messages import node_ops
from nemotron_export.tensorrt.shapes import Range, decode_ranges, input_shapes, pass_ranges
from nemotron_export.tensorrt.timing_cache import TimingCacheFile, default_cache_folder

__all__ = [
    "DECODE_ENGINE",
    "KERNELS_FOLDER",
    "PREFILL_ENGINE",
    "EngineMachine",
    "EnginePlan",
    "check_stored_dtype",
    "find_machine",
    "is_tensorrt",
    "kernel_spec",
    "plan_engines",
    "weight_records",
    "write_engines",
]

PREFILL_ENGINE, DECODE_ENGINE = "prefill.engine", "decode.engine"
KERNELS_FOLDER, GRAPHS_FOLDER = "kernels", "graphs"
_FIRST_NATIVE = (10, 15)


@dataclass(frozen=True)
class EngineMachine:
    """What engines are built with.

    Attributes:
        trt: TensorRT's module.
        gpu: where the engines are built and run.
        cache_folder: of what TensorRT measures.
    """

    trt: Any
    gpu: Gpu
    cache_folder: Path

    @property
    def version(self) -> str:
        """TensorRT's version without what its packaging adds, for example "10.6.0"."""
        return ".".join(str(self.trt.__version__).split(".")[:3])


@dataclass(frozen=True)
class EnginePlan:
    """What was decided before the build.

    Attributes:
        machine: what builds.
        architectures: what kernels are compiled for: the GPU's first, then others (90, …).
        plugins: whether the project's own kernels compute, or layers that TensorRT has.
        embed_weights: whether each engine holds the weights, or both take them as inputs.
    """

    machine: EngineMachine
    architectures: tuple[int, ...]
    plugins: bool = True
    embed_weights: bool = False


def is_tensorrt(target: Target) -> bool:
    """Whether a target's bundles hold engines of TensorRT."""
    return bool(target.session["kind"] == "tensorrt")


def check_stored_dtype(checkpoint: Checkpoint, dtype: str) -> None:
    """Refuses a checkpoint whose weights an engine cannot read as they are.

    Raises:
        GraphError: naming the weights.
    """
    spelled = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    others = {name: entry.dtype for name, entry in checkpoint.tensors.items() if spelled.get(entry.dtype) != dtype}
    if others:
        name, stored = next(iter(others.items()))
        found = spelled.get(stored, stored)
        choose = f"build with --dtype {found}, or " if found in ("bfloat16", "float16") else ""
        raise GraphError(
            f"{len(others)} weights in another dtype, for example {name} in {found}",
            f"{dtype}: an engine reads the checkpoint's weights as they are",
            f"{choose}make such a checkpoint with `nemotron-export convert --dtype {dtype}`", where="--dtype",
        )  # fmt: skip


def find_machine(plugins: bool = True) -> EngineMachine:
    """Looks for what a build of engines needs here; nothing else is read or made before.

    Args:
        plugins: whether the project's own kernels will compute, or layers that a later TensorRT has.

    Raises:
        MissingDependencyError: no GPU, driver, cuda-python, TensorRT or Triton, or a TensorRT without these layers.
    """
    # first of all: TensorRT's own way to say that there is no GPU is to end the process
    gpu = find_gpu()
    trt = load_product("tensorrt")
    require("triton", "which compiles the kernels")
    machine = EngineMachine(trt, gpu, default_cache_folder())
    if not plugins and tuple(map(int, machine.version.split(".")[:2])) < _FIRST_NATIVE:
        least = ".".join(map(str, _FIRST_NATIVE))
        raise MissingDependencyError(
            f"TensorRT {machine.version}", f"{least} or later, whose parser has layers for rotation and KV cache",
            f"leave --no-plugins out, or install TensorRT {least}", where="--no-plugins",
        )  # fmt: skip
    return machine


def plan_engines(
    machine: EngineMachine, checkpoint: Checkpoint, dtype: str, limits: Limits, architectures: Sequence[str] = (), *,
    plugins: bool = True, embed_weights: bool = False,
) -> EnginePlan:  # fmt: skip
    """Checks whether these engines can be built and run here, before anything is made.

    Args:
        machine: what :func:`find_machine` found.
        checkpoint: the checkpoint.
        dtype: run dtype.
        limits: of the bundle.
        architectures: more that kernels are compiled for: "sm_80" or "80".
        plugins: whether the project's own kernels will compute.
        embed_weights: whether the weights will be inside the engines, once in each.

    Raises:
        GraphError: weights in another dtype, or a GPU that kernels are not compiled for.
        RequestError: such an architecture.
        ResourceError: too little GPU memory for a session at the limits, with the numbers.
    """
    check_stored_dtype(checkpoint, dtype)
    chosen = _architectures(machine.gpu, architectures)
    held = checkpoint.num_bytes * (2 if embed_weights else 1)
    first = "leave --embed-weights out: both engines then share one copy of the weights; or " if embed_weights else ""
    check_device_memory(estimate_device(checkpoint.config, held, limits, dtype), machine.gpu, first=first)
    return EnginePlan(machine, chosen, plugins, embed_weights)


def _architectures(gpu: Gpu, wanted: Sequence[str]) -> tuple[int, ...]:
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


def kernel_spec(checkpoint: Checkpoint, dtype: str, limits: Limits, multiprocessors: int) -> KernelSpec:
    """What kernels are chosen and compiled by, from the checkpoint's config."""
    config = checkpoint.config
    head = head_record(config, checkpoint.task)
    has_head = checkpoint.task != "feature-extraction"
    return KernelSpec(
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        outputs=head["size"] if has_head else 0,
        epsilon=config.norm_eps,
        dtype=dtype,
        max_batch=limits.max_batch,
        max_seq_len=limits.max_seq_len,
        multiprocessors=multiprocessors,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        head_bias=any(name.endswith(("score.bias", "qa_outputs.bias")) for name in checkpoint.tensors),
    )


def write_engines(
    plan: EnginePlan, graphs: TensorRTGraphs, spec: KernelSpec, limits: Limits, folder: Path, progress: Progress,
    constants: Mapping[str, Constant] | None = None,
) -> tuple[LoweredGraph, TensorRTRecord]:  # fmt: skip
    """Writes graphs, kernels and engines into a bundle.

    ``constants`` are the weights by name where the engines shall hold them.

    Returns:
        The decode graph, whose session entry is the manifest's, and the record of the engines.

    Raises:
        EngineError: TensorRT refuses a graph.
        GraphError: kernels that do not fit the graph.
        ResourceError: too little GPU memory.
        KeyboardInterrupt: interrupted; nothing of the engine in work is written.
    """
    files = {"prefill": f"{GRAPHS_FOLDER}/prefill.onnx", "decode": f"{GRAPHS_FOLDER}/decode.onnx"}
    (folder / GRAPHS_FOLDER).mkdir()
    for name, graph in (("prefill", graphs.prefill), ("decode", graphs.decode)):
        graph.save(folder / files[name])
    # engines of native layers launch none of them; the session has some of its own
    keys = None if plan.plugins else SESSION_KERNELS
    libraries = build_library(
        spec, plan.architectures, lambda done, total: progress("compile kernels", done, total), keys=keys
    )
    for library in libraries.values():
        library.save(folder / KERNELS_FOLDER)
    library = libraries[plan.machine.gpu.capability]
    prefill_sizes = pass_ranges(limits)
    embedded = constants or {}
    assert plan.embed_weights == bool(embedded)

    def write(name: str, graph: LoweredGraph, ranges: Mapping[str, Range], file: str) -> int:
        # an engine is written and dropped before the next is built: it may hold all weights
        built = _build(plan, name, graph, ranges, library, progress, embedded)
        (folder / file).write_bytes(built.plan)
        return built.workspace

    prefill_workspace = write("prefill", graphs.prefill, prefill_sizes, PREFILL_ENGINE)
    decode_workspace = write("decode", graphs.decode, decode_ranges(limits), DECODE_ENGINE)
    record = TensorRTRecord(
        version=plan.machine.version,
        architecture=plan.machine.gpu.architecture,
        gpu=plan.machine.gpu.name,
        driver=plan.machine.gpu.driver,
        prefill_engine=PREFILL_ENGINE,
        decode_engine=DECODE_ENGINE,
        max_logits=prefill_sizes["positions"].most,
        weights=() if plan.embed_weights else weight_records(graphs),
        prefill_workspace=prefill_workspace,
        decode_workspace=decode_workspace,
        kernels=tuple(f"sm_{architecture}" for architecture in plan.architectures),
        cache_slots=0 if plan.plugins else limits.max_seq_len,
        embedded=plan.embed_weights,
    )
    session = {**graphs.decode.session, "graph": files["decode"]}
    return replace(graphs.decode, session=session), record


def weight_records(graphs: TensorRTGraphs) -> tuple[TensorRTWeight, ...]:
    """The engines' weights as a manifest names them."""
    return tuple(
        TensorRTWeight(
            weight.name, weight.dtype, weight.shape,
            tuple(WeightPart(part.file, part.offset, part.length) for part in weight.parts),
        )
        for weight in graphs.weights
    )  # fmt: skip


def _build(
    plan: EnginePlan, name: str, graph: LoweredGraph, ranges: Mapping[str, Range], library: KernelLibrary,
    progress: Progress, constants: Mapping[str, Constant],
) -> BuiltEngine:  # fmt: skip
    from nemotron_plugins.tensorrt import register, take_error, use_library

    if plan.plugins:
        register()

    @contextmanager
    def around() -> Iterator[None]:
        with current_gpu(), use_library(library):
            yield

    job = EngineJob(
        name=name,
        graph=ir.to_proto(graph.model).SerializeToString(),
        profiles=[input_shapes(graph.model.graph.inputs, ranges)],
        nodes=node_ops(graph.model.graph),
        constants=constants,
        in_place=plan.plugins,
        parser_flags=() if plan.plugins else ("ENABLE_PLUGIN_OVERRIDE",),
        around=around,
        plugin_error=take_error,
    )
    machine = plan.machine
    timing = TimingCacheFile(machine.cache_folder, machine.version, machine.gpu.name, machine.gpu.driver)
    built = build_engine(machine.trt, job, timing=timing, progress=progress)
    expected = [value.name for value in graph.model.graph.inputs if value.name not in constants]
    if sorted(built.inputs) != sorted(str(each) for each in expected):
        odd = ", ".join(sorted(set(built.inputs) ^ set(map(str, expected)))[:8])
        raise GraphError(f"inputs missing or added by the parser: {odd}", "the graph's inputs",
                         "report it with the graph", where=f"{name}.onnx")  # fmt: skip
    return built
