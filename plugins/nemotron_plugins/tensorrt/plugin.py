"""The ops as TensorRT's plugin and creator classes (IPluginV3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from nemotron_errors import GraphError
from nemotron_formats.dtypes import DTYPES

from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.tensorrt.errors import record_error
from nemotron_plugins.tensorrt.fields import Field, kernel_fields, kernels_of, request_field, request_in
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor
from nemotron_plugins.tensorrt.raw_fields import FieldCollection, field_reader

__all__ = ["PLUGIN_VERSION", "make_op", "plugin_classes", "use_library"]

PLUGIN_VERSION = "1"
_NAMESPACE = ""
# TensorRT's names of dtypes → numpy's
_DTYPES = {each.tensorrt: each.name for each in DTYPES.values()}
_library: ContextVar[KernelLibrary | None] = ContextVar("kernel_library", default=None)
_Method = TypeVar("_Method", bound=Callable[..., Any])


@contextmanager
def use_library(library: KernelLibrary) -> Iterator[None]:
    """Nodes that are parsed inside take their kernels from ``library``; it is of this thread."""
    token = _library.set(library)
    try:
        yield
    finally:
        _library.reset(token)


def make_op(op: type[PluginOp], fields: Sequence[Field]) -> PluginOp:
    """An op from fields: of a node, with the kernels of the library in use, or of an engine, which hold both.

    Raises:
        GraphError: a request that is wrong, no library in use, or kernels that are missing or do not fit.
        BundleError: kernels among the fields that are broken.
    """
    request = request_in(op.name, fields)
    kernels = kernels_of(op.name, fields)
    if not kernels:
        library = _library.get()
        if library is None:
            remedy = "build inside nemotron_plugins.tensorrt.use_library"
            raise GraphError("no kernels", "kernels to build with", remedy, where=op.name)
        kernels = library.of(request)
        if not kernels:
            remedy = "build the library of the requests of all nodes"
            raise GraphError("no kernels in the library", f"those of {request.key}", remedy, where=op.name)
    return op(request, kernels)


def _recorded(method: _Method) -> _Method:
    """Keeps what a method raises for :func:`nemotron_plugins.tensorrt.take_error`: TensorRT drops it."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except Exception as error:
            record_error(f"{self.op.name}, {method.__name__}", error)
            raise

    return call  # type: ignore[return-value]


@functools.cache  # the name of a binding's enumerator costs microseconds, and an enqueue asks for ten
def _dtype(kind: Any) -> str:
    return _DTYPES.get(kind.name, kind.name)


def _tensors(descriptions: Sequence[Any], addresses: Sequence[int] | None = None) -> list[Tensor]:
    return [
        Tensor(_dtype(each.type), tuple(each.dims), addresses[i] if addresses else 0)
        for i, each in enumerate(descriptions)
    ]


class _Plugin:
    """A node of an engine: what TensorRT calls, without its base classes. Subclasses know TensorRT's module, trt."""

    trt: Any

    def _begin(self, op: PluginOp) -> None:
        self.op = op
        self.plugin_name, self.plugin_version, self.plugin_namespace = op.name, PLUGIN_VERSION, _NAMESPACE
        self.num_outputs = len(op.outputs)
        self._fields: FieldCollection | None = None

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def clone(self) -> Any:
        return type(self)(self.op)  # type: ignore[call-arg]

    @_recorded
    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        found = self.op.output_dtypes([_dtype(kind) for kind in input_types])
        names = {value: key for key, value in _DTYPES.items()}
        return [getattr(self.trt.DataType, names[name]) for name in found]

    @_recorded
    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        shapes = self.op.output_shapes([[each[i] for i in range(len(each))] for each in inputs])
        made = []
        for shape in shapes:
            sizes = self.trt.DimsExprs(len(shape))
            for i, size in enumerate(shape):
                sizes[i] = builder.constant(size) if isinstance(size, int) else size
            made.append(sizes)
        return made

    def get_aliased_input(self, output: int) -> int:
        return self.op.aliases.get(output, -1)

    @_recorded
    def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
        # those after the position are not known yet
        dtypes = [_dtype(each.desc.type) for each in tensors[: position + 1]]
        linear = tensors[position].desc.format == self.trt.TensorFormat.LINEAR
        return linear and self.op.supports(position, dtypes, num_inputs)

    @_recorded
    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.op.configure(_tensors([each.desc for each in inputs]))

    @_recorded
    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.op.configure(_tensors(inputs))

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, tactic: int) -> None:
        pass

    @_recorded
    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return self.op.workspace([Tensor(_dtype(each.desc.type), tuple(each.max)) for each in inputs])

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    @_recorded
    def get_fields_to_serialize(self) -> Any:
        if self._fields is None:
            fields = [request_field(self.op.request.to_json()), *kernel_fields(self.op.kernels)]
            self._fields = FieldCollection(self.trt, fields)
        return self._fields.collection

    @_recorded
    def enqueue(
        self, input_desc: Sequence[Any], output_desc: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int],
        workspace: int, stream: int,
    ) -> None:  # fmt: skip
        self.op.enqueue(_tensors(input_desc, inputs), _tensors(output_desc, outputs), workspace, stream)


def plugin_classes(trt: Any) -> tuple[type, type]:
    """The plugin class, made of a :class:`PluginOp`, and the creator class, made of a subclass of it.

    Args:
        trt: TensorRT's module.

    Raises:
        MissingDependencyError: bindings whose fields cannot be read.
    """
    read_field = field_reader(trt)
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime)
    module = trt

    class Plugin(_Plugin, *bases):  # type: ignore[misc]
        trt = module

        def __init__(self, op: PluginOp) -> None:
            for base in bases:
                base.__init__(self)
            self._begin(op)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc, name-defined]
        """Makes plugins of one op: from a node's request, or from what an engine kept."""

        def __init__(self, op: type[PluginOp]) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.op = op
            self.name, self.plugin_version, self.plugin_namespace = op.name, PLUGIN_VERSION, _NAMESPACE
            # the ONNX parser passes this attribute of a node, and no other
            self._kept = FieldCollection(trt, [request_field("?")])
            self.field_names = self._kept.collection

        @_recorded
        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return Plugin(make_op(self.op, [read_field(each) for each in fields]))

    return Plugin, Creator
