"""One ONNX graph → one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from nemotron_export.progress import Progress, silent
from nemotron_export.tensorrt.constants import Constant, embed_constants
from nemotron_export.tensorrt.messages import EngineError, Messages, parser_error
from nemotron_export.tensorrt.monitor import BuildWatch, run_cancellable
from nemotron_export.tensorrt.shapes import InputShapes
from nemotron_export.tensorrt.timing_cache import TimingCacheFile

__all__ = ["BuiltEngine", "EngineJob", "build_engine"]


@dataclass(frozen=True)
class EngineJob:
    """What an engine is made of.

    Attributes:
        name: of the graph, for messages and progress, for example "decode".
        graph: the ONNX model, serialized; weights are inputs of it.
        profiles: for each optimization profile, shapes of the inputs that are dynamic.
        nodes: name of each node → its op, for messages.
        constants: inputs that become constants of the engine.
        in_place: whether plugins write into their inputs.
        parser_flags: names of flags of the ONNX parser.
        options: more that is said to the builder's config.
        around: entered in the thread that builds, for example for a GPU's context and plugins' kernels.
        plugin_error: gives what a plugin raised since it was asked last.
        loads: whether the engine is loaded once here, which needs its GPU.
    """

    name: str
    graph: bytes
    profiles: Sequence[InputShapes]
    nodes: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Constant] = field(default_factory=dict)
    in_place: bool = False
    parser_flags: Sequence[str] = ()
    options: Callable[[Any], None] = lambda config: None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    plugin_error: Callable[[], Exception | None] = lambda: None
    loads: bool = True


@dataclass(frozen=True)
class BuiltEngine:
    """An engine.

    Attributes:
        plan: its bytes, in the builder's memory: with the weights inside there are many.
        workspace: bytes of activations that it needs on the GPU; 0 where it was not loaded.
        inputs: names, in order, without those that became constants.
        outputs: names, in order.
    """

    plan: memoryview
    workspace: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def build_engine(
    trt: Any, job: EngineJob, *, timing: TimingCacheFile | None = None, progress: Progress = silent
) -> BuiltEngine:
    """Parses, builds and serializes, in a thread: Ctrl-C ends the build at its next step.

    Args:
        timing: measurements of earlier builds, which this one adds to.
        progress: told ("build … engine", done, total), from other threads.

    Raises:
        EngineError: the parser or the builder refuses the graph; names node and op where they are known.
        ResourceError: too little GPU memory.
        KeyboardInterrupt: the build was interrupted.
    """
    watch = BuildWatch(trt, f"build {job.name} engine", progress)
    messages = Messages(trt)

    def work() -> BuiltEngine:
        with job.around():
            job.plugin_error()  # what came before is not this build's
            return _build(trt, job, messages, watch, timing)

    built = run_cancellable(work, watch.cancel)
    if watch.error is not None:
        raise watch.error
    return built


def _build(
    trt: Any, job: EngineJob, messages: Messages, watch: BuildWatch, timing: TimingCacheFile | None
) -> BuiltEngine:
    what = f"{job.name}.onnx"
    builder = trt.Builder(messages.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages.logger)
    for flag in job.parser_flags:
        parser.set_flag(getattr(trt.OnnxParserFlag, flag))
    if not parser.parse(job.graph):
        messages.take()
        raise parser_error(parser, str(trt.__version__), what, job.plugin_error())
    embed_constants(trt, network, job.constants, what)
    inputs = tuple(network.get_input(i).name for i in range(network.num_inputs))
    outputs = tuple(network.get_output(i).name for i in range(network.num_outputs))
    config = builder.create_builder_config()
    config.progress_monitor = watch.monitor
    # one stream: a step is a chain, and its graph stays one
    config.max_aux_streams = 0
    if job.in_place:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    job.options(config)
    _add_profiles(builder, config, job, messages, what)
    cache = None if timing is None else _set_timing(config, timing, messages)
    messages.take()
    plan = builder.build_serialized_network(network, config)
    error = job.plugin_error()
    if watch.cancelled:
        raise watch.error or KeyboardInterrupt
    if plan is None or error is not None:
        raise messages.failure(what, job.nodes, error)
    if timing is not None and cache is not None:
        timing.write(bytes(memoryview(config.get_timing_cache().serialize())))
    data = memoryview(plan)
    return BuiltEngine(data, _workspace(trt, job, messages, data, what) if job.loads else 0, inputs, outputs)


def _add_profiles(builder: Any, config: Any, job: EngineJob, messages: Messages, what: str) -> None:
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            found = messages.take() or "a profile that it refuses"
            raise EngineError(found, "shapes that fit the graph", "choose other limits", where=what)


def _set_timing(config: Any, timing: TimingCacheFile, messages: Messages) -> Any:
    data = timing.read()
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        timing.discard(messages.take() or "TensorRT refuses it")
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


def _workspace(trt: Any, job: EngineJob, messages: Messages, plan: memoryview, what: str) -> int:
    """Loads the engine as a session will."""
    runtime = trt.Runtime(messages.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    error = job.plugin_error()
    if engine is None or error is not None:
        raise messages.failure(what, job.nodes, error)
    return int(engine.device_memory_size_v2)
