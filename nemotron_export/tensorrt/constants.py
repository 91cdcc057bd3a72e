"""Puts weights into a parsed network: inputs become constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_formats.dtypes import DTYPES, item_bytes

from nemotron_export.tensorrt.messages import EngineError

__all__ = ["Constant", "embed_constants"]


@dataclass(frozen=True)
class Constant:
    """A tensor on the host.

    Attributes:
        dtype: numpy's name, or "bfloat16".
        data: its bytes, uint8 [n], at an address that its items may have. TensorRT reads them until the build ends.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        assert len(self.data) == math.prod(self.shape) * item_bytes(self.dtype)
        assert self.data.flags.c_contiguous
        assert self.address % item_bytes(self.dtype) == 0

    @property
    def address(self) -> int:
        """Of its first byte."""
        return int(self.data.ctypes.data)


def embed_constants(trt: Any, network: Any, constants: Mapping[str, Constant], what: str) -> None:
    """Makes every layer read a constant where it read an input of that name, and removes the input.

    Equal bytes at one address, as of a tied embedding, become one constant.

    Args:
        network: parsed; changed in place.
        constants: by the names of inputs.

    Raises:
        EngineError: an input that is missing or does not fit, or that TensorRT keeps.
    """
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    missing = sorted(set(constants) - set(inputs))
    if missing:
        raise _refused(f"no input for {len(missing)} weights, for example {missing[0]}", what)
    made: dict[tuple[int, str, tuple[int, ...]], Any] = {}

    def constant_of(name: str, constant: Constant) -> Any:
        kind, replaced = getattr(trt.DataType, DTYPES[constant.dtype].tensorrt), inputs[name]
        if tuple(replaced.shape) != constant.shape or replaced.dtype != kind:
            found = f"{replaced.dtype} {list(replaced.shape)} for {constant.dtype} {list(constant.shape)}"
            raise _refused(f"{name} of {found}", what)
        key = (constant.address, constant.dtype, constant.shape)
        if key not in made:
            weights = trt.Weights(kind, constant.address, math.prod(constant.shape))
            layer = network.add_constant(constant.shape, weights)
            if layer is None:
                raise _refused(f"a constant for {name} that it does not take", what)
            made[key] = layer.get_output(0)
            layer.name = made[key].name = f"{name} (constant)"
        return made[key]

    tensors = {name: constant_of(name, constant) for name, constant in constants.items()}
    for layer in map(network.get_layer, range(network.num_layers)):
        for index in range(layer.num_inputs):
            read = layer.get_input(index)
            # an optional input may be none
            if read is not None and read.is_network_input and read.name in tensors:
                layer.set_input(index, tensors[read.name])
    for name in constants:
        network.remove_tensor(inputs[name])
    # the call gives nothing back: one that is still read stays, with a warning
    kept = {network.get_input(index).name for index in range(network.num_inputs)} & set(constants)
    if kept:
        raise _refused(f"{len(kept)} weights that stay inputs, for example {min(kept)}", what)


def _refused(found: str, what: str) -> EngineError:
    return EngineError(found, "a network whose weights become constants", "leave --embed-weights out", where=what)
