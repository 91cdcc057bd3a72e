"""TensorRT's engines, from the bundle's files, and their execution contexts over our own memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemotron_errors import BundleError
from nemotron_formats.dtypes import DTYPES

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.cuda import Stream
from nemotron_runtime.executors.tensorrt.module import TensorRT

__all__ = ["BuiltEngine", "Context"]

# TensorRT's name of a tensor's dtype → numpy's
_DTYPES = {dtype.tensorrt: dtype.name for dtype in DTYPES.values()}


class BuiltEngine:
    """One engine of the bundle.

    Args:
        tensorrt: TensorRT.
        bundle: the bundle.
        name: the engine's file.

    Raises:
        BundleError: TensorRT refuses the file.
    """

    def __init__(self, tensorrt: TensorRT, bundle: Bundle, name: str) -> None:
        self.tensorrt = tensorrt
        self.where = str(bundle.file(name))
        tensorrt.forget()
        self._engine: Any = tensorrt.runtime.deserialize_cuda_engine(bundle.file(name).read_bytes())
        if self._engine is None:
            error = tensorrt.fail("an engine that TensorRT refuses")
            expected = f"an engine of TensorRT {tensorrt.trt.__version__} for this GPU"
            raise BundleError(
                error.found, expected, "build the bundle again on this machine", where=self.where
            ) from error
        tensorrt.check(self.where)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = {n for n in names if self._engine.get_tensor_mode(n) == tensorrt.trt.TensorIOMode.INPUT}
        self.inputs = tuple(n for n in names if n in inputs)
        self.outputs = tuple(n for n in names if n not in inputs)

    @property
    def memory(self) -> int:
        """Bytes of activations that an execution context needs."""
        return int(self._engine.device_memory_size_v2)

    def dtype(self, name: str) -> str:
        """numpy's name of a tensor's dtype."""
        kind = self._engine.get_tensor_dtype(name).name
        return _DTYPES.get(kind, kind)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, -1 where it is dynamic."""
        return tuple(self._engine.get_tensor_shape(name))

    def check(self, inputs: Iterable[str], outputs: Iterable[str], tensors: Mapping[str, tuple[str, Any]]) -> None:
        """Holds the engine against the manifest.

        Args:
            inputs: names of all inputs.
            outputs: names of all outputs.
            tensors: dtype and shape of some of them; None where any shape will do, -1 where any size will.

        Raises:
            BundleError: another interface.
        """
        profiles = int(self._engine.num_optimization_profiles)
        if profiles != 1:
            # TensorRT 10.6 dies where contexts of such an engine, with plugins in it, are freed
            self._refuse(f"{profiles} optimization profiles", "one")
        for what, found, expected in (("inputs", self.inputs, set(inputs)), ("outputs", self.outputs, set(outputs))):
            if set(found) != expected:
                odd = ", ".join(sorted(set(found) ^ expected)[:8])
                self._refuse(f"{what} missing or unknown: {odd}", f"the {what} that the manifest names")
        for name, (dtype, shape) in tensors.items():
            if self.dtype(name) != dtype or (shape is not None and not _fits(self.shape(name), tuple(shape))):
                wanted = f"{dtype} {list(shape) if shape is not None else ''}".strip()
                self._refuse(f"{name} of {self.dtype(name)} {list(self.shape(name))}", wanted)

    def largest_shape(self, name: str) -> tuple[int, ...]:
        """The largest shape that an input with dynamic dims may have."""
        return tuple(self._engine.get_tensor_profile_shape(name, 0)[2])

    def context(self, stream: Stream, memory: int, size: int) -> Context:
        """An execution context whose activations live at ``memory``; contexts may share it, one runs at a time."""
        trt = self.tensorrt.trt
        made = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if made is None or not made.set_optimization_profile_async(0, int(stream)):
            raise self.tensorrt.fail(f"{self.where}: no execution context")
        made.set_device_memory(memory, size)
        self.tensorrt.check(self.where)
        return Context(self, made)

    def close(self) -> None:
        """Frees it; its contexts must be gone. Twice is allowed."""
        self._engine = None

    def _refuse(self, found: str, expected: str) -> None:
        raise BundleError(found, expected, "build the bundle again", where=self.where)


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    # a dim that can have one size alone may be told as that size
    return len(found) == len(expected) and all(e in (-1, f) for f, e in zip(found, expected, strict=True))


class Context:
    """One execution context: shapes, addresses, launch."""

    def __init__(self, engine: BuiltEngine, context: Any) -> None:
        self._engine = engine
        self._context: Any = context
        self._shapes: dict[str, tuple[int, ...]] = {}

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Sets addresses of inputs and outputs."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._engine.tensorrt.fail(f"{self._engine.where}: no address for {name}")

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets shapes of inputs, where they changed."""
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                raise self._engine.tensorrt.fail(f"{self._engine.where}: {name} of shape {list(shape)}")
            self._shapes[name] = shape

    def run(self, stream: Stream) -> None:
        """Gives one pass to the stream."""
        if not self._context.execute_async_v3(int(stream)):
            raise self._engine.tensorrt.fail(f"{self._engine.where}: a pass that fails")
        self._engine.tensorrt.check(self._engine.where)

    def close(self) -> None:
        """Frees it. Twice is allowed."""
        self._context = None
