"""A TensorRT that builds nothing: it reads the ONNX graph, and notes what the builder is told."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import onnx

__all__ = ["FakeBuilderModule"]


# by TensorRT's number of a dtype, here ONNX's
_ITEM_BYTES = {1: 4, 10: 2, 16: 2}


class _Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _Logger:
    Severity = _Severity

    def __init__(self) -> None:
        self.made = True


class _Monitor:
    def __init__(self) -> None:
        self.made = True


class FakeBuilderModule:
    """What ``import tensorrt`` would give.

    Attributes:
        parser_errors: (node, name, op, text) of each; the parser refuses where there are some.
        build_errors: said to the logger; the builder gives nothing where there are some.
        load_errors: likewise when an engine is loaded.
        steps: of the builder's phase; ``on_step`` is called before each.
        refuses_cache: a timing cache that is not taken.
        builds: what each build was told; ``constants`` are the bytes of each by name, as they were then.
        keeps_inputs: whether removing an input is ignored, as it is where a layer still reads it.
        takes_constants: whether constants can be added.
    """

    # whoever looks for the package (torch does) finds one
    __spec__ = ModuleSpec("tensorrt", None)
    ILogger = _Logger
    IProgressMonitor = _Monitor
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
    OnnxParserFlag = SimpleNamespace(ENABLE_PLUGIN_OVERRIDE="override")
    ComputeCapability = SimpleNamespace(SM86="SM86", SM89="SM89", SM120="SM120")
    DataType = SimpleNamespace(FLOAT=1, INT64=7, HALF=10, BF16=16)

    def __init__(self, version: str = "10.6.0.post1") -> None:
        self.__version__ = version
        self.parser_errors: list[tuple[int, str, str, str]] = []
        self.build_errors: list[str] = []
        self.load_errors: list[str] = []
        self.steps = 4
        self.on_step: Callable[[int], None] = lambda step: None
        self.refuses_cache: bytes | None = None
        self.builds: list[SimpleNamespace] = []
        self.cancelled_at: int | None = None
        self.keeps_inputs = False
        self.takes_constants = True

    def Weights(self, kind: int, address: int, count: int) -> Any:  # noqa: N802
        return SimpleNamespace(kind=kind, address=address, count=count)

    def Builder(self, logger: Any) -> Any:  # noqa: N802 (TensorRT's names)
        assert logger.made
        return _Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return _Parser(self, network)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def load(plan: bytes) -> Any:
            for text in self.load_errors:
                logger.log(_Severity.ERROR, text)
            return None if self.load_errors else SimpleNamespace(device_memory_size_v2=4321)

        return SimpleNamespace(deserialize_cuda_engine=load)


class _Parser:
    def __init__(self, module: FakeBuilderModule, network: Any) -> None:
        self._module, self._network = module, network
        self.num_errors = 0
        network.flags = []

    def set_flag(self, flag: str) -> None:
        self._network.flags.append(flag)

    def parse(self, data: bytes) -> bool:
        graph = onnx.load_from_string(data).graph
        self._network.read(graph)
        self.num_errors = len(self._module.parser_errors)
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        node, name, operator, text = self._module.parser_errors[index]
        return SimpleNamespace(
            node=lambda: node, node_name=lambda: name, node_operator=lambda: operator, desc=lambda: text
        )


class _Tensor:
    def __init__(self, name: str, dtype: int | None = None, shape: Any = (), *, is_network_input: bool = False) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.is_network_input = is_network_input


class _Layer:
    """A node of the graph, or a constant, which has ``weights``."""

    def __init__(self, reads: list[_Tensor | None], gives: list[_Tensor], weights: Any = None) -> None:
        self.reads, self.gives, self.weights = reads, gives, weights
        self.name = ""

    @property
    def num_inputs(self) -> int:
        return len(self.reads)

    def get_input(self, index: int) -> _Tensor | None:
        return self.reads[index]

    def set_input(self, index: int, tensor: _Tensor) -> None:
        self.reads[index] = tensor

    def get_output(self, index: int) -> _Tensor:
        return self.gives[index]


class _Network:
    flags: list[str]
    outputs: list[str]

    def __init__(self, module: FakeBuilderModule) -> None:
        self._module = module
        self.tensors: list[_Tensor] = []
        self.layers: list[_Layer] = []

    def read(self, graph: Any) -> None:
        known: dict[str, _Tensor | None] = {"": None}
        for value in graph.input:
            kind = value.type.tensor_type
            shape = tuple(dim.dim_value or -1 for dim in kind.shape.dim)
            known[value.name] = _Tensor(value.name, kind.elem_type, shape, is_network_input=True)
            self.tensors.append(known[value.name])
        # what a subgraph or an initializer gives is a tensor like others
        for node in graph.node:
            gives = [_Tensor(name) for name in node.output]
            reads = [known[name] if name in known else _Tensor(name) for name in node.input]
            known |= {tensor.name: tensor for tensor in gives}
            self.layers.append(_Layer(reads, gives))
        self.outputs = [value.name for value in graph.output]

    @property
    def inputs(self) -> list[str]:
        return [tensor.name for tensor in self.tensors]

    @property
    def num_inputs(self) -> int:
        return len(self.tensors)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> _Tensor:
        return self.tensors[index]

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(name=self.outputs[index])

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]

    def add_constant(self, shape: tuple[int, ...], weights: Any) -> _Layer | None:
        if not self._module.takes_constants:
            return None
        self.layers.append(_Layer([], [_Tensor("", weights.kind, shape)], weights))
        return self.layers[-1]

    def remove_tensor(self, tensor: _Tensor) -> None:
        read = any(tensor is each for layer in self.layers for each in layer.reads)
        if not read and not self._module.keeps_inputs:
            self.tensors.remove(tensor)


class _Config:
    def __init__(self, module: FakeBuilderModule) -> None:
        self._module = module
        self.progress_monitor: Any = None
        self.max_aux_streams: int | None = None
        self.features: dict[str, bool] = {}
        self.profiles: list[dict[str, Any]] = []
        self.capabilities: list[Any] = [None]
        self.cache: bytes | None = None

    @property
    def num_compute_capabilities(self) -> int:
        return len(self.capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self.capabilities = [None] * count

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capabilities[index] = capability
        return True

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.features[feature] = on

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.data and cache.data == self._module.refuses_cache:
            return False
        self.cache = cache.data
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: (self.cache or b"") + b"measured;")


class _Builder:
    def __init__(self, module: FakeBuilderModule, logger: Any) -> None:
        self._module, self._logger = module, logger

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << 1
        return _Network(self._module)

    def create_builder_config(self) -> _Config:
        return _Config(self._module)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, tuple(map(tuple, sizes)))
        )

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        module, monitor = self._module, config.progress_monitor
        constants = {layer.name: layer.weights for layer in network.layers if layer.weights is not None}
        told = SimpleNamespace(network=network, config=config, thread=threading.current_thread(), cache=config.cache)
        told.constants = {
            name: ctypes.string_at(held.address, held.count * _ITEM_BYTES[held.kind])
            for name, held in constants.items()
        }
        module.builds.append(told)
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Choosing kernels", "Building Engine", module.steps)
        for step in range(module.steps):
            module.on_step(step)
            if not monitor.step_complete("Choosing kernels", step):
                module.cancelled_at = step
                return None
        monitor.phase_finish("Choosing kernels")
        monitor.step_complete("Building Engine", 0)
        monitor.step_complete("Building Engine", 1)
        monitor.phase_finish("Building Engine")
        for text in module.build_errors:
            self._logger.log(_Severity.ERROR, text)
        return None if module.build_errors else b"plan of " + ", ".join(network.outputs).encode()
